"""Lightning module to subclass in solution/module.py: phases, learning rate, mixing, seeding of steps."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from foldwise.data.augmentation import sample_seed
from foldwise.data.batches import Packed, unpack
from foldwise.errors import Refusal
from foldwise.models.mixing import Mix
from foldwise.models.network import Batch
from foldwise.models.normalized import Normalized, set_trainable
from foldwise.schedule.phases import Schedule


@dataclass(frozen=True)
class HeadLoss:
    """Loss of a further output `key` on the batch's field `target`, and its weight in the sum."""

    key: str
    target: str
    loss: nn.Module
    weight: float


@dataclass(frozen=True)
class Setup:
    """Parts of a module.

    Attributes:
        seed: of dropout, mixing and stochastic depth, together with epoch and step.
        mixes: mixup and CutMix by phase name.
        targets: (N, C) of all training and validation items by target field, if not files; `batch["row"]` indexes them.
        heads: losses of further outputs, by name.
    """

    network: Normalized
    loss: nn.Module
    make_optimizer: Callable[[Normalized], Optimizer]
    schedule: Schedule
    seed: int
    mixes: Mapping[str, Mix]
    targets: Mapping[str, np.ndarray]
    heads: Mapping[str, HeadLoss] = field(default_factory=dict)


class TrainingModule(pl.LightningModule):
    """Trains a network through the phases of a schedule; subclasses define `losses`.

    Only `self.network` is optimised, averaged (EMA) and saved: a loss with parameters belongs in the network, a teacher
    in `Frozen`. The checkpoint includes the module's buffers, for example targets that change during training, indexed
    by `batch["row"]`.
    """

    loss: Any  # from the config group `loss`

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.network, self.loss, self.schedule = setup.network, setup.loss, setup.schedule
        self.make_optimizer, self.seed, self.mixes = setup.make_optimizer, setup.seed, setup.mixes
        self.heads = setup.heads
        self.losses_of_heads = nn.ModuleList(head.loss for head in setup.heads.values())  # moves them to the device

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses of a training or validation batch.

        Args:
            outputs: raw outputs of the network.
            batch: the fields of the samples, "weight" (B,) and "row" (B,); mixed in training, images not normalised.

        Returns:
            The scalar "loss"; further scalars are logged; (B,) entries go to the sampler (`observe`).
        """
        raise NotImplementedError

    def head_losses(self, outputs: Batch, batch: Batch) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Losses of the further outputs that have a `loss` in the configuration; items without a target count 0.

        Returns:
            Their weighted sum, 0 if there are none, and each one's loss by name, to be logged.
        """
        total: Tensor | float = 0.0
        found = {}
        for name, head in self.heads.items():
            target, weight = batch[head.target], batch["weight"]
            if target.is_floating_point():
                missing = target.isnan().all(1)
                target, weight = target.masked_fill(missing[:, None], 0), weight * ~missing
            try:
                loss = head.loss(outputs[head.key], target, weight)
            except Refusal as error:
                raise Refusal(f"outputs.{name}.loss: {error}") from error
            total = total + head.weight * loss
            found[name] = loss.detach()
        return total, found

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        phase, _ = self.schedule.locate(self.current_epoch)
        batch = self.mixes[phase.name](batch)
        return self.losses(self.network(batch), batch)

    def on_after_batch_transfer(self, batch: Packed, dataloader_idx: int) -> Batch:
        return unpack(batch)

    def configure_optimizers(self) -> Any:
        # All parameters are in the optimizer from the start, so that later phases have their state and lr.
        optimizer = self.make_optimizer(self.network)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedulers"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.schedule.load_state_dict(checkpoint["schedulers"])

    def on_train_epoch_start(self) -> None:
        # Depends on the epoch alone and is re-applied each epoch, so that a resumed run freezes the same layers.
        self.prepare_training()
        # Lightning has set the lr of this step before the last validation, which a Plateau follows.
        scheduler: Any = self.lr_schedulers()
        factor = self.schedule.factor(scheduler.last_epoch)
        for group, lr in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = lr * factor

    def prepare_training(self) -> None:
        """Set training mode and freeze what the current phase does not train."""
        phase, _ = self.schedule.locate(self.current_epoch)
        self.network.train()
        set_trainable(self.network, phase.trainable, phase.freeze_bn)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Seeded at each step, so that earlier random draws (validation, a logger, a resume) do not affect it. Per rank,
        # or all ranks would have equal dropout masks.
        seed = sample_seed(self.seed, self.current_epoch, f"step {batch_idx} of rank {self.global_rank}")
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


class Frozen:
    """A network that is never trained; not an `nn.Module`, so that optimizer, EMA and checkpoint skip it."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        device = next(iter(batch.values())).device
        if next(self.net.parameters()).device != device:
            self.net.to(device)
        return self.net(batch)


def scalars(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Entries of `losses` that are scalars."""
    return {name: value for name, value in losses.items() if isinstance(value, Tensor) and value.ndim == 0}


def of_samples(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Entries of `losses` with one value per sample."""
    return {name: value for name, value in losses.items() if isinstance(value, Tensor) and value.ndim == 1}
