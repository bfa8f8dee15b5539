"""Metrics of one class: the positive one of two, or a single column."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from foldwise.data.problems import some
from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import RowMetric, Score, undefined
from foldwise.predictions.metrics.rows import MeanAveragePrecision

if TYPE_CHECKING:
    from foldwise.data.table import Table


@dataclass(frozen=True, kw_only=True)
class BinaryMetric(RowMetric):
    """Base of metrics of one class.

    Args:
        positive: its name; None: the second of two classes, or the only one.
    """

    positive: str | None = None

    def for_task(self, task: str, classes: Sequence[str], table: "Table | None" = None) -> Self:
        """As `Metric.for_task`; also find the positive class."""
        ready = super().for_task(task, classes, table)
        kind = type(self).__name__
        if self.positive is None and len(ready.classes) > 2:
            raise Refusal(
                f"metric {kind} is of one class, and there are {len(ready.classes)}: set metric.positive to one of "
                f"{some(ready.classes, 10)}, or choose a metric of all classes, such as metric=macro_f1"
            )
        positive = ready.classes[-1] if self.positive is None else str(self.positive)
        if positive not in ready.classes:
            raise Refusal(f"metric.positive is {positive}; it must be one of {some(ready.classes, 20)}")
        return replace(ready, positive=positive)

    @property
    def name(self) -> str:
        return f"{type(self).__name__} of {self.positive}"

    @property
    def column(self) -> int:
        return self.classes.index(str(self.positive))


@dataclass(frozen=True, kw_only=True)
class AveragePrecision(BinaryMetric, MeanAveragePrecision):
    """Precision of the positive class, summed over steps of recall."""

    def mean_of_classes(self, values: np.ndarray, reason: str, first: int = 0) -> float:
        value = float(values[self.column])
        return undefined(f"{self.name} is undefined: {reason}") if np.isnan(value) else value


@dataclass(frozen=True, kw_only=True)
class BinaryCounts(BinaryMetric):
    """Base of metrics of the four counts; the prediction is as in `MacroF1`."""

    threshold: float = 0.5

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        true, predicted = (self.hard(values, self.threshold)[:, self.column] for values in (target, probability))

        def score(weight: np.ndarray) -> float:
            tn, fp, fn, tp = np.bincount(2 * true + predicted, weights=weight, minlength=4).tolist()
            value = self.from_counts(tp, fp, fn, tn)
            return undefined(f"{self.name} is undefined: ground truth lacks a class") if np.isnan(value) else value

        return score

    def from_counts(self, tp: float, fp: float, fn: float, tn: float) -> float:
        """Compute the score from true and false positives and negatives; NaN if it is undefined."""
        raise NotImplementedError


def _share(part: float, whole: float, empty: float = float("nan")) -> float:
    return part / whole if whole else empty


@dataclass(frozen=True, kw_only=True)
class BinaryFBeta(BinaryCounts):
    """F-beta, (1 + b²) tp / ((1 + b²) tp + b² fn + fp)."""

    beta: float = 1.0

    def from_counts(self, tp: float, fp: float, fn: float, tn: float) -> float:
        found = (1 + self.beta**2) * tp
        return _share(found, found + self.beta**2 * fn + fp)


@dataclass(frozen=True, kw_only=True)
class Precision(BinaryCounts):
    """Share of rows predicted as positive that are; 0 if none is predicted, as in scikit-learn."""

    def from_counts(self, tp: float, fp: float, fn: float, tn: float) -> float:
        return _share(tp, tp + fp, 0.0)


@dataclass(frozen=True, kw_only=True)
class Recall(BinaryCounts):
    """Share of positive rows that are predicted as such."""

    def from_counts(self, tp: float, fp: float, fn: float, tn: float) -> float:
        return _share(tp, tp + fn)


@dataclass(frozen=True, kw_only=True)
class BalancedAccuracy(BinaryCounts):
    """Mean of the recall of the positive class and of the rest."""

    def from_counts(self, tp: float, fp: float, fn: float, tn: float) -> float:
        return (_share(tp, tp + fn) + _share(tn, tn + fp)) / 2


@dataclass(frozen=True, kw_only=True)
class Matthews(BinaryCounts):
    """Matthews correlation coefficient; 0 if all rows, or all predictions, are one class, as in scikit-learn."""

    def from_counts(self, tp: float, fp: float, fn: float, tn: float) -> float:
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return _share(tp * tn - fp * fn, product**0.5, 0.0)
