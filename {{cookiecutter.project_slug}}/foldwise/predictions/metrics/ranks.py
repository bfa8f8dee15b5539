"""Metrics of retrieval, from the rank of the right name among the names of an image."""

from dataclasses import dataclass

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import Metric, undefined


@dataclass(frozen=True, kw_only=True)
class RankMetric(Metric):
    """Base class of metrics of ranks (N,), counted from 1; images of rank 0, whose name nothing can find, do not count.

    Args:
        k: names that an image is given.
    """

    k: int = 5
    kind = "vectors"
    probabilities = False

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise Refusal(f"metric.k is {self.k!r}; it must be a whole number from 1")

    def gain(self, ranks: np.ndarray) -> np.ndarray:
        """Score of images whose right name has these ranks, 1 to k."""
        raise NotImplementedError

    def reduce(self, ranks: np.ndarray) -> float:
        ranks = ranks[ranks > 0]
        if not len(ranks):
            return undefined(f"{type(self).__name__} is undefined: no image has another one of its identity to find")
        return float(np.where(ranks <= self.k, self.gain(ranks), 0).mean())


@dataclass(frozen=True, kw_only=True)
class MapAtK(RankMetric):
    """Mean average precision of k names of which one is right: 1 / rank (Kaggle's MAP@5 of whales)."""

    def gain(self, ranks: np.ndarray) -> np.ndarray:
        return 1 / ranks


@dataclass(frozen=True, kw_only=True)
class RecallAtK(RankMetric):
    """Share of images whose right name is among k."""

    def gain(self, ranks: np.ndarray) -> np.ndarray:
        return np.ones(len(ranks))
