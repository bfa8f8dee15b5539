"""Plans and checks a training before its run exists."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.code.source import Code
from foldwise.config import followers
from foldwise.data.holdout import FULL, Holdout, choose_holdouts
from foldwise.data.prepare import Prepared, prepare
from foldwise.errors import Refusal
from foldwise.processes.group import call
from foldwise.training.devices import count_gpus, count_processes, share_gpus
from foldwise.training.identity import hash_contents, make_identity
from foldwise.training.initial import check_initial

if TYPE_CHECKING:
    from foldwise.processes.server import Context


@dataclass(frozen=True)
class Plan:
    """A checked training, ready to start.

    Attributes:
        parts: held-out folds of the requested models, finished or not.
        hardware: from `inspect_config`.
        picture: PNG of the phases.
        devices: devices (and processes) per fold on this machine.
        world: processes per fold on all machines.
        visible: CUDA_VISIBLE_DEVICES of each fold worker.
        identity: from `make_identity`.
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
    """Check data, configuration and the devices of `nodes` machines; raise a Refusal for what cannot be used."""
    trainer, workers = config["trainer"], config["fold_workers"]
    prepared = prepare(config, code.alias, make_folds)
    parts = choose_parts(config["fold"], followers(config), prepared)
    if config["init"]:
        check_initial(Path(config["init"]), prepared, parts)
    contents = hash_contents(prepared, config)
    identity = make_identity(config, 0, contents, code)  # hashed while the server imports torch
    hardware, picture = call(context, _inspect, config, prepared, parts[0], nodes)
    devices = count_processes(trainer, hardware)
    if nodes > 1 and workers != 1:
        raise Refusal("fold_workers is for one machine: on several, each fold has all devices of all of them")
    visible = share_gpus(workers, devices, count_gpus(trainer, hardware), os.environ.get("CUDA_VISIBLE_DEVICES"))
    identity["world size"] = str(devices * nodes)
    return Plan(config, prepared, parts, hardware, picture, devices, devices * nodes, visible, identity)


def choose_parts(chosen: Any, followed: Sequence[str], prepared: Prepared) -> list[Holdout]:
    """The models that `fold=` requests; raise a Refusal if this configuration cannot train them.

    Args:
        followed: settings by which training depends on validation, from `config.followers`.
    """
    parts = choose_holdouts(chosen, prepared.scored_folds)
    problems = []
    if chosen in ("full", "pairs"):
        problems += [f"{name} depends on the validation of a fold, and there is none" for name in followed]
    if prepared.pseudo and chosen == "pairs":
        problems.append("data.pseudo is for students with one held-out fold; models that saw the other made it")
    if prepared.pseudo and chosen == "full" and not len(prepared.pseudo.of(FULL)):
        problems.append(f"{prepared.pseudo.table.path} has no rows for a full fit (student full)")
    if prepared.outputs[0].meaning.kind == "vectors":
        problems += _retrieval_problems(chosen, prepared)
    if problems:
        raise Refusal("\n".join(f"fold={chosen}: {problem}" for problem in problems))
    return parts


def _retrieval_problems(chosen: Any, prepared: Prepared) -> list[str]:
    problems = []
    if chosen in ("full", "pairs"):
        problems.append("retrieval needs out-of-fold vectors to search among: train the folds")
    if prepared.pseudo:
        problems.append("retrieval has no pseudo labels: set data.pseudo=null")
    if len(prepared.outputs) > 1:
        problems.append("retrieval has one output: set outputs={}")
    if "unit" in prepared.table.frame:
        problems.append("retrieval names each image on its own: set data.columns.unit=null")
    return problems


# Imports torch, so only a child process calls it.
def _inspect(config: Mapping[str, Any], prepared: Prepared, part: Holdout, nodes: int) -> tuple[dict[str, Any], bytes]:
    from foldwise.reporting.figures import to_png
    from foldwise.reporting.phases import phases_figure
    from foldwise.training.dry_run import inspect_config

    hardware, phases = inspect_config(config, prepared, part, nodes)
    return hardware, to_png(phases_figure(phases))
