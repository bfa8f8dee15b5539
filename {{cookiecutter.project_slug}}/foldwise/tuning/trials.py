"""Trials of a study: which is next, training one, and taking over those whose process was killed."""

import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import optuna
import pandas as pd
from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from foldwise.data.holdout import Holdout
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.locks import lock
from foldwise.training.run import train
from foldwise.tuning.space import Space

RANDOM = 10  # trials before the sampler models the scores, and
COMPARED = 5  # before trials are pruned
WARMUP = 1 / 3  # of the epochs, in which no trial is pruned: under a rising learning rate, curves say little
BEAT, LOST = 30.0, 300.0  # seconds between signs of life of a trial; without one for so long, its machine is gone


class Pruned(Exception):  # noqa: N818  not an error
    """The curve of a trial lies below the median of the others at the same epoch."""


def open_study(name: str, storage: str | None, folder: Path, greater_is_better: bool, epochs: int) -> Study:
    """Open the study that all workers share: a journal in `folder`, or a database by its URL."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        shared = get_storage(storage or JournalStorage(JournalFileBackend(str(folder / "journal.log"))))
    except ImportError as error:
        raise Refusal(f"--storage needs the driver of its database: {error.__context__ or error}") from error
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise Refusal(f"--storage is no database as in postgresql://user@host/studies: {reason}") from error
    return optuna.create_study(
        study_name=name,
        storage=shared,
        direction="maximize" if greater_is_better else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=COMPARED, n_warmup_steps=math.ceil(epochs * WARMUP)),
        load_if_exists=True,
    )


def next_trial(study: Study, space: Space, folder: Path, seed: int, most: int) -> Trial | None:
    """Start the next trial, or one whose process was killed; None if `most` are finished or running."""
    with lock(folder / ".lock"):
        _take_over(study)
        count = len(counted(study))
        if count >= most:
            return None
        if not count and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial(space.start)
        # Depends on the number of trials, not on how often the command was started.
        study.sampler = TPESampler(n_startup_trials=RANDOM, seed=seed + count)
        trial = study.ask()
        trial.set_user_attr("worker", [socket.gethostname(), os.getpid()])
        trial.set_user_attr("seen", time.time())
        return trial


def counted(study: Study) -> list[FrozenTrial]:
    """Trials that are finished or running; not those that were killed, which another trial repeats."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    return [trial for trial in trials if trial.state != TrialState.FAIL or "refused" in trial.user_attrs]


def _take_over(study: Study) -> None:
    """Enqueue the values of killed trials again; their folder lets the training resume."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_dead(trial):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (UpdateFinishedTrialError, ValueError):
                continue  # another worker was faster
            study.enqueue_trial(trial.params, {"folder": trial.user_attrs.get("folder", trial.number)})


def _is_dead(trial: FrozenTrial) -> bool:
    host, process = trial.user_attrs.get("worker", (None, 0))
    if host == socket.gethostname():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    started = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
    return time.time() - float(trial.user_attrs.get("seen", started)) > LOST


def run_trial(study: Study, trial: Trial, space: Space, folder: Path, log: TextIO) -> None:
    """Train a trial and record its score, that it was pruned, or why it was refused; nothing on other errors.

    Args:
        folder: of the study; the trial trains in a folder of its own in it, which is removed.
        log: receives what the training prints.

    Raises:
        Refusal: the trial is the experiment itself and cannot be trained; the next command tries it again.
    """
    values = space.suggest(trial)
    own = folder / str(trial.user_attrs.get("folder", trial.number))
    same = [other for other in study.get_trials(states=(TrialState.COMPLETE,)) if other.params == values]
    if same:
        study.tell(trial, same[0].value)
        return
    try:
        config = space.config(values)
        with redirect_stdout(log), redirect_stderr(log):
            run = train(config, own, _watch(trial, config["phases"]))
        scores = [read_json(path)["score"] for path in sorted(run.glob("fold*/metrics.json"))]
        if None in scores:
            raise Refusal("the metric is undefined on a fold")
        study.tell(trial, float(np.mean(scores)))
    except Pruned:
        study.tell(trial, state=TrialState.PRUNED)
    except Refusal as error:
        if values != space.start:
            trial.set_user_attr("refused", str(error))
        study.tell(trial, state=TrialState.FAIL)
        if values == space.start:
            raise Refusal(f"the experiment itself cannot be trained as a trial (see {log.name}): {error}") from error
    shutil.rmtree(own, ignore_errors=True)


def _watch(trial: Trial, phases: Mapping[str, Any]) -> Callable[[Path, Holdout], None]:
    """Report each epoch's score of the folds, one after another, and raise `Pruned`."""
    epochs = sum(phase["epochs"] for phase in phases.values())
    reported: dict[str, int] = {}  # epochs by fold
    beat = time.time()

    def watch(run: Path, part: Holdout) -> None:
        nonlocal beat
        if time.time() - beat > BEAT:
            beat = time.time()
            trial.set_user_attr("seen", beat)
        path, before = run / part.name / "history.csv", reported.setdefault(part.name, 0)
        scores = pd.read_csv(path)["score"].tolist() if path.exists() else []
        for epoch, score in enumerate(scores[before:], before + 1):
            reported[part.name] = epoch
            if math.isfinite(score):
                trial.report(score, epoch + epochs * (len(reported) - 1))
                if epoch < epochs and trial.should_prune():
                    raise Pruned

    return watch
