"""What `train.py` will train, checked as a whole before a run exists."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.code.runs import OwnerCode
from foldwise.config import followers
from foldwise.data.holdout import FULL, Holdout, choose_holdouts
from foldwise.data.prepare import Prepared, prepare
from foldwise.errors import Refusal
from foldwise.files import sha256_file
from foldwise.processes.group import call
from foldwise.training.devices import count_gpus, count_processes, share_gpus
from foldwise.training.identity import hash_data, make_identity

if TYPE_CHECKING:
    from foldwise.processes.server import Context


@dataclass(frozen=True)
class Plan:
    """A training that can begin.

    Attributes:
        config: resolved, plain values.
        parts: the models to be trained, finished or not, by what they are trained without.
        hardware: what torch sees here, see `inspect_config`.
        picture: of their phases, as a PNG.
        devices: of this machine that train one fold, with one process each.
        world: processes that train one fold, on all machines.
        visible: CUDA_VISIBLE_DEVICES of each worker that trains folds at once.
        identity: see `make_identity`.
    """

    config: dict[str, Any]
    prepared: Prepared
    parts: list[Holdout]
    hardware: dict[str, Any]
    picture: bytes
    devices: int
    world: int
    visible: list[str | None]
    identity: dict[str, str]


def make_plan(context: "Context", config: dict[str, Any], nodes: int, make_folds: bool, code: OwnerCode) -> Plan:
    """Check the data, the configuration and the devices.

    Args:
        nodes: machines that train each fold.
        make_folds: whether rows without a fold get one.
        code: of the owner's, which the training reaches.

    Raises:
        Refusal: what cannot be used.
    """
    trainer = config["trainer"]
    prepared = prepare(config, code.alias, make_folds)
    parts = choose_parts(config, prepared)
    hardware, picture = call(context, _inspect, config, prepared, parts[0])
    devices = count_processes(trainer, hardware)
    world = devices * nodes
    workers, gpus = config["fold_workers"], count_gpus(trainer, hardware)
    if nodes > 1 and workers != 1:
        raise Refusal("fold_workers is for one machine: on several, each fold has all devices of all of them")
    visible = share_gpus(workers, devices, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    identity = make_identity(config, world, hash_contents(config, prepared), code.code)
    return Plan(config, prepared, parts, hardware, picture, devices, world, visible, identity)


def choose_parts(config: Mapping[str, Any], prepared: Prepared) -> list[Holdout]:
    """The models that `fold=` asks for.

    Raises:
        Refusal: as `choose_holdouts`; or a model of every row or without two folds cannot be had by this
            configuration.
    """
    chosen = config["fold"]
    parts = choose_holdouts(chosen, sorted(set(prepared.folds.values()) - {-1}))
    problems = []
    if chosen in ("full", "pairs"):
        problems += [f"{name} follows the validation on one fold, and there is none" for name in followers(config)]
    if prepared.pseudo and chosen == "pairs":
        problems.append("data.pseudo has targets for students without one fold, made by models that saw the other")
    if prepared.pseudo and chosen == "full" and not len(prepared.pseudo.of(FULL)):
        problems.append(f"{prepared.pseudo.table.path} has no rows for a model of every row (student full)")
    if problems:
        raise Refusal("\n".join(f"fold={chosen}: {problem}" for problem in problems))
    return parts


def hash_contents(config: Mapping[str, Any], prepared: Prepared) -> dict[str, str]:
    """Hashes of what a run reads, by name."""
    weights = config["model"]["weights"]
    return {
        "table": hash_data(prepared),
        "folds": prepared.folds_hash,
        "images": prepared.images_hash,
        "pseudo": sha256_file(prepared.pseudo.table.path)[:16] if prepared.pseudo else "none",
        "weights": sha256_file(Path(weights))[:16] if weights else "none",
    }


# Imported in the child only: the calling process stays without torch.
def _inspect(config: Mapping[str, Any], prepared: Prepared, part: Holdout) -> tuple[dict[str, Any], bytes]:
    from foldwise.reporting.figures import to_png
    from foldwise.reporting.phases import phases_figure
    from foldwise.training.trial import inspect_config

    hardware, phases = inspect_config(config, prepared, part)
    return hardware, to_png(phases_figure(phases))
