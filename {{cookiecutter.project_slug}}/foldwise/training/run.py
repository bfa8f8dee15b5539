"""Trains a run: all folds of one configuration, from checked data to the out-of-fold score.

    runs/<experiment>-<hash>/
        config.yaml  identity.json  environment.json  plan.png  preflight.png
        fold<k>/     see training/fold.py; has metrics.json when finished
        full/        the same for a full fit; without-<j>-<k>/ for a teacher that holds out two folds
        oof/         out-of-fold predictions of all folds
        metrics.json report.html

The parent process never imports torch; each fold trains in a separate process. With several machines, node 0 does all
of this and the others only train.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from foldwise.checks import check_config
from foldwise.code.runs import run_code, working_code
from foldwise.code.source import Code
from foldwise.data.holdout import Holdout
from foldwise.data.sample import is_sample
from foldwise.errors import Refusal
from foldwise.files import write_atomic
from foldwise.locks import lock
from foldwise.processes.group import call
from foldwise.processes.nodes import Node, check_nodes, find_node
from foldwise.processes.server import start_server
from foldwise.processes.team import Team, gather
from foldwise.training.identity import describe_differences
from foldwise.training.plan import Plan, make_plan
from foldwise.training.results import finish_run
from foldwise.training.run_folder import create_or_resume_run, find_run, resumed_config
from foldwise.training.workers import Watch, follow, train_at_once, train_in_turn

if TYPE_CHECKING:
    from foldwise.processes.server import Context

console = Console()


def train(config: dict[str, Any], runs: Path = Path("runs"), watch: Watch | None = None) -> Path:
    """Train the requested folds that are not finished, and return the run folder.

    Other jobs may train other folds of the run at the same time; the job that finishes the last fold merges them.

    Args:
        watch: called with run and fold every second while a fold trains, if one trains at a time, and when it ends;
            an exception that it raises ends the training.

    Raises:
        Refusal: unusable data or configuration, or another job trains a fold; nothing was trained.
        ProcessFailed: a fold failed; finished folds and the last checkpoint are kept.
        Stopped: a signal ended a fold; the same is kept.
    """
    if config["run"] is not None:
        config = resumed_config(config)
    check_config(config)
    node = check_nodes(config["trainer"]["num_nodes"], find_node(os.environ))
    context = start_server()  # it imports torch while this process checks the data
    # A resumed run uses the code saved with it.
    owned = working_code(config) if config["run"] is None else nullcontext(run_code(Path(config["run"])))
    with gather(node) as team, owned as code:
        if node.rank:
            return _follow(context, config, runs, node, team, code)
        return _lead(context, config, runs, node, team, code, watch)


def _lead(
    context: "Context", config: dict[str, Any], runs: Path, node: Node, team: Team, code: Code, watch: Watch | None
) -> Path:
    """Node 0: plan, create the run folder, train this node's share, write the results."""
    plan = make_plan(context, config, node.count, is_sample(config["data"]), code)
    team.send(identity=plan.identity)
    team.barrier()
    pictures, run = {"plan.png": plan.picture}, find_run(config, plan.identity, runs)
    asked = config["preflight"]
    if asked != "new" or not (run / "identity.json").exists():
        pictures |= _check(context, plan, code, runs)
    if asked in (True, "full"):
        team.send(run=str(run))
        return run
    with lock(runs / ".lock"):  # jobs that start together share one folder
        run = create_or_resume_run(config, plan.identity, plan.hardware, runs, code)
    for name, picture in pictures.items():
        _write_picture(run / name, picture)
    with ExitStack() as claims:
        parts = _claim(run, plan.parts, claims)
        if len(plan.visible) > 1:
            train_at_once(context, run, parts, plan)
        else:
            train_in_turn(context, run, parts, plan, node, team, watch)
    team.send(run=str(run))
    with lock(run / ".lock"):  # jobs that end together merge the folds once
        finish_run(run, config, plan.prepared)
    return run


def _check(context: "Context", plan: Plan, code: Code, runs: Path) -> dict[str, bytes]:
    """Check the training before its first fold, unless preflight=false, and return its picture by file name.

    Raises a Refusal that lists all failures. The picture is then in `runs`, as if nothing else was asked for.
    """
    asked = plan.config["preflight"]
    if asked is False:
        return {}
    console.print("checks before the first fold (preflight)")
    arguments = plan.config, plan.prepared, plan.parts, code, plan.world, len(plan.visible)
    found = call(context, _run_checks, *arguments)
    pictures = {} if found.sheet is None else {"preflight.png": found.sheet}
    if found.problems or asked != "new":
        for name, picture in pictures.items():
            _write_picture(runs / name, picture)
    sheet = f"{runs / 'preflight.png'} shows what the network gets; " if pictures else ""
    if found.problems:
        problems = "\n".join(f"- {problem}" for problem in found.problems)
        raise Refusal(f"the preflight found\n{problems}\n{sheet}train in spite of it with preflight=false")
    for line in found.lines:
        console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)
    if asked != "new":
        console.print(f"{sheet}train with the same command without preflight={str(asked).lower()}")
    return pictures


# Imports torch, so only a child process calls it.
def _run_checks(*arguments: Any) -> Any:
    from foldwise.preflight.checks import run_checks

    return run_checks(*arguments)


def _write_picture(path: Path, picture: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.name == "preflight.png":
        with write_atomic(path) as temporary:
            temporary.write_bytes(picture)


def _follow(context: "Context", config: dict[str, Any], runs: Path, node: Node, team: Team, code: Code) -> Path:
    """Other nodes: check that data, code and configuration match node 0, then train what it sends."""
    leader = team.receive()["identity"]
    plan = make_plan(context, config, node.count, False, code)
    differences = describe_differences(plan.identity, leader)
    if differences:
        raise Refusal(f"node {node.rank} would train another run than node 0:\n" + "\n".join(differences))
    team.barrier()
    return follow(context, plan, node, team)


def _claim(run: Path, parts: Sequence[Holdout], claims: ExitStack) -> list[Holdout]:
    """Lock the unfinished models until `claims` closes; refuse those that another job trains."""
    unfinished, problems = [], []
    for part in parts:
        finished = run / part.name / "metrics.json"
        if not finished.exists():
            try:
                claims.enter_context(lock(run / f".{part.name}.lock", wait=False))
            except Refusal as holder:
                problems.append(f"{part.title} of {run} is being trained by {holder}")
        if finished.exists():  # checked after locking: another job may just have finished it
            console.print(f"{part.title} is finished")
        else:
            unfinished.append(part)
    if problems:
        raise Refusal("\n".join([*problems, "wait for it, stop it, or choose other folds"]))
    return unfinished
