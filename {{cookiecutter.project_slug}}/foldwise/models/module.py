"""The Lightning module that a competition subclasses: phases, lr, mixing, and the randomness of a step."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from foldwise.data.batches import Packed, unpack
from foldwise.data.sampling import sample_seed
from foldwise.models.mixing import Mix
from foldwise.models.network import Batch
from foldwise.models.normalized import Normalized, set_trainable
from foldwise.schedule.phases import Schedule


@dataclass(frozen=True)
class Setup:
    """Parts of a module.

    Attributes:
        loss: what the group `loss` of the configuration names.
        make_optimizer: builds the optimizer over all parameters.
        seed: dropout, mixing and stochastic depth follow from it, the epoch and the step.
        mixes: mixup and CutMix of each phase, by its name.
        targets: of every item that is trained or validated, (N, C) by the target field, where they are no files;
            `batch["row"]` is the number of an item in them.
    """

    network: Normalized
    loss: nn.Module
    make_optimizer: Callable[[Normalized], Optimizer]
    schedule: Schedule
    seed: int
    mixes: Mapping[str, Mix]
    targets: Mapping[str, np.ndarray]


class TrainingModule(pl.LightningModule):
    """Trains a network through the phases of a schedule; a competition's subclass defines its losses.

    Only `self.network` is optimised, averaged and saved with the model: a loss that has parameters belongs into the
    network. A network that only teaches goes into `Frozen`. Buffers of the module are on the device and part of the
    checkpoint, such as targets that change while training, indexed by `batch["row"]`.
    """

    loss: Any  # what the configuration names, mostly of models/losses.py

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.network, self.loss, self.schedule = setup.network, setup.loss, setup.schedule
        self.make_optimizer, self.seed, self.mixes = setup.make_optimizer, setup.seed, setup.mixes

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch, in training and in validation.

        Args:
            outputs: raw, of the network.
            batch: the fields of the samples, "weight" (B,) and "row" (B,); mixed in training. Images are not
                normalised.

        Returns:
            "loss", a scalar to minimise; further scalars are logged; (B,) entries go to the sampling (`observe`).
        """
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The losses of a batch, after mixup or CutMix where asked."""
        phase, _ = self.schedule.locate(self.current_epoch)
        batch = self.mixes[phase.name](batch)
        return self.losses(self.network(batch), batch)

    def on_after_batch_transfer(self, batch: Packed, dataloader_idx: int) -> Batch:
        return unpack(batch)

    def configure_optimizers(self) -> Any:
        # All parameters belong to the optimizer from the start, so that a later phase finds its state and lr.
        optimizer = self.make_optimizer(self.network)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedulers"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.schedule.load_state_dict(checkpoint["schedulers"])

    def on_train_epoch_start(self) -> None:
        # A function of the epoch alone, re-applied at each: a resumed run freezes what the stopped one froze.
        self.prepare_training()

    def prepare_training(self) -> None:
        """Set training mode, and what the current phase trains; the rest is frozen."""
        phase, _ = self.schedule.locate(self.current_epoch)
        self.network.train()
        set_trainable(self.network, phase.trainable, phase.freeze_bn)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Seeded at each step, not at each epoch: whatever drew random numbers before (a validation, a logger,
        # a stop and a resume) leaves this step as it was. Ranks differ, or their dropout masks would be equal.
        seed = sample_seed(self.seed, self.current_epoch, f"step {batch_idx} of rank {self.global_rank}")
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


class Frozen:
    """A network that is not trained: outside of optimizer, EMA and checkpoint, since it is no `nn.Module`."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Its outputs, on the device of the batch."""
        device = next(iter(batch.values())).device
        if next(self.net.parameters()).device != device:
            self.net.to(device)
        return self.net(batch)


def scalars(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of `losses` that are single numbers."""
    return {name: value for name, value in losses.items() if isinstance(value, Tensor) and value.ndim == 0}


def of_samples(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of `losses` that have one number a sample."""
    return {name: value for name, value in losses.items() if isinstance(value, Tensor) and value.ndim == 1}
