"""Noisy labels replaced while training: a target moves towards the network's predictions of its item so far."""

from typing import Any

import torch
from torch import Tensor

from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch


class Module(TrainingModule):
    """Self-adaptive targets (Huang et al. 2020, arXiv:2002.10319): after `start` epochs each epoch moves them.

    The table of targets is a buffer: on the device, and part of the checkpoint. Workers hold old copies of the table,
    so a batch says by its rows which targets are meant.

    Args:
        start: epochs on the labels as they are.
        momentum: the share of a target that stays at each step.
    """

    targets: Tensor

    def __init__(self, setup: Any, start: int = 2, momentum: float = 0.9) -> None:
        super().__init__(setup)
        self.register_buffer("targets", torch.from_numpy(setup.targets["target"].copy()))
        self.start, self.momentum = start, momentum

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        if not self.training:
            return {"loss": self.loss(outputs["logits"], batch["target"], batch["weight"])}
        rows = batch["row"]
        if self.current_epoch >= self.start:
            said = self.everywhere(outputs["logits"].detach().float().softmax(1))
            every = self.everywhere(rows)
            self.targets[every] = self.momentum * self.targets[every] + (1 - self.momentum) * said
        moved = (self.targets[rows] - batch["target"]).abs().sum(1).mean() / 2
        return {"loss": self.loss(outputs["logits"], self.targets[rows], batch["weight"]), "moved": moved}

    def everywhere(self, value: Tensor) -> Tensor:
        """The values of all ranks: each must move the same targets."""
        return value if self.trainer.world_size == 1 else torch.as_tensor(self.all_gather(value)).flatten(0, 1)
