"""Exponential moving average of the weights, as a callback."""

from collections.abc import Collection, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from timm.utils import ModelEmaV3
from torch.nn.modules.batchnorm import _BatchNorm

from foldwise.data.batches import Packed, to_device
from foldwise.errors import Refusal
from foldwise.models.module import TrainingModule
from foldwise.models.normalized import Normalized
from foldwise.training.distributed import share_norms


class EMA(pl.Callback):
    """Keeps an average of the weights that validation and prediction use instead of the last weights.

    Args:
        decay: the share of the average kept at each optimizer step, reached by warm-up
            1 - (1 + step) ** (-2/3): a short training is not dominated by its random start.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise Refusal(f"callbacks.ema.decay is {decay}; it lies between 0 and 1, for example 0.999")
        self.decay = decay
        self.average: ModelEmaV3 | None = None
        self.updates = 0
        self._restored: dict[str, torch.Tensor] | None = None

    @property
    def network(self) -> Normalized:
        """The averaged network.

        Raises:
            RuntimeError: training has not begun.
        """
        if self.average is None:
            raise RuntimeError("the average of the weights exists once training has begun")
        return self.average.module

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.average = ModelEmaV3(pl_module.network, decay=self.decay, use_warmup=True)
        self.average.to(pl_module.device)
        if self._restored is not None:  # Lightning restores callbacks before the average exists
            self.network.load_state_dict(self._restored)
            self._restored = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule) and self.average is not None
        if trainer.global_step > self.updates:  # with accumulated gradients, not every batch is a step
            self.updates = trainer.global_step
            self.average.update(pl_module.network, step=self.updates)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.network.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self._restored = state_dict["updates"], state_dict["average"]


@torch.no_grad()
def reestimate_batch_norm(
    network: Normalized, batches: Iterable[Packed], device: torch.device, frozen: Collection[str] = ()
) -> None:
    """Set the batch-norm statistics of averaged weights from training images; without batch norm, nothing is read.

    Under DDP all ranks call it, each with as many batches of its own rows, and get the same statistics.

    The average of statistics is not the statistics of the average: each network of the average saw other features.
    (Izmailov et al., arXiv:1803.05407, section 3.2.)

    Args:
        batches: of training items.
        frozen: names in `network.net` of batch norms that keep their statistics.
    """
    norms = [
        module
        for name, module in network.net.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and name not in frozen
    ]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over all batches
        module.train()
    for batch in batches:
        network(to_device(batch, device))
    share_norms(network, average=True)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        module.eval()
