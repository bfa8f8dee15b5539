"""Metrics of masks. Evidence is gathered one image at a time, so memory stays flat, then reduced to the score."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import Metric, Score, confusion_matrix, ratio

ABSENT = "neither in the ground truth nor predicted"


@dataclass(frozen=True, kw_only=True)
class MapMetric(Metric):
    """Base class of metrics of masks and pixel probabilities; pixels with `ignore_index` do not count.

    It is for exclusive classes; a subclass with `exclusive = False` gets a mask per class (C, H, W), with None both.
    """

    ignore_index: int = 255
    kind = "maps"
    exclusive: ClassVar[bool | None] = True

    def measure(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Return the evidence of a mask and a probability (C, H, W); its shape is the same for all images."""
        raise NotImplementedError

    def reduce(self, evidence: np.ndarray, weight: np.ndarray | None = None) -> float:
        """Compute the score from the evidence (N, ...) of all images."""
        raise NotImplementedError

    @property
    def of_counts(self) -> bool:
        """Whether the evidence is the pixel counts, so that known counts need no `measure`."""
        return type(self).measure is CountMetric.measure


@dataclass(frozen=True, kw_only=True)
class CountMetric(MapMetric):
    """Base class of metrics whose evidence is an image's pixel counts (C, 3), see `count_pixels`.

    The prediction is the argmax, or with a mask per class every class from 0.5 on.
    """

    exclusive = None

    def measure(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        answer = probability.argmax(axis=0) if mask.ndim == 2 else probability >= 0.5
        return count_pixels(mask, answer, len(probability), self.ignore_index)


@dataclass(frozen=True, kw_only=True)
class MeanIoU(CountMetric):
    """Intersection over union of each class over all pixels, averaged over the classes that occur."""

    def per_class(self, counts: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """IoU (C,); NaN for a class that is neither in the ground truth nor predicted."""
        correct, predicted, true = _pool(counts, weight)
        return ratio(correct, predicted + true - correct)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        return self.mean_of_classes(self.per_class(counts, weight), ABSENT)

    def prepare(self, counts: np.ndarray) -> Score:
        return partial(self.reduce, counts)


@dataclass(frozen=True, kw_only=True)
class Dice(CountMetric):
    """Dice coefficient 2 correct / (predicted + true) of each class, averaged over the classes.

    Args:
        per_image: False pools the pixels of all images and leaves out classes that never occur. True averages the Dice
            of each image and class; a class that is neither in the image nor predicted scores 1, as in competitions
            that score per image.
        background: include class 0; without effect on overlapping masks, which have no background.
    """

    per_image: bool = False
    background: bool = False

    def per_class(self, counts: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Dice (C,), including class 0; NaN for a class that never occurs (not with `per_image`)."""
        if not self.per_image:
            correct, predicted, true = _pool(counts, weight)
            return ratio(2 * correct, predicted + true)
        correct, predicted, true = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
        each = np.where(predicted + true > 0, ratio(2 * correct, predicted + true), 1.0)
        if not len(each) or (weight is not None and not weight.any()):
            return np.full(counts.shape[1], np.nan)
        return np.average(each, axis=0, weights=weight)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        every = self.background or not (self.task is None or self.task.exclusive)
        return self.mean_of_classes(self.per_class(counts, weight), ABSENT, 0 if every else 1)

    def prepare(self, counts: np.ndarray) -> Score:
        return partial(self.reduce, counts)


@dataclass(frozen=True, kw_only=True)
class PixelMetric(MapMetric):
    """Base class of errors of numbers per pixel; the evidence is (C, 2): sum and number of pixels of each class."""

    exclusive = False
    greater_is_better = False
    power: ClassVar[int]

    def measure(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        if mask.shape != probability.shape:
            raise Refusal(f"the masks are {mask.shape}, but the prediction {probability.shape} (class, height, width)")
        valid = mask != self.ignore_index
        errors = np.abs(np.subtract(probability, mask, dtype=np.float64)) ** self.power
        return np.stack([np.where(valid, errors, 0).sum(axis=(1, 2)), valid.sum(axis=(1, 2))], axis=1)

    def per_class(self, evidence: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Error (C,); NaN for a class without pixels that count."""
        total, count = _pool(evidence, weight)
        return ratio(total, count) ** (1 / self.power)

    def reduce(self, evidence: np.ndarray, weight: np.ndarray | None = None) -> float:
        return self.mean_of_classes(self.per_class(evidence, weight), "no pixel counts")

    def prepare(self, evidence: np.ndarray) -> Score:
        return partial(self.reduce, evidence)


@dataclass(frozen=True, kw_only=True)
class PixelMae(PixelMetric):
    """Mean absolute error of each class over the pixels of all images, averaged over the classes."""

    power = 1


@dataclass(frozen=True, kw_only=True)
class PixelRmse(PixelMetric):
    """Root mean squared error of each class over the pixels of all images, averaged over the classes."""

    power = 2


def count_pixels(mask: np.ndarray, answer: np.ndarray, classes: int, ignore_index: int) -> np.ndarray:
    """Count the correct, predicted and true pixels of each class (C, 3).

    Args:
        mask: class numbers (H, W), or a mask per class (C, H, W), true from 0.5 on.
        answer: class numbers (H, W), or bool (C, H, W).
    """
    if mask.ndim == 2:
        return pixel_counts(pixel_confusion(mask, answer, classes, ignore_index))
    if mask.shape != answer.shape:
        raise Refusal(f"the masks are {mask.shape}, but the prediction {answer.shape} (class, height, width)")
    valid = mask != ignore_index
    predicted, true = answer & valid, (mask >= 0.5) & valid
    return np.stack([part.sum(axis=(1, 2)) for part in (predicted & true, predicted, true)], axis=1)


def pixel_confusion(mask: np.ndarray, predicted: np.ndarray, classes: int, ignore_index: int) -> np.ndarray:
    """Count pixels of each (true, predicted) class (C, C) in masks (H, W); Refusal if sizes or values do not match."""
    if mask.shape != predicted.shape:
        raise Refusal(f"the mask is {mask.shape}, but the prediction {predicted.shape} (height, width)")
    valid = mask != ignore_index
    true = mask[valid].astype(np.int64)
    if true.size and true.max() >= classes:
        raise Refusal(f"the mask has the value {true.max()}, but there are only {classes} classes")
    return confusion_matrix(true, predicted[valid], classes)


def pixel_counts(confusion: np.ndarray) -> np.ndarray:
    """Return the correct, predicted and true pixels of each class (C, 3) from a `pixel_confusion`."""
    return np.stack([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)], axis=1)


def _pool(counts: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Sum counts (N, C, K) over images to (K, C), such as correct, predicted, true."""
    weight = np.ones(len(counts)) if weight is None else np.asarray(weight, np.float64)
    return np.einsum("n,nck->kc", weight, np.asarray(counts, np.float64))
