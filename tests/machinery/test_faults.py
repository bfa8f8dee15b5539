"""What breaks while a fold trains ends the command with a sentence that names it, and leaves the last good state."""

import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import tifffile
import torch
from groups import log_of, members, start_training, wait_for
from stopping import watched
from tiny import tiny_config, train_folds

from foldwise.data.dataset import ItemDataset
from foldwise.data.sampling import SampleKey
from foldwise.errors import Refusal
from foldwise.training import run as runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, mounts a disk")
LONG = ["epochs=500", "fold=0", "augmentation=none", "validate_every=100"]
DDP = pytest.param(["trainer=ddp_cpu"], 2, marks=pytest.mark.slow)


@pytest.fixture
def own_data(data, tmp_path):
    """A data set that a test may spoil."""
    return shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("prepared"))


def has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("runs/*/fold0/last.ckpt"))


def replace(path: Path, content: bytes) -> None:
    """In one go, so that nobody reads half of it."""
    beside = path.with_name("new")
    beside.write_bytes(content)
    beside.replace(path)


def ends_with(command, folder: Path, *sentences: str) -> str:
    """The log of a command that must end within a minute, all its processes with it, and say these things."""
    command.join(timeout=60)
    log = log_of(folder)
    assert command.exitcode == 2, log
    wait_for(lambda: not members(command.pid), seconds=15)
    assert all(sentence in log for sentence in sentences), log
    # Python tells of a batch that a loader's process was just handing over.
    assert "Traceback" not in log or "resource_sharer" in log, log
    assert log.count("\nerror") == 1 + len(set(re.findall("error of rank .", log)) or {""}), log  # and of the command
    assert "Fix the error above, then run the same command to resume" in log, log
    return log


def loads(folder: Path) -> bool:
    """Whether the last good state is whole, and nothing of a failed one lies beside it."""
    fold = next(folder.glob("runs/*/fold0"))
    assert torch.load(fold / "last.ckpt", weights_only=True)["epoch"] >= 0
    return not list(fold.glob(".*"))


@pytest.mark.parametrize(("choices", "workers"), [([], 0), pytest.param([], 1, marks=pytest.mark.slow), DDP])
def test_an_image_that_rots_in_the_middle_of_a_training_is_named(choices, workers, own_data, tmp_path):
    config = tiny_config(own_data, "multiclass", *LONG, *choices, f"data.workers={workers}")
    command = start_training(config, tmp_path)
    wait_for(lambda: has_checkpoint(tmp_path))
    for path in (own_data / "images").iterdir():  # the next that is read, in either rank
        replace(path, b"\x89PNG\r\n" + bytes(100))
    who = "error of rank" if choices else "error:"
    ends_with(command, tmp_path, who, f"{own_data}/images/", "cannot be decoded")
    assert loads(tmp_path)


@pytest.mark.slow
def test_a_data_drive_that_vanishes_is_named_by_its_first_file(own_data, tmp_path):
    command = start_training(tiny_config(own_data, "multiclass", *LONG, "data.workers=1"), tmp_path)
    wait_for(lambda: has_checkpoint(tmp_path))
    (own_data / "images").rename(own_data / "elsewhere")
    ends_with(command, tmp_path, f"{own_data}/images/", "No such file or directory")
    assert loads(tmp_path)


