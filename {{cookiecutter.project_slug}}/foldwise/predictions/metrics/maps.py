"""Metrics of masks. Evidence is gathered one image at a time, so memory stays flat, then reduced to the score."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import Metric, Score, confusion_matrix, ratio

ABSENT = "neither in the ground truth nor predicted"


@dataclass(frozen=True, kw_only=True)
class MapMetric(Metric):
    """Base class of metrics of masks and pixel probabilities; pixels with `ignore_index` do not count."""

    ignore_index: int = 255
    kind = "maps"
    exclusive = True

    def measure(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Return the evidence of a mask (H, W) and a probability (C, H, W); its shape is the same for all images."""
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
    """Base class of metrics whose evidence is an image's pixel counts (C, 3), see `pixel_counts`."""

    def measure(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        return pixel_counts(pixel_confusion(mask, probability.argmax(axis=0), len(probability), self.ignore_index))


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
        background: include class 0.
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
        return self.mean_of_classes(self.per_class(counts, weight), ABSENT, 0 if self.background else 1)

    def prepare(self, counts: np.ndarray) -> Score:
        return partial(self.reduce, counts)


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
    """Sum counts over images: correct, predicted, true (3, C)."""
    weight = np.ones(len(counts)) if weight is None else np.asarray(weight, np.float64)
    return np.einsum("n,nck->kc", weight, np.asarray(counts, np.float64))
