"""What `train.py` will train, checked as a whole before a run exists."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.data.prepare import Prepared, prepare
from competition.files import sha256_file
from competition.processes.running import call
from competition.training.devices import count_gpus, count_processes, share_gpus
from competition.training.identity import hash_table, make_identity

if TYPE_CHECKING:
    from competition.processes.group import Context


@dataclass(frozen=True)
class Plan:
    """A training that can begin.

    Attributes:
        config: resolved, plain values.
        folds: to be trained, finished or not.
        hardware: what torch sees here, see `inspect_config`.
        devices: of this machine that train one fold, with one process each.
        world: processes that train one fold, on all machines.
        visible: CUDA_VISIBLE_DEVICES of each worker that trains folds at once.
        identity: see `make_identity`.
    """

    config: dict[str, Any]
    prepared: Prepared
    folds: list[int]
    hardware: dict[str, Any]
    devices: int
    world: int
    visible: list[str | None]
    identity: dict[str, str]


def make_plan(context: "Context", config: dict[str, Any], nodes: int, make_folds: bool) -> Plan:
    """Check the data, the configuration and the devices.

    Args:
        nodes: machines that train each fold.
        make_folds: whether rows without a fold get one.

    Raises:
        ValueError: what cannot be used.
    """
    data, trainer = config["data"], config["trainer"]
    prepared = prepare(data, config["task"], config["seed"], make_folds)
    folds = choose_folds(config["fold"], prepared)
    hardware = call(context, _inspect, config, prepared)
    devices = count_processes(trainer, hardware)
    world = devices * nodes
    workers, gpus = config["fold_workers"], count_gpus(trainer, hardware)
    if nodes > 1 and workers != 1:
        raise ValueError("fold_workers is for one machine: on several, each fold has all devices of all of them")
    visible = share_gpus(workers, devices, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    identity = make_identity(config, world, hash_contents(config, prepared))
    return Plan(config, prepared, folds, hardware, devices, world, visible, identity)


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


# Imported in the child only: the calling process stays without torch.
def _inspect(config: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    from competition.training.build import inspect_config

    return inspect_config(config, prepared)