@pytest.mark.parametrize(("choices", "workers"), [([], 1), DDP])
def test_a_worker_that_is_killed_ends_the_run(choices, workers, data, tmp_path):
    """As the kernel does when memory runs out."""
    command = start_training(tiny_config(data, "multiclass", *LONG, *choices, f"data.workers={workers}"), tmp_path)
    wait_for(lambda: has_checkpoint(tmp_path))
    folds = {pid for pid in members(command.pid) if parent(pid) == command.pid}
    os.kill(next(pid for pid in members(command.pid) if parent(pid) in folds), signal.SIGKILL)
    ends_with(command, tmp_path, "DataLoader worker", "memory", "lower data.workers")
    assert loads(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("choices", [[], ["trainer=ddp_cpu"]])
def test_a_fold_s_process_that_is_killed_ends_the_run(choices, data, tmp_path):
    command = start_training(tiny_config(data, "multiclass", *LONG, *choices), tmp_path)
    wait_for(lambda: has_checkpoint(tmp_path))
    os.kill(max(pid for pid in members(command.pid) if parent(pid) == command.pid), signal.SIGKILL)
    command.join(timeout=60)
    assert command.exitcode == 2 and "was killed by SIGKILL" in log_of(tmp_path), log_of(tmp_path)
    wait_for(lambda: not members(command.pid), seconds=15)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_files_that_cannot_grow_are_named(data, tmp_path):
    """A limit on the size of files, which needs no rights to set: the checkpoint is the first one above it."""
    command = start_training(
        tiny_config(data, "multiclass", "fold=0"),
        tmp_path,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    ends_with(command, tmp_path, "fold0/last.ckpt", "File too large")
    assert not any(tmp_path.glob("runs/*/fold0/.*")) and not has_checkpoint(tmp_path)


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of so many bytes at `runs`."""
    folder = tmp_path / "runs"
    folder.mkdir()

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a disk needs rights")

    yield mount
    subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_state(disk, data, tmp_path):
    whole = train_folds(tiny_config(data, "multiclass", "epochs=1", "fold=0"), tmp_path / "other")
    size = (whole / "fold0/last.ckpt").stat().st_size
    disk(f"size={size * 3 // 2}")  # room for one checkpoint, and not for the next beside it
    command = start_training(tiny_config(data, "multiclass", *LONG), tmp_path)
    ends_with(command, tmp_path, "fold0/last.ckpt", "No space left on device")
    assert loads(tmp_path)


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_keeps_the_last_good_state(disk, data, tmp_path):
    def unlocked() -> None:
        runs.lock = lambda *_, **__: io.StringIO()

    disk("size=50m")
    # The kernel does it of itself when a disk fails; asked to, it refuses while a file such as a lock is open to write.
    command = start_training(tiny_config(data, "multiclass", *LONG), tmp_path, before=unlocked)
    wait_for(lambda: has_checkpoint(tmp_path))
    remount = ["mount", "-o", "remount,ro", tmp_path / "runs"]
    wait_for(lambda: not subprocess.run(remount, capture_output=True).returncode)
    ends_with(command, tmp_path, "fold0/", "Read-only file system")
    assert torch.load(next(tmp_path.glob("runs/*/fold0/last.ckpt")), weights_only=True)["epoch"] >= 0


def float_tiff(value: float) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.full((32, 32, 3), value, np.float32), photometric="rgb")
    return file.getvalue()


@pytest.mark.parametrize(("choices", "world"), [([], 1), DDP])
def test_a_loss_that_is_no_number_names_its_batch(choices, world, own_data, tmp_path):
    """One of the training images becomes NaN after the first epoch; its file has the size that it had.

    Of two processes, the one that read it says so: the weights that the other gets are no numbers either.
    """
    frame = pd.read_csv(own_data / "train.csv")
    frame["image"] = [f"images/{id.removeprefix('row')}.tif" for id in frame["id"]]
    for row, name in enumerate(frame["image"]):
        (own_data / name).write_bytes(float_tiff(row / len(frame)))
    frame.to_csv(own_data / "train.csv", index=False)
    config = tiny_config(own_data, "multiclass", *LONG, *choices)
    command = start_training(config, tmp_path)
    wait_for(lambda: has_checkpoint(tmp_path))
    trained = pd.read_csv(own_data / "prepared/folds.csv").query("fold != 0")["id"].tolist()
    replace(own_data / f"images/{trained[0].removeprefix('row')}.tif", float_tiff(np.nan))
    log = ends_with(command, tmp_path, "the training loss became nan in epoch", "optimizer.lr")
    named = log.partition("for the ids ")[2].partition(";")[0].split(", ")
    assert trained[0] in named and len(named) == config["batch_size"] // world and set(named) <= set(trained)
    assert log.count("error of rank") == world - 1
    assert loads(tmp_path)
    weights = torch.load(next(tmp_path.glob("runs/*/fold0/last.ckpt")), weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(
    ("choices", "workers", "at_once"),
    [([], 0, False), ([], 1, False), (["fold_workers=2"], 0, True), pytest.param(*DDP.values, False, marks=DDP.marks)],
    ids=["process", "worker", "folds at once", "rank"],
)
def test_a_bug_shows_its_traceback_and_how_to_resume(choices, workers, at_once, data, tmp_path):
    """A plain ValueError, as numpy and torch raise them, in what reads an image of the second epoch."""

    def spoil() -> None:
        read = ItemDataset.__getitem__

        def misread(dataset, index):
            if SampleKey(*index).epoch == 1:
                first, second = (1, 2, 3)  # a bug
                return first, second
            return read(dataset, index)

        ItemDataset.__getitem__ = misread  # type: ignore[method-assign]

    choices = ["epochs=3", *(["fold=0"] if not at_once else []), *choices, f"data.workers={workers}"]
    command = start_training(tiny_config(data, "multiclass", *choices), tmp_path, before=spoil)
    command.join(timeout=60)
    log = log_of(tmp_path)
    assert command.exitcode == 1, log
    wait_for(lambda: not members(command.pid), seconds=15)
    (fold,) = re.findall(r"\nerror: fold (\d) ended with exit code 1, see ", log)  # at once: whichever came first
    assert log.count("\nerror") == 1, log
    shown = next(tmp_path.glob(f"runs/*/fold{fold}/log.txt")).read_text() if at_once else log
    assert "in misread\n    first, second = (1, 2, 3)  # a bug\n" in shown
    assert "ValueError: too many values to unpack (expected 2)" in shown
    assert "Fix the error above, then run the same command to resume" in log
    assert loads(tmp_path)


class Overflow(pl.Callback):
    """Stands for a last step whose gradient was infinite."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, trainer.is_last_batch) == (1, True):
            next(pl_module.parameters()).data.fill_(np.inf)


def test_weights_that_are_no_numbers_are_not_kept(data, tmp_path):
    config = tiny_config(data, "multiclass", "fold=0")
    with (
        watched(Overflow()),
        pytest.raises(FloatingPointError, match="the weights are no longer finite after epoch 2 of fold 0"),
    ):
        train_folds(config, tmp_path)
    assert torch.load(next(tmp_path.glob("*/fold0/last.ckpt")), weights_only=True)["epoch"] == 0


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"cos\nsystem\n(S'true'\ntR."])
def test_a_checkpoint_that_is_damaged_or_has_code_in_it_is_refused(spoil, data, tmp_path):
    config = tiny_config(data, "multiclass", "fold=0", "epochs=1")
    checkpoint = train_folds(config, tmp_path) / "fold0/last.ckpt"
    (checkpoint.parent / "metrics.json").unlink()
    checkpoint.write_bytes(spoil(checkpoint.read_bytes()))
    with pytest.raises(Refusal, match=r"last\.ckpt cannot be read: delete it"):
        train_folds(config, tmp_path)
