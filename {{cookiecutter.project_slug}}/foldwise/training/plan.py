"""The plan of a training, checked as a whole before a run exists."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foldwise.code.source import Code
from foldwise.config import followers
from foldwise.data.holdout import FULL, Holdout, choose_holdouts
from foldwise.data.prepare import Prepared, prepare
from foldwise.errors import Refusal
from foldwise.processes.group import call
from foldwise.training.devices import count_gpus, count_processes, share_gpus
from foldwise.training.identity import hash_contents, make_identity

if TYPE_CHECKING:
    from foldwise.processes.server import Context


@dataclass(frozen=True)
class Plan:
    """A training that can begin.

    Attributes:
        parts: the models to be trained, finished or not, by their held-out folds.
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


def make_plan(context: "Context", config: dict[str, Any], nodes: int, make_folds: bool, code: Code) -> Plan:
    """Check the data, the configuration and the devices; refuse what cannot be used.

    Args:
        nodes: machines that train each fold.
        make_folds: rows without a fold get one.
        code: the owner's, which the training reaches.
    """
    trainer, workers = config["trainer"], config["fold_workers"]
    prepared = prepare(config, code.alias, make_folds)
    parts = choose_parts(config["fold"], followers(config), prepared)
    contents = hash_contents(prepared, config["model"]["weights"])
    identity = make_identity(config, 0, contents, code)  # while the server imports torch
    hardware, picture = call(context, _inspect, config, prepared, parts[0])
    devices = count_processes(trainer, hardware)
    if nodes > 1 and workers != 1:
        raise Refusal("fold_workers is for one machine: on several, each fold has all devices of all of them")
    visible = share_gpus(workers, devices, count_gpus(trainer, hardware), os.environ.get("CUDA_VISIBLE_DEVICES"))
    identity["world size"] = str(devices * nodes)
    return Plan(config, prepared, parts, hardware, picture, devices, devices * nodes, visible, identity)


def choose_parts(chosen: Any, followed: Sequence[str], prepared: Prepared) -> list[Holdout]:
    """The models that `fold=` asks for, or a Refusal if they cannot be had by this configuration.

    Args:
        followed: settings by which a training follows the validation on its fold, see `config.followers`.
    """
    parts = choose_holdouts(chosen, sorted(set(prepared.folds.values()) - {-1}))
    problems = []
    if chosen in ("full", "pairs"):
        problems += [f"{name} follows the validation on one fold, and there is none" for name in followed]
    if prepared.pseudo and chosen == "pairs":
        problems.append("data.pseudo has targets for students without one fold, made by models that saw the other")
    if prepared.pseudo and chosen == "full" and not len(prepared.pseudo.of(FULL)):
        problems.append(f"{prepared.pseudo.table.path} has no rows for a full fit (student full)")
    if problems:
        raise Refusal("\n".join(f"fold={chosen}: {problem}" for problem in problems))
    return parts


# Imported in the child only: the calling process stays without torch.
def _inspect(config: Mapping[str, Any], prepared: Prepared, part: Holdout) -> tuple[dict[str, Any], bytes]:
    from foldwise.reporting.figures import to_png
    from foldwise.reporting.phases import phases_figure
    from foldwise.training.trial import inspect_config

    hardware, phases = inspect_config(config, prepared, part)
    return hardware, to_png(phases_figure(phases))
