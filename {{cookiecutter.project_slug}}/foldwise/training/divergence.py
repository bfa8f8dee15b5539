"""Stops a training whose loss or weights are no longer numbers, before such a state is kept."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from foldwise.data.dataset import ItemDataset
from foldwise.data.problems import some
from foldwise.models.module import TrainingModule

ADVICE = "lower optimizer.lr, set trainer.gradient_clip_val=1.0, or train in trainer.precision=32-true"


class Divergence(pl.Callback):
    """Raises at a loss that is not finite and names its batch, and at such weights at the end of an epoch.

    Each loss is read one step late, while the device works on the next: to read it at once would let the device wait.

    Raises:
        FloatingPointError: with the epoch, the step, the ids of the batch, and what to try.
    """

    def __init__(self, part: str) -> None:
        self.part = part

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.unread: tuple[int, Tensor, Tensor] | None = None  # (step of the epoch, loss, rows)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._read(trainer)
        self.unread = batch_idx, outputs["loss"].detach(), batch["row"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._read(trainer)
        trainer.strategy.barrier()  # the rank whose loss was no number names its batch before others see the weights
        # A finite loss can have an infinite gradient: the last step of an epoch is seen in the weights alone.
        finite = torch.stack([value.isfinite().all() for value in pl_module.network.state_dict().values()])
        if not finite.all():
            raise FloatingPointError(
                f"the weights are no longer finite after epoch {trainer.current_epoch + 1} of {self.part}; "
                f"the state before that epoch is kept; {ADVICE}"
            )

    def _read(self, trainer: pl.Trainer) -> None:
        if self.unread is None:
            return
        step, loss, rows = self.unread
        if not loss.isfinite():
            dataset = trainer.train_dataloader.dataset  # type: ignore[union-attr]  # the loader that fold.py made
            assert isinstance(dataset, ItemDataset)
            ids = [dataset.reader.items[row].id for row in rows.tolist()]
            raise FloatingPointError(
                f"the training loss became {float(loss)} in epoch {trainer.current_epoch + 1}, step {step + 1} of "
                f"{self.part}, for the ids {some(ids, 32)}; the state before that epoch is kept; look at these images "
                f"and labels, {ADVICE}"
            )
