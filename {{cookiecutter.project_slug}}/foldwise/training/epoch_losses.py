"""Checks and averages the training losses, and passes per-sample losses to the sampling."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from foldwise.data.problems import some
from foldwise.data.sampling import Pool
from foldwise.models.module import of_samples, scalars
from foldwise.training.distributed import gather

ADVICE = "lower optimizer.lr, set trainer.gradient_clip_val=1.0, or train in trainer.precision=32-true"


class EpochLosses(pl.Callback):
    """Averages the losses of an epoch in `means`; raises FloatingPointError if a loss or weight is not finite.

    Passes the (B,) entries of the losses of the `pool`, the real training items, to the sampling at the end of an
    epoch, and checkpoints its state.
    """

    def __init__(self, part: str, pool: Pool) -> None:
        self.part, self.pool = part, pool
        self.means: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.unread: tuple[int, Tensor, Tensor] | None = None  # (step of the epoch, loss, rows)
        self.totals: dict[str, Tensor] = {}
        self.seen: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.batches = 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, step: int) -> None:
        # Read each loss one step late, so that the device does not wait. Totals stay on the device.
        self._check(trainer)
        self.unread = step, outputs["loss"].detach(), batch["row"]
        for name, value in scalars(outputs).items():
            self.totals[name] = self.totals.get(name, 0) + value.detach()
        if values := of_samples(outputs):
            self.seen.append((batch["row"], {name: value.detach() for name, value in values.items()}))
        self.batches += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._check(trainer)
        trainer.strategy.barrier()  # the rank with the bad loss reports its batch first
        # A finite loss can have an infinite gradient; after the last step only the weights show it.
        if not torch.stack([value.isfinite().all() for value in module.network.state_dict().values()]).all():
            raise FloatingPointError(
                f"the weights are no longer finite after epoch {trainer.current_epoch + 1} of {self.part}; "
                f"the state before that epoch is kept; {ADVICE}"
            )
        own = {name: float(total) / self.batches for name, total in self.totals.items()}
        own["loss"] *= trainer.accumulate_grad_batches  # Lightning divided the loss by it
        shares = gather(own)
        self.means = {name: sum(share[name] for share in shares) / len(shares) for name in own}
        if self.seen:
            self._observe()

    def _check(self, trainer: pl.Trainer) -> None:
        if self.unread is None or self.unread[1].isfinite():
            return
        step, loss, rows = self.unread
        items = trainer.train_dataloader.dataset.reader.items  # type: ignore[union-attr]  # of an ItemDataset
        raise FloatingPointError(
            f"the training loss became {float(loss)} in epoch {trainer.current_epoch + 1}, step {step + 1} of "
            f"{self.part}, for the ids {some([items[row].id for row in rows.tolist()], 32)}; the state before that "
            f"epoch is kept; look at these images and labels, {ADVICE}"
        )

    def _observe(self) -> None:
        own = {name: torch.cat([values[name] for _, values in self.seen]) for name in self.seen[0][1]}
        seen = torch.cat([rows for rows, _ in self.seen])
        shares = gather((seen.cpu(), {name: value.float().cpu() for name, value in own.items()}))
        # Rank r has every n-th item: interleaving restores the order of a single process.
        rows = torch.stack([rows for rows, _ in shares], 1).flatten().numpy()
        values = {name: torch.stack([each[name] for _, each in shares], 1).flatten().numpy() for name in own}
        number_of = {row: number for number, row in enumerate(self.pool.rows.tolist())}
        real = np.isin(rows, self.pool.rows)
        items = np.array([number_of[row] for row in rows[real].tolist()], np.int64)
        self.pool.sampling.observe(items, {name: value[real] for name, value in values.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"sampling": self.pool.sampling.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool.sampling.load_state_dict(state["sampling"])
