"""Row metrics: of predicted classes, of probabilities, and of rankings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from foldwise.data.targets import check_order
from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import RowMetric, Score, confusion_matrix, ratio, undefined, weighted_mean

if TYPE_CHECKING:
    from foldwise.data.table import Table
    from foldwise.tasks import Task

MOST_GRADES = 100


@dataclass(frozen=True, kw_only=True)
class Accuracy(RowMetric):
    """Share of rows whose most probable class is the true one."""

    exclusive = True

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        return weighted_mean(target.argmax(axis=1) == probability.argmax(axis=1))


@dataclass(frozen=True, kw_only=True)
class LogLoss(RowMetric):
    """Mean cross-entropy of rows; for multi-label the mean binary cross-entropy over the classes.

    Probabilities are clipped to [1e-15, 1 - 1e-15], as in competitions, so that one confident mistake is not infinite.
    """

    greater_is_better = False

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        assert self.task is not None
        return weighted_mean(cross_entropy(target, probability, self.task.exclusive))


def cross_entropy(target: np.ndarray, probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """Cross-entropy of each row (N,); if not exclusive, mean binary cross-entropy. Probabilities are clipped at 1e-15.

    With `target` = `probability` this is the entropy.
    """
    probability = np.asarray(probability, np.float64).clip(1e-15, 1 - 1e-15)
    if exclusive:
        return -(target * np.log(probability)).sum(axis=1)
    return -(target * np.log(probability) + (1 - target) * np.log1p(-probability)).mean(axis=1)


def is_correct(target: np.ndarray, probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """Whether each row (N,) is correct: its argmax; if not exclusive, all its labels at threshold 0.5."""
    if exclusive:
        return probability.argmax(axis=1) == target.argmax(axis=1)
    return ((probability >= 0.5) == (target >= 0.5)).all(axis=1)


@dataclass(frozen=True, kw_only=True)
class MacroF1(RowMetric):
    """F1 of each class, averaged over the classes that occur in the ground truth or are predicted.

    The prediction is the argmax, or for multi-label every class at or above `threshold`.
    """

    threshold: float = 0.5

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        # Rows with equal labels and predictions are merged, and their weights added.
        pairs = np.hstack([self.hard(target), self.hard(probability, self.threshold)])
        _, first, index = np.unique(np.packbits(pairs, axis=1), axis=0, return_index=True, return_inverse=True)
        true, predicted = np.hsplit(pairs[first].astype(np.float64), 2)

        def score(weight: np.ndarray) -> float:
            weight = np.bincount(index.ravel(), weights=weight, minlength=len(first))
            f1 = ratio(2 * (weight @ (true * predicted)), weight @ true + weight @ predicted)
            return self.mean_of_classes(f1, "neither in the ground truth nor predicted")

        return score


@dataclass(frozen=True, kw_only=True)
class FBeta(RowMetric):
    """F-beta of each row's labels, (1 + b²) tp / (predicted + b² true), averaged over the rows (Planet: beta 2).

    A row without labels and without predictions scores 1. Competitions differ here (scikit-learn gives 0): check yours.
    """

    beta: float = 2.0
    threshold: float = 0.5
    exclusive = False

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        true, predicted = self.hard(target), self.hard(probability, self.threshold)
        square = self.beta**2
        denominator = predicted.sum(axis=1) + square * true.sum(axis=1)
        numerator = (1 + square) * (true & predicted).sum(axis=1)
        return weighted_mean(np.divide(numerator, denominator, out=np.ones(len(true)), where=denominator > 0))


@dataclass(frozen=True, kw_only=True)
class QuadraticKappa(RowMetric):
    """Cohen's kappa with quadratic weights, for classes that are ordered grades.

    Numbers are rounded to the nearest grade, a whole number, of each column.
    """

    exclusive = True

    @classmethod
    def suits(cls, task: "Task") -> bool:
        return super().suits(task) or task.transforms

    def for_task(self, task: str, classes: Sequence[str], table: "Table | None" = None) -> Self:
        """As `Metric.for_task`; also refuse classes out of order, and numbers that are no grades."""
        ready = super().for_task(task, classes, table)
        if ready.task is not None and not ready.task.exclusive:
            target = None if table is None else table.target
            if target is not None and not _are_grades(target):
                raise Refusal(
                    f"quadratic kappa is for grades, whole numbers of at most {MOST_GRADES} values, and the targets "
                    "are others: choose metric=rmse or another for numbers"
                )
            return ready
        check_order("quadratic kappa", ready.classes, table is None or table.ordered)
        return ready

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        if self.task is None or self.task.exclusive:
            return self._of_grades(target.argmax(axis=1), probability.argmax(axis=1), target.shape[1])

        def column(true: np.ndarray, predicted: np.ndarray) -> Score:
            first, last = (int(true.min()), int(true.max())) if len(true) else (0, 0)
            grade = np.round(predicted).clip(first, last)
            return self._of_grades((true - first).astype(int), (grade - first).astype(int), last - first + 1)

        return self.of_columns(target, probability, column, "all grades are equal")

    def _of_grades(self, true: np.ndarray, predicted: np.ndarray, count: int) -> Score:
        distance = np.subtract.outer(np.arange(count), np.arange(count)) ** 2

        def score(weight: np.ndarray) -> float:
            confusion = confusion_matrix(true, predicted, count, weight)
            expected = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / max(confusion.sum(), 1e-300)
            if not (distance * expected).sum():
                return undefined("QuadraticKappa is undefined: ground truth and predictions are all one class")
            return float(1 - (distance * confusion).sum() / (distance * expected).sum())

        return score


def _are_grades(target: np.ndarray) -> bool:
    known = target[np.isfinite(target)]
    spread = np.nanmax(target, axis=0) - np.nanmin(target, axis=0)
    return bool((known == np.round(known)).all() and spread.max() < MOST_GRADES)


@dataclass(frozen=True, kw_only=True)
class RocAuc(RowMetric):
    """Area under the ROC curve of each class against the rest, averaged over the classes."""

    pooled = False

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        return _mean_by_levels(self, target, probability, _area, "all rows have it, or none")


@dataclass(frozen=True, kw_only=True)
class MeanAveragePrecision(RowMetric):
    """Average precision of each class (precision summed over steps of recall), averaged over the classes."""

    pooled = False

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        return _mean_by_levels(self, target, probability, _average_precision, "no row has it")


def _mean_by_levels(
    metric: RowMetric,
    target: np.ndarray,
    probability: np.ndarray,
    value: Callable[[np.ndarray, np.ndarray], float],
    reason: str,
) -> Score:
    """Mean over the classes of `value(positive, every)`; NaN is left out with a warning that gives the `reason`.

    Both arguments sum the weights at each distinct probability, in ascending order: of positive rows and of every row.
    """

    def of_class(true: np.ndarray, values: np.ndarray) -> Score:
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
        return lambda weight: value(
            np.add.reduceat((weight * true)[order], starts), np.add.reduceat(weight[order], starts)
        )

    classes = [of_class(*columns) for columns in zip(metric.hard(target).T, np.asarray(probability).T, strict=True)]
    return lambda weight: metric.mean_of_classes(np.array([score(weight) for score in classes]), reason)


def _area(positive: np.ndarray, every: np.ndarray) -> float:
    negative = every - positive
    pairs = positive.sum() * negative.sum()  # ties count half
    return float(positive @ (np.cumsum(negative) - negative / 2) / pairs) if pairs else float("nan")


def _average_precision(positive: np.ndarray, every: np.ndarray) -> float:
    if not positive.sum():
        return float("nan")
    found, predicted = np.cumsum(positive[::-1]), np.cumsum(every[::-1])  # from the highest level down
    precision = np.divide(found, predicted, out=np.zeros(len(found)), where=predicted > 0)
    return float(positive[::-1] @ precision / positive.sum())
