"""SIGTERM, SIGUSR1 and Ctrl-C end a training and all its processes, each with its own code, and it can resume."""

import os
import signal
import sys
from pathlib import Path

import pytest
from groups import log_of, members, start_training, wait_for
from tiny import tiny_config, train_folds

from foldwise.models.module import TrainingModule

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
LONG = ["epochs=500", "fold=0", "data.workers=1", "augmentation=none", "validate_every=100"]


def has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("runs/*/fold0/last.ckpt"))


@pytest.mark.parametrize(
    ("number", "code", "choices", "whole_group"),
    [
        (signal.SIGTERM, 143, [], True),
        pytest.param(signal.SIGUSR1, 75, [], False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, [], True, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, ["trainer=ddp_cpu"], False, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, ["trainer=ddp_cpu"], True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_everything_with_its_code(number, code, choices, whole_group, data, tmp_path):
    """Sent to the command alone, as `kill` does, or to all its processes, as a terminal or a scheduler does."""
    command = start_training(tiny_config(data, "multiclass", *LONG, *choices), tmp_path)
    wait_for(lambda: has_checkpoint(tmp_path) or command.exitcode is not None)
    assert len(members(command.pid)) >= 3, log_of(tmp_path)  # the command, the fold, the worker of its loader
    (os.killpg if whole_group else os.kill)(command.pid, number)
    command.join(timeout=30)
    assert command.exitcode == code, log_of(tmp_path)
    wait_for(lambda: not members(command.pid), seconds=15)
    assert "the same command resumes" in log_of(tmp_path)
    # Python tells of a batch that a loader's process was just handing over.
    assert "Traceback" not in log_of(tmp_path) or "resource_sharer" in log_of(tmp_path)
    assert has_checkpoint(tmp_path)


def test_a_stopped_run_resumes_to_the_same_result(data, tmp_path):
    """Asked to leave in the middle of the second epoch, with a worker that draws batches ahead."""
    config = tiny_config(data, "multiclass", "epochs=3", "fold=0", "data.workers=1")

    def ask_in_epoch_2() -> None:
        begin = TrainingModule.on_train_batch_start

        def ask(module, batch, step):
            if (module.current_epoch, step) == (1, 1):
                os.kill(os.getpid(), signal.SIGUSR1)
            begin(module, batch, step)

        TrainingModule.on_train_batch_start = ask  # type: ignore[method-assign]

    command = start_training(config, tmp_path, before=ask_in_epoch_2)
    command.join(timeout=60)
    assert command.exitcode == 75, log_of(tmp_path)  # the fold was asked, and the command says so
    assert "epoch   1/3" in log_of(tmp_path) and "epoch   2/3" not in log_of(tmp_path)
    train_folds(config, tmp_path / "runs")
    train_folds(config, tmp_path / "whole")
    first, second = (tmp_path.glob(f"{name}/*/fold0/oof-0-of-1/predictions.parquet") for name in ("runs", "whole"))
    assert next(first).read_bytes() == next(second).read_bytes()
