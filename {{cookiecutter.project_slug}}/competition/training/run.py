"""A run: all folds of one configuration, from the checked data to the out-of-fold score.

    runs/<experiment>-<hash>/
        config.yaml  identity.json  environment.json
        fold<k>/     see training/fold.py; metrics.json when it is finished
        oof/         the out-of-fold predictions of all folds
        metrics.json report.html

The parent process does all of this without torch; the folds are trained in processes of their own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from competition.config import check_task
from competition.data.prepare import Prepared, prepare
from competition.files import sha256_file
from competition.processes.faults import describe_exit
from competition.processes.running import Place, call, fold_context, run_processes
from competition.processes.signals import EXIT_CODES, Stopped
from competition.training.identity import hash_table, make_identity
from competition.training.results import finish_fold, finish_run
from competition.training.run_folder import continued_config, open_run

console = Console()


def train(config: dict[str, Any], runs: Path = Path("runs")) -> Path:
    """Train the folds that are asked for and not finished yet; the folder of the run.

    Args:
        config: resolved, plain values.

    Raises:
        ValueError: the data or the configuration cannot be used; nothing has been written then.
        RuntimeError: a fold failed; the others' results and the state before the failure are kept.
        Stopped: a signal ended a fold's processes; the same holds.
    """
    if config["run"] is not None:
        config = continued_config(config)
    check_task(config)
    context = fold_context()  # it imports torch in the background, while the data is checked here
    data = config["data"]
    prepared = prepare(data, config["task"], config["seed"], make_folds=data["name"] == "sample")
    folds = choose_folds(config["fold"], prepared)
    hardware = call(context, _inspect, config, prepared)
    world = count_processes(config["trainer"], hardware)
    identity = make_identity(config, world, hash_contents(config, prepared))
    run = open_run(config, identity, hardware, runs)
    for fold in folds:
        if (run / f"fold{fold}" / "metrics.json").exists():
            console.print(f"fold {fold} is finished")
            continue
        console.rule(f"{run.name}  fold {fold}", style="dim")
        code = run_processes(context, _train_fold, (run, fold, config), world)
        for number, meaning in EXIT_CODES.items():
            if code == meaning:
                raise Stopped(number)
        if code:
            raise RuntimeError(
                f"fold {fold} {describe_exit(code)}; what is finished is kept in {run}. "
                "The same command goes on from there"
            )
        finish_fold(run, fold, config, prepared, world)
    finish_run(run, config, prepared)
    return run


# Imported in the child only: this process stays without torch.
def _inspect(config: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    from competition.training.build import inspect_config

    return inspect_config(config, prepared)


def _train_fold(run: Path, fold: int, config: Mapping[str, Any], place: Place) -> None:
    from competition.training.fold import train_fold

    train_fold(run, fold, config, place)


def choose_folds(chosen: Any, prepared: Prepared) -> list[int]:
    """The folds that `fold=` asks for: "all", a number, or a list of numbers.

    Raises:
        ValueError: a fold that does not exist.
    """
    existing = sorted(set(prepared.folds.values()) - {-1})
    if chosen == "all":
        return existing
    wanted = chosen if isinstance(chosen, list) else [chosen]
    unknown = [fold for fold in wanted if fold not in existing]
    if unknown or not wanted:
        raise ValueError(f"fold={chosen}: the folds are {existing}; give one, a list such as fold=[0,1], or fold=all")
    return sorted(set(wanted))


def count_processes(trainer: Mapping[str, Any], hardware: Mapping[str, Any]) -> int:
    """Processes that train one fold on this machine: one a device.

    Raises:
        ValueError: the accelerator or so many devices are not there.
    """
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if accelerator in ("gpu", "cuda") and hardware["accelerator"] != "gpu":
        raise ValueError("trainer.accelerator=gpu, but torch sees no GPU here: use trainer=auto or trainer=cpu")
    available = len(hardware["devices"]) if accelerator != "cpu" and hardware["accelerator"] == "gpu" else None
    if devices == "auto":
        return available or 1
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices is {devices!r}; give a number, or auto for all GPUs")
    if available and devices > available:
        raise ValueError(f"trainer.devices={devices}, but there are {available} GPUs here")
    return devices


def hash_contents(config: Mapping[str, Any], prepared: Prepared) -> dict[str, str]:
    """Hashes of what a run reads, by name."""
    weights = config["model"]["weights"]
    return {
        "table": hash_table(prepared.table),
        "folds": prepared.folds_hash,
        "images": prepared.images_hash,
        "pseudo": sha256_file(prepared.pseudo.table.path)[:16] if prepared.pseudo else "none",
        "weights": sha256_file(Path(weights))[:16] if weights else "none",
    }
