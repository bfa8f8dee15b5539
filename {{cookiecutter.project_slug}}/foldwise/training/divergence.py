"""Stops a training whose loss or weights are no longer finite, before such a state is saved."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from foldwise.data.problems import some

ADVICE = "lower optimizer.lr, set trainer.gradient_clip_val=1.0, or train in trainer.precision=32-true"


class Divergence(pl.Callback):
    """Raises FloatingPointError at a loss that is not finite, with the ids of its batch, or at such weights.

    Each loss is read one step late, while the device works on the next: reading it at once would let the device wait.
    """

    def __init__(self, part: str) -> None:
        self.part = part

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.unread: tuple[int, Tensor, Tensor] | None = None  # (step of the epoch, loss, rows)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, step: int) -> None:
        self._read(trainer)
        self.unread = step, outputs["loss"].detach(), batch["row"]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._read(trainer)
        trainer.strategy.barrier()  # the rank whose loss was not finite names its batch before others see the weights
        # A finite loss can have an infinite gradient: the last step of an epoch is seen in the weights alone.
        if not torch.stack([value.isfinite().all() for value in module.network.state_dict().values()]).all():
            raise FloatingPointError(
                f"the weights are no longer finite after epoch {trainer.current_epoch + 1} of {self.part}; "
                f"the state before that epoch is kept; {ADVICE}"
            )

    def _read(self, trainer: pl.Trainer) -> None:
        if self.unread is None or self.unread[1].isfinite():
            return
        step, loss, rows = self.unread
        items = trainer.train_dataloader.dataset.reader.items  # type: ignore[union-attr]  # of an ItemDataset
        raise FloatingPointError(
            f"the training loss became {float(loss)} in epoch {trainer.current_epoch + 1}, step {step + 1} of "
            f"{self.part}, for the ids {some([items[row].id for row in rows.tolist()], 32)}; the state before that "
            f"epoch is kept; look at these images and labels, {ADVICE}"
        )
