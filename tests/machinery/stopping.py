"""Callbacks of tests in a training, such as one that ends it in the middle of an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from tiny import train_folds

from foldwise.training import fold


@contextmanager
def watched(*own: pl.Callback) -> Iterator[None]:
    """Trainings within the block, also those of forks, have these callbacks too."""
    build = fold.build_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "build_trainer", lambda *a, callbacks, **k: build(*a, callbacks=[*callbacks, *own], **k))
        yield


class Stop(pl.Callback):
    """Stands for a kill: nothing is cleaned up, the newest checkpoint is what there is."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise OSError("killed")


def check_resume(config: dict[str, Any], folder: Path, stop: Stop) -> None:
    """A training of fold 0 that is stopped and started again ends with the weights of one never stopped."""
    whole = train_folds(config, folder / "whole")
    with watched(stop), pytest.raises(OSError, match="killed"):
        train_folds(config, folder / "stopped")
    resumed = train_folds(config, folder / "stopped")
    first, second = (load_file(run / "fold0" / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)
