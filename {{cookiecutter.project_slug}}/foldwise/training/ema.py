"""Exponential moving average (EMA) of the weights; BatchNorm statistics of averaged weights."""

from collections.abc import Collection, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from timm.utils import ModelEmaV3
from torch.nn.modules.batchnorm import _BatchNorm

from foldwise.data.batches import Packed, to_device
from foldwise.errors import Refusal
from foldwise.models.normalized import Normalized
from foldwise.training.distributed import share_norms


class EMA(pl.Callback):
    """EMA of the weights, used for validation and prediction instead of the last weights.

    Args:
        decay: share of the average kept at each optimizer step, warmed up as 1 - (1 + step) ** (-2/3) so that the
            random start does not dominate a short training.
    """

    def __init__(self, network: Normalized, decay: float) -> None:
        if not isinstance(decay, float) or not 0 < decay < 1:
            raise Refusal(f"ema is {decay!r}; it is a decay between 0 and 1, for example ema=0.999, or null")
        self.average = ModelEmaV3(network, decay=decay, use_warmup=True)
        self.network: Normalized = self.average.module
        self.updates = 0

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.average.to(module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, step: int) -> None:
        if trainer.global_step > self.updates:  # with gradient accumulation, not every batch is a step
            self.updates = trainer.global_step
            self.average.update(module.network, step=self.updates)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.network.load_state_dict(state["average"])


@torch.no_grad()
def reestimate_batch_norm(
    network: Normalized, batches: Iterable[Packed], device: torch.device, frozen: Collection[str] = ()
) -> None:
    """Re-estimate the BatchNorm statistics of averaged weights on training images; without BatchNorm, read nothing.

    The mean of statistics is not right for the mean of weights (Izmailov et al., arXiv:1803.05407, section 3.2). Under
    DDP, every rank must call it with equally many batches; all ranks end up with the same statistics.

    Args:
        frozen: names in `network.net` of BatchNorms that keep their statistics.
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
