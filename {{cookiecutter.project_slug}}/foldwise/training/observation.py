"""Losses of single samples, for a sampling that draws by them."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from foldwise.data.sampling import Pool
from foldwise.models.module import of_samples
from foldwise.training.distributed import gather


class Observation(pl.Callback):
    """Hands the (B,) entries of the module's losses to the sampling at the end of each epoch, and keeps its state.

    Args:
        pool: the real training items; pseudo items are not observed.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.seen: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, step: int) -> None:
        if values := of_samples(outputs):
            self.seen.append((batch["row"], {name: value.detach() for name, value in values.items()}))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        if not self.seen:
            return
        own = {name: torch.cat([values[name] for _, values in self.seen]) for name in self.seen[0][1]}
        seen = torch.cat([rows for rows, _ in self.seen])
        shares = gather((seen.cpu(), {name: value.float().cpu() for name, value in own.items()}))
        # The sampler deals items out to the ranks in turn: interleaved, they are in the order of a single process.
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
