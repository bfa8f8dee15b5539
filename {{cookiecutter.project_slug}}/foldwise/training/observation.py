"""What an epoch shows of each item, for a sampling that draws by it."""

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

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        values = of_samples(outputs)
        if values:
            self.seen.append((batch["row"], {name: value.detach() for name, value in values.items()}))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.seen:
            return
        own = {name: torch.cat([values[name] for _, values in self.seen]) for name in self.seen[0][1]}
        seen = torch.cat([rows for rows, _ in self.seen])
        shares = gather((seen.cpu(), {name: value.float().cpu() for name, value in own.items()}))
        # The sampler deals items out to the ranks in turn: so, one process sees them in this order.
        rows = torch.stack([rows for rows, _ in shares], 1).flatten().numpy()
        values = {name: torch.stack([each[name] for _, each in shares], 1).flatten().numpy() for name in own}
        place = {row: number for number, row in enumerate(self.pool.rows.tolist())}
        real = np.array([row in place for row in rows.tolist()], bool)
        items = np.array([place[row] for row in rows[real].tolist()], np.int64)
        self.pool.sampling.observe(items, {name: value[real] for name, value in values.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"sampling": self.pool.sampling.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pool.sampling.load_state_dict(state_dict["sampling"])
