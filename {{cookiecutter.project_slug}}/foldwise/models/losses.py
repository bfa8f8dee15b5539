"""Losses. `forward(logits, target, weight)` returns the mean of `weight * loss` over the samples.

Classification: logits (B, C), target float (B, C): probabilities or 0/1 labels.
Segmentation: logits (B, C, H, W), target int64 (B, H, W), or with a mask per class (B, C, H, W), 0 to 1. Pixels equal
to `ignore_index` are left out; a sample without other pixels has loss 0 and gradient 0, not NaN.
Weight: float (B,), or None for equal weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.errors import Refusal

IGNORE_INDEX = 255
PER_CLASS = "multi-label targets and overlapping or soft masks"
EXCLUSIVE = "for exclusive classes use CrossEntropy or Focal"
# Tasks of the focal loss: whether classes are independent.
FOCAL = {
    "multiclass": False,
    "multilabel": True,
    "segmentation": False,
    "segmentation_overlapping": True,
    "segmentation_soft": True,
}
# Names that `class_weights` accepts, with the power applied to the balanced weights.
BALANCES = {"balanced": 1.0, "sqrt_balanced": 0.5}


def balanced_class_weights(counts: Sequence[float], rows: int | None = None, power: float = 1.0) -> list[float]:
    """Compute the weights of `class_weights: balanced` (power 1) or `sqrt_balanced` (power 0.5).

    Args:
        counts: samples or pixels of each class.
        rows: number of samples, for multi-label targets only.

    Returns:
        total / (classes * count), as scikit-learn's `class_weight="balanced"` (mean weight over the samples: 1). With
        `rows`, negatives / positives, the weight of a positive label. A class that never occurs gets 1.
    """
    if rows is not None:
        return [((rows - count) / count) ** power if 0 < count < rows else 1.0 for count in counts]
    present = sum(count > 0 for count in counts)
    return [(sum(counts) / (present * count)) ** power if count > 0 else 1.0 for count in counts]


class SampleLoss(nn.Module):
    """Base of losses with one value per sample; `class_weights` are not normalised: weights of 2 double the loss."""

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | Tensor | None = None, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.ignore_index = ignore_index

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each sample, (B,)."""
        raise NotImplementedError

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise Refusal(f"class_weights has {len(self.class_weights)} values for {logits.shape[1]} classes")
        samples = self.samples(logits.float(), target)
        return samples.mean() if weight is None else (weight * samples).mean()

    def pixels_to_samples(self, pixels: Tensor, target: Tensor) -> Tensor:
        """Average over the pixels that count; `pixels`, of the target's shape, must be 0 where ignored."""
        valid = (target != self.ignore_index).flatten(1).sum(dim=1)
        return pixels.flatten(1).sum(dim=1) / valid.clamp(min=1)

    def per_class(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return float targets (0 where ignored), the pixels that count, and class weights, to be broadcast."""
        if logits.shape != target.shape:
            raise Refusal(f"{type(self).__name__} is for {PER_CLASS}; {EXCLUSIVE}")
        valid = target != self.ignore_index if logits.ndim == 4 else torch.ones_like(target, dtype=torch.bool)
        weights = self.class_weights
        return (
            torch.where(valid, target, 0).float(),
            valid,
            None if weights is None else weights.view(-1, *[1] * (logits.ndim - 2)),
        )

    def classes_to_samples(self, losses: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Average losses of the target's shape over classes and pixels."""
        if losses.ndim == 2:
            return losses.mean(dim=1)
        return self.pixels_to_samples(torch.where(valid, losses, 0.0), target)


class CrossEntropy(SampleLoss):
    """Cross-entropy after a softmax; targets may be soft, `label_smoothing` is in [0, 1)."""

    def __init__(self, label_smoothing: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.label_smoothing = label_smoothing

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        check_exclusive(self, logits, target)
        options: dict[str, Any] = {"weight": self.class_weights, "label_smoothing": self.label_smoothing}
        if logits.ndim == 2:
            return F.cross_entropy(logits, target, reduction="none", **options)
        pixels = F.cross_entropy(logits, target, reduction="none", ignore_index=self.ignore_index, **options)
        return self.pixels_to_samples(pixels, target)


class ArcFace(SampleLoss):
    """ArcFace (Deng et al. 2019, https://arxiv.org/abs/1801.07698) of cosines (B, C): the angle to the true class grows
    by a margin, in radians, before the cross-entropy of `scale` * cosine.

    `margin` is one number, or one per class: the setting `by_size` becomes `margins_by_size`.
    """

    margin: Tensor

    def __init__(self, scale: float = 30.0, margin: float | Sequence[float] = 0.5, **common: Any) -> None:
        super().__init__(**common)
        self.scale = scale
        self.register_buffer("margin", torch.as_tensor(margin, dtype=torch.float32), persistent=False)

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.shape != logits.shape:
            raise Refusal("ArcFace needs the network and module of experiment=retrieval")
        cosine = logits.clamp(-1 + 1e-6, 1 - 1e-6)  # the gradient of the sine is infinite at 1
        sine = (1 - cosine**2).sqrt()
        further = cosine * self.margin.cos() - sine * self.margin.sin()
        # Beyond the angle of pi - margin the cosine would rise again; there it is continued as a falling straight line.
        further = torch.where(cosine > -self.margin.cos(), further, cosine - self.margin * self.margin.sin())
        logits = self.scale * (target * further + (1 - target) * cosine)
        return F.cross_entropy(logits, target, reduction="none", weight=self.class_weights)


def margins_by_size(counts: Sequence[float]) -> list[float]:
    """Margins of classes of `counts` images, larger for rare ones: 0.5 n^-0.25 + 0.05 (Ha et al. 2020, Google Landmark
    Recognition, https://arxiv.org/abs/2010.05350, section 2.2)."""
    return [0.5 * max(count, 1) ** -0.25 + 0.05 for count in counts]


class Ordinal(SampleLoss):
    """Binary cross-entropy of "above grade k" for each k, averaged, for classes that are ordered grades.

    The cumulative logits are those of the softmax, log P(above k) - log P(up to k), so the class probabilities are the
    differences of their sigmoids. `class_weights` weight the samples by their grade.
    """

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        above = [logits[:, k:].logsumexp(1) - logits[:, :k].logsumexp(1) for k in range(1, logits.shape[1])]
        aims = 1 - target.cumsum(1)[:, :-1]
        loss = F.binary_cross_entropy_with_logits(torch.stack(above, 1), aims, reduction="none").mean(1)
        return loss if self.class_weights is None else loss * (target @ self.class_weights)


class BinaryCrossEntropy(SampleLoss):
    """Binary cross-entropy after a sigmoid, averaged over the classes; `class_weights` scale the positive terms."""

    def __init__(self, label_smoothing: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.label_smoothing = label_smoothing

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        labels, valid, weights = self.per_class(logits, target)
        labels = labels + self.label_smoothing * (0.5 - labels)
        losses = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none")
        return self.classes_to_samples(losses, target, valid)


class Brier(SampleLoss):
    """Brier score: squared error of the probability after a sigmoid, averaged over classes and pixels."""

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        labels, valid, weights = self.per_class(logits, target)
        losses = (torch.sigmoid(logits) - labels) ** 2
        return self.classes_to_samples(losses if weights is None else weights * losses, target, valid)


class Focal(SampleLoss):
    """Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002): cross-entropy times (1 - p_target)^gamma.

    With gamma 0 it equals CrossEntropy, or BinaryCrossEntropy for multi-label and overlapping masks.
    """

    def __init__(self, gamma: float = 2.0, task: str = "multiclass", **common: Any) -> None:
        super().__init__(**common)
        if task not in FOCAL:
            raise Refusal(f"Focal: unknown task {task!r}; use one of {', '.join(FOCAL)}")
        self.gamma = gamma
        self.multilabel = FOCAL[task]

    def samples(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.multilabel:
            labels, valid, weights = self.per_class(logits, target)
            positive = labels * torch.sigmoid(-logits) ** self.gamma * F.softplus(-logits)
            negative = (1 - labels) * torch.sigmoid(logits) ** self.gamma * F.softplus(logits)
            if weights is not None:
                positive = positive * weights
            return self.classes_to_samples(positive + negative, target, valid)
        check_exclusive(self, logits, target)
        log_probability = F.log_softmax(logits, dim=1)
        # Summing the other classes for 1 - p would take C times the memory; expm1 stays exact near p = 1.
        loss = (-torch.expm1(log_probability)).clamp(min=0) ** self.gamma * -log_probability
        if self.class_weights is not None:
            loss = loss * self.class_weights.view(-1, *[1] * (logits.ndim - 2))
        if logits.ndim == 2:
            return (target * loss).sum(dim=1)
        valid = target != self.ignore_index
        pixels = loss.gather(1, torch.where(valid, target, 0).unsqueeze(1)).squeeze(1)
        return self.pixels_to_samples(torch.where(valid, pixels, 0.0), target)


def check_exclusive(loss: nn.Module, logits: Tensor, target: Tensor) -> None:
    """Refuse masks per class, of which cross-entropy would silently take the soft targets."""
    if logits.ndim == 4 and target.ndim == 4:
        raise Refusal(f"{type(loss).__name__} is for exclusive classes; for a mask per class add loss=bce_dice")


class BatchLoss(nn.Module):
    """Base of losses computed over all pixels of a batch at once; samples cannot be weighted."""

    def batch(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of a batch with at least one pixel that is not ignored."""
        raise NotImplementedError

    def __init__(self, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        name = type(self).__name__
        if logits.ndim != 4:
            raise Refusal(f"{name} is for segmentation; use CrossEntropy, BinaryCrossEntropy or Focal")
        if weight is not None and bool((weight != weight[0]).any()):
            raise Refusal(
                f"{name} is computed over the whole batch and cannot weight samples: "
                "remove the table's weight column (data.columns.weight=null) or use CrossEntropy or Focal"
            )
        if not bool((target != self.ignore_index).any()):
            return logits.sum() * 0.0
        loss = self.batch(logits.float(), target)
        return loss if weight is None else weight[0] * loss


class Dice(BatchLoss):
    """1 - soft Dice of the softmax, a mean over all classes (by `class_weights`); a missing class counts as 0.

    With a mask per class, of the sigmoid.
    """

    def __init__(
        self, smooth: float = 0.0, class_weights: Sequence[float] | Tensor | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        from segmentation_models_pytorch.losses import DiceLoss

        weights = None if class_weights is None else [float(value) for value in class_weights]
        settings: dict[str, Any] = {"smooth": smooth, "ignore_index": self.ignore_index, "class_weights": weights}
        self.exclusive, self.per_class = DiceLoss("multiclass", **settings), DiceLoss("multilabel", **settings)

    def batch(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 3:
            return self.exclusive(logits, target)
        return self.per_class(logits, target.float())


class Lovasz(BatchLoss):
    """Lovász-Softmax (Berman et al. 2018, arXiv:1705.08790): surrogate of mean IoU over the classes in the batch."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        from segmentation_models_pytorch.losses import LovaszLoss

        self.softmax = LovaszLoss("multiclass", ignore_index=self.ignore_index)

    def batch(self, logits: Tensor, target: Tensor) -> Tensor:
        check_exclusive(self, logits, target)
        return self.softmax(logits, target)


class WeightedSum(nn.Module):
    """Weighted sum of losses; `terms` are mappings with the keys `loss` (a module) and `weight` (a number)."""

    def __init__(self, terms: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(term["loss"] for term in terms)
        self.weights = [float(term["weight"]) for term in terms]

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        terms = [factor * loss(logits, target, weight) for factor, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(terms).sum()
