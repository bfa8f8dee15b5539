"""Metrics of masks: evidence of one image at a time, so that memory stays flat, and the score of all of it."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import Metric, Score, confusion_matrix, ratio

ABSENT = "neither in the ground truth nor predicted"


@dataclass(frozen=True, kw_only=True)
class MapMetric(Metric):
    """A metric of masks and of the probability of each pixel; pixels whose mask is `ignore_index` do not count."""

    ignore_index: int = 255
    kind = "maps"
    exclusive = True

    def measure(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """The evidence of one image, of the same shape for all: of a mask (H, W) and probability (C, H, W).

        Raises:
            Refusal: they do not fit each other.
        """
        raise NotImplementedError

    def reduce(self, evidence: np.ndarray, weight: np.ndarray | None = None) -> float:
        """The score of the evidence (N, ...) of all images, which may have weights (N,)."""
        raise NotImplementedError

    @property
    def of_counts(self) -> bool:
        """Whether the evidence is the pixel counts: where these are known, nothing needs to be measured."""
        return type(self).measure is CountMetric.measure


@dataclass(frozen=True, kw_only=True)
class CountMetric(MapMetric):
    """A metric whose evidence is the pixel counts (C, 3) of an image."""

    def measure(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        return pixel_counts(pixel_confusion(mask, probability.argmax(axis=0), len(probability), self.ignore_index))


@dataclass(frozen=True, kw_only=True)
class MeanIoU(CountMetric):
    """Intersection over union of each class over the pixels of all images, averaged over the classes that occur."""

    def per_class(self, counts: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """(C,) IoU; NaN for a class that is neither in the ground truth nor predicted."""
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
        per_image: False: over the pixels of all images, and classes that occur nowhere are left out. True: for each
            image and class, then averaged; a class that is neither in the image nor predicted scores 1 there, as
            competitions that score per image count it.
        background: False leaves out class 0.
    """

    per_image: bool = False
    background: bool = False

    def per_class(self, counts: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """(C,) Dice, class 0 included; NaN for a class that occurs nowhere (not with `per_image`)."""
        if not self.per_image:
            correct, predicted, true = _pool(counts, weight)
            return ratio(2 * correct, predicted + true)
        correct, predicted, true = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
        each = np.where(predicted + true > 0, ratio(2 * correct, predicted + true), 1.0)
        if not len(each) or (weight is not None and not weight.any()):
            return np.full(counts.shape[1], np.nan)
        return np.average(each, axis=0, weights=weight)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        return self.mean_of_classes(self.per_class(counts, weight), ABSENT, 0 if self.background else 1)

    def prepare(self, counts: np.ndarray) -> Score:
        return partial(self.reduce, counts)


def pixel_confusion(mask: np.ndarray, predicted: np.ndarray, classes: int, ignore_index: int) -> np.ndarray:
    """(C, C) int64 pixels of each (true, predicted) class; of a mask and class numbers (H, W).

    Raises:
        Refusal: sizes differ, or the mask has a value that is neither a class nor ignored.
    """
    if mask.shape != predicted.shape:
        raise Refusal(f"the mask is {mask.shape} and the prediction {predicted.shape} (height, width)")
    valid = mask != ignore_index
    true = mask[valid].astype(np.int64)
    if true.size and true.max() >= classes:
        raise Refusal(f"the mask has the value {true.max()}, and there are {classes} classes")
    return confusion_matrix(true, predicted[valid], classes)


def pixel_counts(confusion: np.ndarray) -> np.ndarray:
    """(C, 3) pixels of each class: correct, predicted, true; of a `pixel_confusion` (C, C)."""
    return np.stack([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)], axis=1)


def _pool(counts: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """(3, C) sums over the images."""
    weight = np.ones(len(counts)) if weight is None else np.asarray(weight, np.float64)
    return np.einsum("n,nck->kc", weight, np.asarray(counts, np.float64))
