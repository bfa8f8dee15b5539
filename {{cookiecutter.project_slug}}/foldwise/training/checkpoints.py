"""Resumable state of a fold: `last.ckpt`, written after each epoch."""

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
    """Saves the state after each epoch; a kill while writing leaves the previous file.

    Mid-epoch resumes would not be exact. As a `Checkpoint` it runs after all other callbacks and so saves their state
    at the end of the epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        # Lightning's own write is not atomic if TMPDIR is on another filesystem.
        temporary = self.path.with_name(f".{NAME}")
        try:
            trainer.save_checkpoint(temporary)  # collective: every rank must call it
            if trainer.is_global_zero:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
        except OSError as error:  # a failed write has no file name
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def find_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The `last.ckpt` of a fold and its number of finished epochs; None and 0 if there is none.

    Raises:
        Refusal: damaged, or more than tensors and plain values.
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
    """Delete half-written files of a killed process, and shards of another world size, which would repeat rows."""
    shards = set(folder.glob("*-*-of-*")) - set(folder.glob(f"*-*-of-{world_size}"))
    hidden = [*folder.glob(".*"), *folder.glob("model/.*"), *folder.glob("snapshots/*/.*")]
    for path in {*hidden, *shards}:  # a half-written shard is both
        shutil.rmtree(path) if path.is_dir() else path.unlink()
