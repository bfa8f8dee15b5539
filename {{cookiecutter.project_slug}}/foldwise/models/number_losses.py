"""Losses of numbers. `forward(output, target, weight)` returns the mean of `weight * loss` over the samples.

Output and target are (B, C), in the space of `data.transform`. A target of NaN is unknown and left out: the loss of a
sample is the mean over its known columns, and 0 without any. Weight: (B,), or None for equal weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.errors import Refusal


class NumberLoss(nn.Module):
    """Base of losses of numbers; `target_weights` says how much each column counts, None: all alike."""

    target_weights: Tensor | None

    def __init__(self, target_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = None if target_weights is None else torch.tensor([float(value) for value in target_weights])
        if weights is not None and (not bool((weights >= 0).all()) or not bool(weights.any())):
            raise Refusal(f"target_weights is {list(target_weights or ())}; give numbers from 0, not all of them 0")
        self.register_buffer("target_weights", weights, persistent=False)

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each number, (B, C)."""
        raise NotImplementedError

    def forward(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        if output.shape != target.shape:
            raise Refusal(
                f"{type(self).__name__}: outputs {tuple(output.shape)} and targets {tuple(target.shape)} differ"
            )
        counts = (~target.isnan()).float()
        if self.target_weights is not None:
            if len(self.target_weights) != output.shape[1]:
                raise Refusal(f"target_weights has {len(self.target_weights)} values for {output.shape[1]} columns")
            counts = counts * self.target_weights
        values = self.values(output.float(), target.nan_to_num())
        samples = (counts * values).sum(1) / counts.sum(1).clamp(min=torch.finfo(counts.dtype).tiny)
        return samples.mean() if weight is None else (weight * samples).mean()


class SquaredError(NumberLoss):
    """Squared error, which the mean minimises."""

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target) ** 2


class AbsoluteError(NumberLoss):
    """Absolute error, which the median minimises."""

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs()


class Huber(NumberLoss):
    """Squared error / 2 up to `delta`, then linear (Huber 1964): outliers count less."""

    def __init__(self, delta: float = 1.0, target_weights: Sequence[float] | None = None) -> None:
        super().__init__(target_weights)
        if not delta > 0:
            raise Refusal(f"loss.delta is {delta}; give a number above 0, in units of what data.transform makes")
        self.delta = float(delta)

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(output, target, reduction="none", delta=self.delta)
