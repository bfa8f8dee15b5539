"""Finds a run folder by its identity or creates it, and compares runs."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from foldwise import FORMAT_VERSION
from foldwise.code.runs import keep_code
from foldwise.code.source import NO_CODE, Code
from foldwise.config import read_config, write_config
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.machinery import edited_files
from foldwise.training.identity import describe_differences, hash_identity, read_identity

console = Console()
PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "timm", "segmentation-models-pytorch", "albumentations",
    "opencv-python-headless", "numpy", "pandas", "scikit-learn", "hydra-core", "safetensors",
)  # fmt: skip


def create_or_resume_run(
    config: dict[str, Any],
    identity: dict[str, str],
    hardware: Mapping[str, Any],
    runs: Path,
    code: Code = NO_CODE,
) -> Path:
    """Find or create the folder of the run with this identity; for a new run, print how it differs from the nearest.

    Args:
        hardware: from `inspect_config`, for environment.json.
    """
    environment = _describe_environment(hardware)
    if config["run"] is not None:
        return _resume_run(Path(config["run"]), identity, environment)
    run = find_run(config, identity, runs)
    if (run / "identity.json").exists():
        return _resume_run(run, identity, environment)
    nearest = _nearest_run(identity, runs, _experiment(config))
    if nearest is not None:
        _print_lines(f"new run {run}; it differs from {nearest[0]} in", nearest[1][:20])
    run.mkdir(parents=True, exist_ok=True)
    write_config(run, config)
    keep_code(code, run)
    write_json(run / "environment.json", {"created": environment, "continued": []})
    # Last: a folder with identity.json is a run.
    write_json(run / "identity.json", {"format_version": FORMAT_VERSION, "identity": identity})
    return run


def find_run(config: Mapping[str, Any], identity: Mapping[str, str], runs: Path) -> Path:
    """The folder of the run, whether it exists or not."""
    return Path(config["run"] or runs / f"{_experiment(config)}-{hash_identity(identity)}")


def _experiment(config: Mapping[str, Any]) -> str:
    return config["experiment_name"] or "train"


def resumed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration for `run=<path>`: the run's, with run, fold and fold_workers from the command line."""
    run = Path(config["run"])
    read_identity(run)
    own = ("run", "fold", "fold_workers", "preflight")
    console.print(f"{run} resumes with its config.yaml; of this command line only {'=, '.join(own)}= count")
    return read_config(run) | {name: config[name] for name in own if name in config}


def describe_changes(old: Path, new: Path) -> list[str]:
    """One line per difference from an older run: configuration, data, code, packages."""
    lines = describe_differences(read_identity(new), read_identity(old))
    first, second = (read_json(run / "environment.json")["created"]["packages"] for run in (old, new))
    return lines + [
        f"package {name}: {first.get(name, 'absent')} -> {second.get(name, 'absent')}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def _resume_run(run: Path, identity: Mapping[str, str], environment: dict[str, Any]) -> Path:
    differences = describe_differences(identity, read_identity(run))
    record = read_json(run / "environment.json")
    if differences:
        _print_lines(f"{run} resumes despite these differences:", differences)
    if differences or not (run / "metrics.json").exists():
        record["continued"].append(environment | {"differences": differences})
        write_json(run / "environment.json", record)
    return run


def _nearest_run(identity: Mapping[str, str], runs: Path, experiment: str) -> tuple[Path, list[str]] | None:
    """The run of the experiment with the fewest differences; of equals, the newest."""
    others = []
    for path in runs.glob(f"{experiment}-*/identity.json"):
        try:
            differences = describe_differences(identity, read_identity(path.parent))
        except Refusal:
            continue  # another format version
        others.append((len(differences), -path.stat().st_mtime, path.parent, differences))
    return min(others, key=lambda other: other[:2])[2:] if others else None


def _print_lines(title: str, lines: list[str]) -> None:
    console.print(title)
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False)


def _describe_environment(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Command, code, packages and hardware of a run; no environment variables."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "diff": _git("diff", "HEAD"),
        "edited_machinery": edited_files(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "hardware": dict(hardware),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of a git command; None without git, a repository or a commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
