"""The folder of a run: found again by what the run is made from, or made; and how it differs from the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from foldwise import FORMAT_VERSION
from foldwise.code.runs import keep_code
from foldwise.code.source import Code
from foldwise.config import read_config, write_config
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.training.environment import describe_environment
from foldwise.training.identity import describe_differences, hash_identity

console = Console()


def open_run(
    config: dict[str, Any],
    identity: dict[str, str],
    hardware: Mapping[str, Any],
    runs: Path,
    code: Code | None = None,
) -> Path:
    """The folder of the run with this identity, made if it is new; says how it differs from the nearest other one.

    Raises:
        Refusal: `run=` is not a run, or is of another version of this code.
    """
    environment = describe_environment(hardware)
    if config["run"] is not None:
        run = Path(config["run"])
        return _continue_run(run, identity, environment)
    experiment = config["experiment_name"] or "train"
    run = runs / f"{experiment}-{hash_identity(identity)}"
    if (run / "identity.json").exists():
        return _continue_run(run, identity, environment)
    nearest = _nearest_run(identity, runs, experiment)
    if nearest is not None:
        console.print(f"new run {run}; it differs from {nearest[0]} in")
        for line in nearest[1][:20]:
            console.print(f"  {line}", markup=False, highlight=False)
    run.mkdir(parents=True, exist_ok=True)
    write_config(run, config)
    keep_code(code, run)
    write_json(run / "environment.json", {"created": environment, "continued": []})
    # Last, since a run is recognised by it.
    write_json(run / "identity.json", {"format_version": FORMAT_VERSION, "identity": identity})
    return run


def continued_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in force for `run=<path>`: the run's own, and of the command line only what is trained now.

    Raises:
        Refusal: `run=` is not a run, or is of another version of this code.
    """
    run = Path(config["run"])
    read_identity(run)
    console.print(
        f"{run} goes on by its own config.yaml; of this command line only run=, fold= and fold_workers= count"
    )
    return read_config(run) | {name: config[name] for name in ("run", "fold", "fold_workers")}


def _continue_run(run: Path, identity: Mapping[str, str], environment: dict[str, Any]) -> Path:
    old = read_identity(run)
    differences = describe_differences(identity, old)
    record = read_json(run / "environment.json")
    if differences:
        console.print(f"{run} goes on in spite of what is different now:")
        for line in differences:
            console.print(f"  {line}", markup=False, highlight=False)
    finished = (run / "metrics.json").exists()
    if differences or not finished:
        record["continued"].append(environment | {"differences": differences})
        write_json(run / "environment.json", record)
    return run


def read_identity(run: Path) -> dict[str, str]:
    """What a run was made from, as `make_identity` says it.

    Raises:
        Refusal: it is not a run, or of another version of this code.
    """
    path = run / "identity.json"
    if not path.is_file():
        raise Refusal(f"{run} is not a run: it has no identity.json; runs are the folders that train.py makes in runs/")
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise Refusal(
            f"{run} has the format version {version}, and this code reads {FORMAT_VERSION}: "
            "use the code that the run was made with (its commit is in environment.json), or train again"
        )
    return content["identity"]


def describe_changes(old: Path, new: Path) -> list[str]:
    """One line for each thing in which a run differs from an older one: configuration, data, code, packages.

    Raises:
        Refusal: one of them is not a run, or is of another version of this code.
    """
    lines = describe_differences(read_identity(new), read_identity(old))
    first, second = (read_json(run / "environment.json")["created"]["packages"] for run in (old, new))
    names = sorted(first.keys() | second.keys())
    return lines + [
        f"package {name}: {first.get(name, 'absent')} -> {second.get(name, 'absent')}"
        for name in names
        if first.get(name) != second.get(name)
    ]


def _nearest_run(identity: Mapping[str, str], runs: Path, experiment: str) -> tuple[Path, list[str]] | None:
    """The run of the same experiment with the fewest differences, the newest of equals."""
    others = []
    for path in runs.glob(f"{experiment}-*/identity.json"):
        try:
            differences = describe_differences(identity, read_identity(path.parent))
        except Refusal:
            continue  # of another version; it takes no part
        others.append((len(differences), -path.stat().st_mtime, path.parent, differences))
    if not others:
        return None
    _, _, run, differences = min(others, key=lambda other: other[:2])
    return run, differences
