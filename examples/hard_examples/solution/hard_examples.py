"""Hard-example mining: items of large loss are drawn more often in the next epochs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foldwise.data import sampling
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch


class Sampling(sampling.Sampling):
    """Chances by a running mean of each item's loss, between `floor` of the mean chance and what its loss asks for.

    Args:
        memory: how much of the old loss stays when a new one is seen, in [0, 1).
        floor: the least chance, so that nothing is forgotten.
        warmup: epochs in which every item is drawn once.
    """

    def __init__(self, memory: float = 0.5, floor: float = 0.3, warmup: int = 1) -> None:
        self.memory, self.floor, self.warmup = memory, floor, warmup

    def start(self, target: np.ndarray | None, weight: np.ndarray) -> None:
        self.loss = np.full(len(weight), np.nan)

    def chances(self, epoch: int) -> np.ndarray | None:
        if epoch < self.warmup or np.isnan(self.loss).all():
            return None
        loss = np.where(np.isnan(self.loss), np.nanmean(self.loss), self.loss)
        return self.floor + (1 - self.floor) * loss / max(loss.mean(), 1e-9)

    def observe(self, items: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        for item, loss in zip(items.tolist(), values["hardness"].tolist(), strict=True):
            old = self.loss[item]
            self.loss[item] = loss if np.isnan(old) else self.memory * old + (1 - self.memory) * loss

    def state_dict(self) -> dict[str, Any]:
        return {"loss": torch.from_numpy(self.loss.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loss = state["loss"].numpy().copy()


class Module(TrainingModule):
    """As always, and the loss of every sample goes to the sampling."""

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        hardness = self.loss.samples(outputs["logits"].float(), batch["target"])
        return {"loss": (batch["weight"] * hardness).mean(), "hardness": hardness.detach()}
