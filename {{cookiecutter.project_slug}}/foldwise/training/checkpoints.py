"""The resumable state of a fold: `last.ckpt`, written at the end of each epoch."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from foldwise.errors import Refusal

NAME = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Keeps the state after the newest whole epoch; a kill while it is written leaves the one before.

    Only epoch boundaries are kept: a resume in the middle of an epoch is not exact. As a `Checkpoint` it runs after
    all other callbacks, so that their state at the epoch's end is in the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        # In the same folder: Lightning's own write is a rename across filesystems where TMPDIR is another one.
        temporary = self.path.with_name(f".{NAME}")
        try:
            trainer.save_checkpoint(temporary)  # by all ranks: it gathers and waits for each other
            if trainer.is_global_zero:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
        except OSError as error:  # a failed write does not name its file
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def find_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The `last.ckpt` of a fold and how many epochs it has behind it; None and 0 where no epoch was finished.

    Raises:
        Refusal: it is damaged, or holds more than tensors and plain values.
    """
    path = folder / NAME
    if not path.exists():
        return None, 0
    try:
        epoch = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"]
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise Refusal(f"{path} cannot be read: delete it, and the fold starts over") from error
    return path, epoch + 1


def remove_leftovers(folder: Path, world_size: int) -> None:
    """Delete half-written files of a killed process, and out-of-fold predictions that were shared out among another
    number of processes than `world_size`: some rows would come twice."""
    shards = set(folder.glob("oof-*-of-*")) - set(folder.glob(f"oof-*-of-{world_size}"))
    for path in [*folder.glob(".*"), *folder.glob("model/.*"), *folder.glob("snapshots/*/.*"), *shards]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
