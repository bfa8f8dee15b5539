"""A process that is killed at any moment and started again leaves, to the byte, what one never killed leaves."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pandas as pd
import pytest
from groups import start_training
from tiny import tiny_config, train_here, train_scored

from foldwise.models.module import TrainingModule

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")

# Everything that has a state beside the weights.
STATEFUL = [
    "phases=frozen_warmup",
    "epochs=2",
    "scheduler=plateau",
    "scheduler.patience=0",
    "scheduler.min_delta=10",
    "ema=0.9",
    "data.sampling=balanced",
    "augmentation=light",
    "mixing.mixup=0.4",
    "+model.options.drop_rate=0.3",
]
SNAPSHOTS = ["phases=cycles", "phases.cycle3.share=0", "epochs=2", "top_k=1", "fold=0"]


def train_and_die(config: dict, runs: Path, event: int) -> None:
    """Train, and kill -9 this process right before its n-th step, rename or removal of a folder."""
    events = count()

    def dying(function: Callable) -> Callable:
        def call(*args, **kwargs):
            if next(events) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("replace", "rename", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    TrainingModule.on_train_batch_start = dying(TrainingModule.on_train_batch_start)  # type: ignore[method-assign]
    train_here(config, runs)


def killed(config: dict, runs: Path, event: int) -> bool:
    """Whether a process of its own was killed before it had ended well."""
    process = multiprocessing.get_context("fork").Process(target=train_and_die, args=(config, runs, event))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def results(run: Path) -> dict[str, bytes | str]:
    """What must not differ: everything but figures of time, records of the machine, pictures, states for a resume, and
    what was half-written beside the folds when the process was killed."""
    found: dict[str, bytes | str] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run).as_posix()
        if name.startswith("."):
            continue
        if path.name == "history.csv":
            found[name] = pd.read_csv(path).drop(columns="seconds").to_csv()
        elif path.name == "metrics.json":
            found[name] = json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"})
        elif path.name not in ("environment.json", "report.html", "plan.png", "last.ckpt"):
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The results of a run that nothing stopped."""
    return results(train_scored(tiny_config(data, "multiclass", *STATEFUL), tmp_path_factory.mktemp("whole")))


def test_a_run_killed_again_and_again_ends_as_one_never_killed(data, whole, tmp_path):
    config = tiny_config(data, "multiclass", *STATEFUL)
    deaths = 0
    while killed(config, tmp_path, event=8 + 3 * deaths):
        deaths += 1
    assert deaths >= 3
    assert results(next(tmp_path.iterdir())) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("task", "choices"), [("multiclass", STATEFUL), ("segmentation", SNAPSHOTS)])
def test_a_kill_at_every_step_and_every_write(task, choices, data, tmp_path):
    config = tiny_config(data, task, *choices)
    assert not killed(config, tmp_path / "whole", event=-1)
    whole = results(next((tmp_path / "whole").iterdir()))
    for event in count():
        runs = tmp_path / str(event)
        if not killed(config, runs, event):
            break
        assert not killed(config, runs, event=-1)
        assert results(next(runs.iterdir())) == whole, f"killed at event {event}"
    assert event > 25


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_a_kill_of_all_processes_at_any_time(seconds, data, whole, tmp_path):
    config = tiny_config(data, "multiclass", *STATEFUL)
    command = start_training(config, tmp_path)
    time.sleep(seconds)
    os.killpg(command.pid, signal.SIGKILL)
    command.join()
    assert results(train_scored(config, tmp_path / "runs")) == whole
