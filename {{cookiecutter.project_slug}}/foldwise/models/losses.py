"""Losses: `forward(logits, target, weight)` gives the mean over the samples of `weight * loss of the sample`.

Classification: logits (B, C), target float (B, C), one row of probabilities or of 0/1 labels a sample.
Segmentation: logits (B, C, H, W), target int64 (B, H, W); pixels that equal `ignore_index` count nowhere, and a
sample without any other pixel has the loss 0 (with a graph: its gradient is 0, not NaN).
Weight: float (B,), or None for equal weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.errors import Refusal

IGNORE_INDEX = 255
# What `class_weights` may name instead of numbers, with the power of the balanced weights.
BALANCES = {"balanced": 1.0, "sqrt_balanced": 0.5}


def balanced_class_weights(counts: Sequence[float], rows: int | None = None, power: float = 1.0) -> list[float]:
    """The weights of `class_weights: balanced`; `sqrt_balanced`, with the power 0.5, is half way to no weights.

    Args:
        counts: samples or pixels of each class.
        rows: given for multi-label targets: the number of samples.

    Returns:
        Without `rows`, total / (classes * count), as scikit-learn's `class_weight="balanced"`: the weight averaged
        over the samples is 1. With `rows`, negatives / positives, which is the weight of a positive label.
        A class that never occurs gets 1, since nothing is known about it.
    """
    if rows is not None:
        return [((rows - count) / count) ** power if 0 < count < rows else 1.0 for count in counts]
    present = sum(count > 0 for count in counts)
    return [(sum(counts) / (present * count)) ** power if count > 0 else 1.0 for count in counts]


class SampleLoss(nn.Module):
    """Base of losses that give every sample its own value.

    Args:
        class_weights: (C,) factors of the classes' terms, not normalised away: weights of 2 double the loss.
        ignore_index: mask value that is not trained.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | Tensor | None = None, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.ignore_index = ignore_index

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of every sample, (B,)."""
        raise NotImplementedError

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise Refusal(f"class_weights has {len(self.class_weights)} values for {logits.shape[1]} classes")
        samples = self.samples(logits.float(), target)
        return samples.mean() if weight is None else (weight * samples).mean()

    def pixels_to_samples(self, pixels: Tensor, target: Tensor) -> Tensor:
        """Mean over the pixels that are not ignored; `pixels` (B, H, W) must be 0 at the ignored ones."""
        valid = (target != self.ignore_index).sum(dim=(1, 2))
        return pixels.sum(dim=(1, 2)) / valid.clamp(min=1)


class CrossEntropy(SampleLoss):
    """Cross-entropy after a softmax; targets may be soft.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.label_smoothing = label_smoothing

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        options: dict[str, Any] = {"weight": self.class_weights, "label_smoothing": self.label_smoothing}
        if logits.ndim == 2:
            return F.cross_entropy(logits, target, reduction="none", **options)
        pixels = F.cross_entropy(logits, target, reduction="none", ignore_index=self.ignore_index, **options)
        return self.pixels_to_samples(pixels, target)


class BinaryCrossEntropy(SampleLoss):
    """Binary cross-entropy after a sigmoid, averaged over the classes; for multi-label targets.

    Args:
        label_smoothing: targets are moved by this share towards 0.5.
        class_weights: factors of the positive term of each class.
    """

    def __init__(self, label_smoothing: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.label_smoothing = label_smoothing

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.ndim != 2:
            raise Refusal("BinaryCrossEntropy is for multi-label targets; segmentation takes CrossEntropy or Focal")
        target = target + self.label_smoothing * (0.5 - target)
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.class_weights, reduction="none")
        return loss.mean(dim=1)


class Focal(SampleLoss):
    """Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002): terms fade as (1 - p)^gamma, p the probability
    of the target. gamma 0 is CrossEntropy or, for multi-label, BinaryCrossEntropy.

    Args:
        task: "multiclass" and "segmentation" use a softmax, "multilabel" a sigmoid a class.
    """

    def __init__(self, gamma: float = 2.0, task: str = "multiclass", **common: Any) -> None:
        super().__init__(**common)
        if task not in ("multiclass", "multilabel", "segmentation"):
            raise Refusal(f"Focal does not know the task {task!r}: use multiclass, multilabel or segmentation")
        self.gamma = gamma
        self.multilabel = task == "multilabel"

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.multilabel:
            positive = target * torch.sigmoid(-logits) ** self.gamma * F.softplus(-logits)
            negative = (1 - target) * torch.sigmoid(logits) ** self.gamma * F.softplus(logits)
            if self.class_weights is not None:
                positive = positive * self.class_weights
            return (positive + negative).mean(dim=1)
        log_probability = F.log_softmax(logits, dim=1)
        # 1 - p as the sum of the other classes would cost C times the memory; expm1 keeps it exact near p = 1.
        loss = (-torch.expm1(log_probability)).clamp(min=0) ** self.gamma * -log_probability
        if self.class_weights is not None:
            loss = loss * self.class_weights.view(-1, *[1] * (logits.ndim - 2))
        if logits.ndim == 2:
            return (target * loss).sum(dim=1)
        valid = target != self.ignore_index
        pixels = loss.gather(1, torch.where(valid, target, 0).unsqueeze(1)).squeeze(1)
        return self.pixels_to_samples(torch.where(valid, pixels, 0.0), target)


class BatchLoss(nn.Module):
    """Base of losses that are one value of all pixels of a batch together, so samples cannot be weighted.

    Attributes:
        batch: (logits, target) to the loss of a batch with at least one pixel that is not ignored.
    """

    batch: nn.Module

    def __init__(self, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        name = type(self).__name__
        if logits.ndim != 4:
            raise Refusal(f"{name} is for segmentation; use CrossEntropy, BinaryCrossEntropy or Focal")
        if weight is not None and bool((weight != weight[0]).any()):
            raise Refusal(
                f"{name} is computed over the whole batch and cannot weight its samples: "
                "remove the table's weight column (data.columns.weight=null) or use CrossEntropy or Focal"
            )
        if not bool((target != self.ignore_index).any()):
            return logits.sum() * 0.0
        loss = self.batch(logits.float(), target)
        return loss if weight is None else weight[0] * loss


class Dice(BatchLoss):
    """1 - soft Dice of the softmax, averaged over all classes; a class that the batch lacks counts as 0.

    Args:
        smooth: added to numerator and denominator.
        class_weights: (C,) weights of the mean over classes.
    """

    def __init__(
        self, smooth: float = 0.0, class_weights: Sequence[float] | Tensor | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        from segmentation_models_pytorch.losses import DiceLoss

        weights = None if class_weights is None else [float(value) for value in class_weights]
        self.batch = DiceLoss("multiclass", smooth=smooth, ignore_index=self.ignore_index, class_weights=weights)


class Lovasz(BatchLoss):
    """Lovász-Softmax (Berman et al. 2018, https://arxiv.org/abs/1705.08790), a surrogate of the mean IoU over the
    classes that the batch has."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        from segmentation_models_pytorch.losses import LovaszLoss

        self.batch = LovaszLoss("multiclass", ignore_index=self.ignore_index)


class WeightedSum(nn.Module):
    """The sum of `weight * loss` over terms.

    Args:
        terms: mappings with the keys `loss` (a module of this file) and `weight` (a number).
    """

    def __init__(self, terms: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(term["loss"] for term in terms)
        self.weights = [float(term["weight"]) for term in terms]

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        terms = [factor * loss(logits, target, weight) for factor, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(terms).sum()
