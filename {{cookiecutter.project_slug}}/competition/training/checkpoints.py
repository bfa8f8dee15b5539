"""The resumable state of a fold: `last.ckpt`, written at the end of each epoch."""

import os
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

NAME = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Keeps the state after the newest whole epoch; a kill while it is written leaves the one before.

    Only epoch boundaries are kept: a resume in the middle of an epoch is not exact. As a `Checkpoint` it runs after
    all other callbacks, so that what they learn at the epoch's end is in the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # In the same folder: Lightning's own write is a rename across filesystems where TMPDIR is another one.
        temporary = self.path.with_name(f".{NAME}")
        trainer.save_checkpoint(temporary)  # by all ranks: it gathers and waits for each other
        if trainer.is_global_zero:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
