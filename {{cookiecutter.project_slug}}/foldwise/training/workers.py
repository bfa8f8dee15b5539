"""Trains the folds of a run in child processes, one after another or several at a time."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from foldwise.data.holdout import Holdout
from foldwise.errors import ProcessFailed, Refusal
from foldwise.processes.exits import Stopped, describe_exit, how_to_resume, raise_stopped
from foldwise.processes.group import Group, free_port
from foldwise.processes.nodes import Node
from foldwise.processes.team import Team
from foldwise.training.plan import Plan
from foldwise.training.results import finish_fold

if TYPE_CHECKING:
    from foldwise.processes.server import Context

console = Console()
TAIL = 5  # log lines shown for a failed fold
Watch = Callable[[Path, Holdout], None]


def train_in_turn(
    context: "Context",
    run: Path,
    parts: Sequence[Holdout],
    plan: Plan,
    node: Node,
    team: Team,
    watch: Watch | None = None,
) -> None:
    """Train one fold after another, each on all devices of all nodes. Runs on node 0; the others `follow`.

    Raises ProcessFailed if a fold fails and Stopped if a signal ends it; finished folds and the last checkpoint stay.
    """
    for part in parts:
        console.rule(f"{run.name}  {part.title}", style="dim")
        port = free_port() if node.count > 1 else 0
        team.send(run=str(run), without=part.folds, port=port)
        _train_part(context, run, part, plan, replace(node, port=port), team, watch)
        finish_fold(run, part, plan.config, plan.prepared, plan.world)


def follow(context: "Context", plan: Plan, node: Node, team: Team) -> Path:
    """Train this node's share of every fold that node 0 announces, and return the run folder.

    Raises like `train_in_turn`; also LostNodeError, and a Refusal if the run folder is not on a shared file system.
    """
    while "without" in (order := team.receive()):
        run = Path(order["run"])
        if not (run / "identity.json").exists():
            raise Refusal(f"node {node.rank} cannot find {run}, which node 0 created: put it on a shared file system")
        part = Holdout(tuple(order["without"]))
        _train_part(context, run, part, plan, replace(node, port=order["port"]), team)
    return Path(order["run"])


def _train_part(
    context: "Context", run: Path, part: Holdout, plan: Plan, node: Node, team: Team, watch: Watch | None = None
) -> None:
    """Train this node's share of a fold; rank 0 listens at the node's port."""
    with Group(context, _train_fold, (run, part, plan.config, plan.prepared), plan.devices, node) as group:
        code = team.run(group, partial(watch, run, part) if watch else None)
    raise_stopped(code)
    if code:
        raise ProcessFailed(
            f"{part.title} {describe_exit(code)}; what is finished is kept in {run}. {how_to_resume(code)}", code
        )


def train_at_once(context: "Context", run: Path, parts: Sequence[Holdout], plan: Plan) -> None:
    """Train several folds at a time, one per worker of the plan; the others continue if one fails.

    A fold logs to `<run>/fold<k>/log.txt`, its epochs also to the console. At the end raises ProcessFailed with the
    last log lines of the failed folds. A signal that stops one fold stops all.
    """
    pending, running, failed = deque(parts), dict[int, tuple[Holdout, Group]](), dict[Holdout, int]()
    workers = min(len(plan.visible), len(parts))
    with ExitStack() as groups:
        try:
            while pending or running:
                for worker in sorted(set(range(workers)) - running.keys())[: len(pending)]:
                    part = pending.popleft()
                    arguments, gpus = (run, part, plan.config, plan.prepared), plan.visible[worker]
                    group = Group(context, _train_fold, arguments, plan.devices, None, workers, gpus, _log(run, part))
                    console.print(f"{part.title} starts; its log is {_log(run, part)}")
                    running[worker] = part, groups.enter_context(group)
                wait([sentinel for _, group in running.values() for sentinel in group.sentinels])
                for worker, (part, group) in list(running.items()):
                    code = group.poll()
                    if code is None:
                        continue
                    del running[worker]
                    raise_stopped(code)
                    if code:
                        failed[part] = code
                        console.print(f"{part.title} failed; the others continue")
                    else:
                        finish_fold(run, part, plan.config, plan.prepared, plan.world)
                        console.print(f"{part.title} is finished")
        except Stopped as stop:
            for _, group in running.values():
                group.signal(stop.number)  # all first; leaving the block waits for each
            raise
    if failed:
        raise ProcessFailed(
            "\n".join(_describe_failure(run, part, code) for part, code in failed.items())
            + f"\nwhat is finished is kept in {run}. {how_to_resume(*failed.values())}",
            *failed.values(),
        )


# Imports torch, so only a child process calls it.
def _train_fold(*arguments: Any) -> None:
    from foldwise.training.fold import train_fold

    train_fold(*arguments)


def _log(run: Path, part: Holdout) -> Path:
    return run / part.name / "log.txt"


def _describe_failure(run: Path, part: Holdout, code: int) -> str:
    log = _log(run, part)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return "\n    ".join([f"{part.title} {describe_exit(code, str(log))}", *lines])
