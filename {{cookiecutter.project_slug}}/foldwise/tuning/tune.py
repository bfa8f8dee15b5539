"""Searches settings of an experiment by small trainings.

tuning/<experiment>-<hash>/
    journal.log     all trials, shared by the workers (unless they share a database)
    <number>/       the run of a trial, while it trains
    trials.csv  report.html
tuning/logs/        what the trainings print, a file for each worker
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from optuna import Study
from optuna.importance import get_param_importances
from optuna.trial import TrialState

from foldwise.code.runs import working_code
from foldwise.data.sample import is_sample
from foldwise.errors import Refusal
from foldwise.predictions.metrics.building import build_metric
from foldwise.processes.server import start_server
from foldwise.reporting.tuning_report import Tuned, print_trial
from foldwise.training.identity import hash_identity
from foldwise.training.plan import make_plan
from foldwise.tuning.space import Range, Space
from foldwise.tuning.trials import counted, next_trial, open_study, run_trial

FOLDER = Path("tuning")
EXPLAINED = 10  # complete trials from which importances are computed
FAILURES = 5  # in a row, after which the search ends: most likely the machine is to blame


@contextmanager
def quiet_children() -> Iterator[TextIO]:
    """Start the fork server so that all its children print to the yielded log."""
    path = FOLDER / "logs" / f"{socket.gethostname()}-{os.getpid()}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1, encoding="utf-8") as log:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            start_server()
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
        yield log


def tune(space: Space, most: int, seconds: float | None, storage: str | None, log: TextIO) -> Tuned:
    """Run trials until there are `most` of all workers together, or until this worker's time is used up.

    Args:
        storage: URL of a database; None for the journal.
        log: from `quiet_children`.

    Raises:
        Refusal: the experiment itself cannot be trained as a trial.
    """
    started, lasted, failed = time.monotonic(), [0.0], 0
    space, config, name, metric = _prepare(space, log)
    folder, epochs = FOLDER / name, sum(phase["epochs"] for phase in config["phases"].values())
    study = open_study(name, storage, folder, metric.greater_is_better, epochs)
    finished = sum(trial.state.is_finished() for trial in counted(study))
    print(f"study    {folder}: {finished} of {most} trials are finished", flush=True)
    while seconds is None or time.monotonic() - started + float(np.median(lasted)) < seconds:
        trial = next_trial(study, space, folder, config["seed"], most)
        if trial is None:
            break
        before = time.monotonic()
        run_trial(study, trial, space, folder, log)
        lasted = [*filter(None, lasted), time.monotonic() - before]
        result = _result(study, space, folder, metric)
        print_trial(result, trial.number)
        failed = failed + 1 if "refused" in trial.user_attrs else 0
        if failed == FAILURES:
            raise Refusal(f"{FAILURES} trials in a row failed: see {log.name}")
    return _result(study, space, folder, metric, explain=True)


def _prepare(space: Space, log: TextIO) -> tuple[Space, dict[str, Any], str, Any]:
    """Check the first trial; return the space, its configuration, a name for the study, and the metric."""
    config = space.config(space.start)
    context = start_server()
    with working_code(config) as code:
        try:
            with redirect_stdout(log), redirect_stderr(log):
                plan = make_plan(context, config, 1, is_sample(config["data"]), code)
        except Refusal:
            if not space.half:
                raise
            return _prepare(replace(space, half=""), log)
        identity = {key: value for key, value in plan.identity.items() if key != "world size"}
        table = plan.prepared.table
        metric = build_metric(config["metric"], config["task"], table.classes, table, plan.prepared.alias)
    return space, config, f"{config['experiment_name']}-{hash_identity(identity | {'space': repr(space)})}", metric


def _result(study: Study, space: Space, folder: Path, metric: Any, explain: bool = False) -> Tuned:
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "refused"}
    trials = counted(study)
    rows = [
        {
            "trial": trial.number,
            "state": states.get(trial.state, "running"),
            "score": trial.value if trial.state == TrialState.COMPLETE else np.nan,
            "epochs": max(trial.intermediate_values, default=0),
            "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else np.nan,
            **trial.params,
            "why": trial.user_attrs.get("refused", ""),
        }
        for trial in trials
    ]
    names = [dimension.name for dimension in space.dimensions]
    complete = [row for row in rows if row["state"] == "complete"]
    importances = {}
    if explain and len(complete) >= EXPLAINED and len({row["score"] for row in complete}) > 1:
        importances = get_param_importances(study)
    return Tuned(
        folder=folder,
        metric=metric.name,
        greater_is_better=metric.greater_is_better,
        trials=pd.DataFrame(rows, columns=["trial", "state", "score", "epochs", "seconds", *names, "why"]),
        params={trial.number: trial.params for trial in trials},
        start=space.start,
        logarithmic=[one.name for one in space.dimensions if isinstance(one, Range) and one.log],
        curves={trial.number: trial.intermediate_values for trial in trials},
        importances=importances,
        notes=space.notes,
        settings=" ".join([*filter(None, [space.half]), *space.small]),
    )
