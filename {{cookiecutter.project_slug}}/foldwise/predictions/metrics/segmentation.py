"""Metrics of pixel counts."""

from dataclasses import dataclass

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import Metric, confusion_matrix


@dataclass(frozen=True, kw_only=True)
class SegmentationMetric(Metric):
    """A metric of pixel counts; pixels whose mask is `ignore_index` do not count."""

    ignore_index: int = 255
    tasks = ("segmentation",)

    def counts(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """(C, 3) int64 pixels of each class: right, answered, true; of a mask (H, W) and probability (C, H, W).

        Raises:
            Refusal: sizes differ, or the mask has a value that is neither a class nor ignored.
        """
        count = len(probability)
        if mask.shape != probability.shape[1:]:
            raise Refusal(f"the mask is {mask.shape} and the prediction {probability.shape[1:]} (height, width)")
        valid = mask != self.ignore_index
        true, answer = mask[valid].astype(np.int64), probability.argmax(axis=0)[valid]
        if true.size and true.max() >= count:
            raise Refusal(f"the mask has the value {true.max()}, and there are {count} classes")
        confusion = confusion_matrix(true, answer, count)
        return np.stack([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)], axis=1)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        """The score of (N, C, 3) counts, and (N,) weights of the images."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MeanIoU(SegmentationMetric):
    """Intersection over union of each class over the pixels of all images, averaged over the classes that occur."""

    def per_class(self, counts: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """(C,) IoU; NaN for a class that occurs neither in the truth nor in the answers."""
        right, answered, true = _pool(counts, weight)
        return _ratio(right, answered + true - right)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        return self.mean_of_classes(self.per_class(counts, weight), "neither in the truth nor answered")


@dataclass(frozen=True, kw_only=True)
class Dice(SegmentationMetric):
    """Dice coefficient 2 right / (answered + true) of each class, averaged over the classes.

    Args:
        per_image: False: over the pixels of all images, and classes that occur nowhere are left out. True: for each
            image and class, then averaged; a class that is neither in the image nor answered scores 1 there, as
            competitions that score per image count it.
        background: False leaves out class 0.
    """

    per_image: bool = False
    background: bool = False

    def per_class(self, counts: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """(C,) Dice, class 0 included; NaN for a class that occurs nowhere (not with `per_image`)."""
        if not self.per_image:
            right, answered, true = _pool(counts, weight)
            return _ratio(2 * right, answered + true)
        right, answered, true = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
        each = np.where(answered + true > 0, _ratio(2 * right, answered + true), 1.0)
        return np.average(each, axis=0, weights=weight) if len(each) else np.full(counts.shape[1], np.nan)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        first = 0 if self.background else 1
        return self.mean_of_classes(self.per_class(counts, weight), "neither in the truth nor answered", first)


def _pool(counts: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """(3, C) sums over the images."""
    weight = np.ones(len(counts)) if weight is None else np.asarray(weight, np.float64)
    return np.einsum("n,nck->kc", weight, np.asarray(counts, np.float64))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
