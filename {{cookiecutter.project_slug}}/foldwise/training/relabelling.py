"""Soft targets of unlabelled rows that change during training, made by the model that is being trained."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from foldwise.data.batches import to_device
from foldwise.data.sampling import EpochSampler
from foldwise.models.network import Batch
from foldwise.tasks.outputs import Output, activate
from foldwise.training.distributed import gather, share_norms
from foldwise.training.ema import EMA


class Relabelling(pl.Callback):
    """Labels the unlabelled items that an epoch draws, in phases with `relabel`; a target is kept that many epochs.

    Predicts as validation does: without augmentation or TTA, by the EMA if there is one. So the targets depend on the
    seed, the epoch and the weights alone.

    Args:
        real, total: numbers of labelled items, and of all; the unlabelled ones come last.
        load: makes a loader of items, given their indices.
    """

    def __init__(
        self,
        real: int,
        total: int,
        output: Output,
        sampler: EpochSampler,
        load: Callable[[np.ndarray], DataLoader],
        ema: EMA | None,
    ) -> None:
        self.real, self.output, self.sampler, self.load, self.ema = real, output, sampler, load, ema
        self.targets = torch.full((total - real, len(output.columns)), torch.nan)

    @torch.no_grad()
    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        phase, start = module.schedule.locate(trainer.current_epoch)
        if not phase.relabel:
            return
        if (trainer.current_epoch - start) % phase.relabel == 0:
            self.targets.fill_(torch.nan)
        self.targets = self.targets.to(module.device)
        drawn = np.unique(self.sampler.order())
        drawn = drawn[drawn >= self.real]
        missing = drawn[self.targets.isnan().any(1).cpu().numpy()[drawn - self.real]]
        network = self.ema.network if self.ema else module.network
        share_norms(network)
        network.eval()  # until the module's own on_train_epoch_start, which comes next
        shares = gather(self._predict(network, missing[trainer.global_rank :: trainer.world_size], module))
        for rows, values in shares:
            self.targets[rows - self.real] = values.to(self.targets)

    def _predict(self, network: Callable[[Batch], Batch], items: np.ndarray, module: Any) -> tuple[Any, Any]:
        """Indices (N,) and predicted values (N, C) of this rank's items, on the CPU."""
        rows, values = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, self.targets.shape[1])]
        for packed in self.load(items):
            batch = to_device(packed, module.device)
            with module.trainer.precision_plugin.forward_context():
                outputs = {name: value.float() for name, value in network(batch).items()}
            rows.append(batch["row"].cpu())
            values.append(activate(outputs, [self.output])[self.output.name].cpu())
        return torch.cat(rows), torch.cat(values)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, step: int) -> None:
        number = batch["row"] - self.real
        own = self.targets.to(number.device)[number.clamp(min=0)]
        target = batch[self.output.target]
        batch[self.output.target] = torch.where((number >= 0)[:, None], own, target)

    def state_dict(self) -> dict[str, Any]:
        return {"targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.targets = state["targets"]
