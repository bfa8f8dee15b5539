"""Metrics of answers and of probabilities, row by row or class by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import RowMetric, confusion_matrix, undefined

if TYPE_CHECKING:
    from foldwise.data.table import Table


@dataclass(frozen=True, kw_only=True)
class Accuracy(RowMetric):
    """Share of rows whose most probable class is the true one."""

    exclusive = True

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        return float(np.average(target.argmax(axis=1) == probability.argmax(axis=1), weights=weight))


@dataclass(frozen=True, kw_only=True)
class LogLoss(RowMetric):
    """Cross-entropy of a row; for multi-label the mean binary cross-entropy over the classes. Lower is better.

    Probabilities are clipped at 1e-15 from 0 and 1, as competitions do, so that one sure mistake is not infinite.
    """

    greater_is_better = False

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        assert self.task is not None
        return float(np.average(cross_entropy(target, probability, self.task.exclusive), weights=weight))


def cross_entropy(target: np.ndarray, probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """(N,) cross-entropy of each row; not exclusive: the mean over the classes. Probabilities are clipped at 1e-15.

    With the probability as its own target it is the entropy, how undecided a row is.
    """
    probability = np.asarray(probability, np.float64).clip(1e-15, 1 - 1e-15)
    if exclusive:
        return -(target * np.log(probability)).sum(axis=1)
    return -(target * np.log(probability) + (1 - target) * np.log1p(-probability)).mean(axis=1)


def is_correct(target: np.ndarray, probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """(N,) whether the likeliest class is the true one; not exclusive: whether all labels are, from 0.5 on."""
    if exclusive:
        return probability.argmax(axis=1) == target.argmax(axis=1)
    return ((probability >= 0.5) == (target >= 0.5)).all(axis=1)


@dataclass(frozen=True, kw_only=True)
class MacroF1(RowMetric):
    """F1 of each class, averaged over the classes that occur in the truth or in the answers.

    Answers are the most probable class, or for multi-label every class from `threshold` on.
    """

    threshold: float = 0.5

    def per_class(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(C,) F1; NaN for a class that occurs neither in the truth nor in the answers."""
        true, answer = self.hard(target), self.hard(probability, self.threshold)
        both = weight @ true + weight @ answer
        return np.divide(2 * (weight @ (true & answer)), both, out=np.full(len(both), np.nan), where=both > 0)

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        return self.mean_of_classes(self.per_class(target, probability, weight), "neither in the truth nor answered")


@dataclass(frozen=True, kw_only=True)
class FBeta(RowMetric):
    """F-beta of each row's set of labels, averaged over the rows (Planet: beta 2).

    (1 + b²) tp / (answered + b² true). An empty truth met by an empty answer scores 1, since nothing was wrong;
    competitions differ here (scikit-learn gives 0), so check yours.
    """

    beta: float = 2.0
    threshold: float = 0.5
    exclusive = False

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        true, answer = self.hard(target), self.hard(probability, self.threshold)
        square = self.beta**2
        below = answer.sum(axis=1) + square * true.sum(axis=1)
        above = (1 + square) * (true & answer).sum(axis=1)
        return float(np.average(np.divide(above, below, out=np.ones(len(below)), where=below > 0), weights=weight))


@dataclass(frozen=True, kw_only=True)
class QuadraticKappa(RowMetric):
    """Cohen's kappa with quadratic weights, for classes that are grades in the order of the class list."""

    exclusive = True

    def for_task(self, task: str, classes: Sequence[str], table: "Table | None" = None) -> Self:
        """As `Metric.for_task`; refuses numbered classes out of order (sorted as text, 10 comes before 2)."""
        numbers = [int(name) for name in map(str, classes) if name.lstrip("-").isdigit()]
        if len(numbers) == len(classes) and numbers != sorted(numbers):
            ordered = ", ".join(f'"{number}"' for number in sorted(numbers))
            raise Refusal(
                f"quadratic kappa needs the classes in the order of the grades, not {', '.join(map(str, classes))}; "
                f"list them in configs/data: classes: [{ordered}]"
            )
        return super().for_task(task, classes, table)

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        true, answer, count = target.argmax(axis=1), probability.argmax(axis=1), target.shape[1]
        confusion = confusion_matrix(true, answer, count, weight)
        distance = np.subtract.outer(np.arange(count), np.arange(count)) ** 2
        expected = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / confusion.sum()
        if not (distance * expected).sum():
            return undefined("QuadraticKappa does not exist: the truth and the answers are all one class")
        return float(1 - (distance * confusion).sum() / (distance * expected).sum())
