"""What the Lightning modules of all tasks share: phases, learning rates, and the randomness of a step."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from foldwise.data.dataset import sample_seed
from foldwise.models.normalized import Normalized, set_trainable
from foldwise.models.phases import Schedule


class TrainingModule(pl.LightningModule):
    """Trains a network through the phases of a schedule; a batch is what `ImageDataset` gives, collated.

    Args:
        network: images as stored in, logits out.
        loss: (logits, target, weight) to a scalar.
        make_optimizer: builds the optimizer over a network all of whose parameters are trainable.
        schedule: the phases and their learning rates.
        seed: from it, the epoch and the step follow dropout, mixup and stochastic depth.
    """

    def __init__(
        self,
        network: Normalized,
        loss: nn.Module,
        make_optimizer: Callable[[nn.Module], Optimizer],
        schedule: Schedule,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.make_optimizer = make_optimizer
        self.schedule = schedule
        self.seed = seed

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self.loss(self.network(batch["image"]), batch["target"], batch["weight"])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of the classes, in the shape of `logits`; classes are in dimension 1."""
        return logits.softmax(dim=1)

    def configure_optimizers(self) -> Any:
        # All parameters belong to the optimizer from the start, so that a later phase finds its state and rates.
        optimizer = self.make_optimizer(self.network)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["curves"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.schedule.load_state_dict(checkpoint["curves"])

    def on_train_epoch_start(self) -> None:
        # A function of the epoch alone, re-applied at each: a resumed run freezes what the stopped one froze.
        self.prepare_training()

    def prepare_training(self) -> None:
        """Put the network into training mode with what the current phase trains; the rest stays frozen."""
        phase, _ = self.schedule.locate(self.current_epoch)
        self.network.train()
        set_trainable(self.network, phase.trainable, phase.frozen_norms)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Seeded at each step, not at each epoch: whatever drew random numbers before (a validation, a logger,
        # a stop and a resume) leaves this step as it was. Ranks differ, or their dropout masks would be equal.
        seed = sample_seed(self.seed, self.current_epoch, f"step {batch_idx} of rank {self.global_rank}")
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
