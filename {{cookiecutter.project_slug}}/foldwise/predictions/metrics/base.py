"""What all metrics share, and classification metrics; see the package's text."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.schema import some

CLASSIFICATION = ("multiclass", "multilabel")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What all metrics share.

    Attributes:
        task, classes: set by `for_task`.
        greater_is_better: False for losses.
        pooled: True: the score of all folds is that of all rows together; False: the mean over the folds. Metrics
            of ranking are averaged, since each fold's model has its own offset, which ruins a pooled ranking.
        tasks: the tasks that have the metric.
    """

    task: str | None = None
    classes: tuple[str, ...] = ()

    greater_is_better = True
    pooled = True
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION

    def for_task(self, task: str, classes: Sequence[str]) -> Self:
        """The metric, ready for a task and its classes.

        Raises:
            Refusal: the task does not have this metric; the message names those that it has.
        """
        if task not in self.tasks:
            from foldwise.predictions.metrics import METRICS  # which are built on this class

            others = ", ".join(sorted(name for name, kind in METRICS.items() if task in kind.tasks))
            raise Refusal(
                f"metric {type(self).__name__} is for {' and '.join(self.tasks)}, not for {task}; "
                f"choose one of: {others} (metric=<name>)"
            )
        return replace(self, task=task, classes=tuple(str(name) for name in classes))

    def class_name(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else str(index)

    def mean_of_classes(self, values: np.ndarray, reason: str, first: int = 0) -> float:
        """Mean of (C,) values from class `first` on, without the NaN ones: a warning names them with the `reason`."""
        missing = [self.class_name(first + index) for index in np.flatnonzero(np.isnan(values[first:])).tolist()]
        scored = len(values) - first
        if missing:
            warn(f"{type(self).__name__} leaves out {len(missing)} of {scored} classes ({reason}): {some(missing, 10)}")
        return float(np.nanmean(values[first:])) if len(missing) < scored else float("nan")


@dataclass(frozen=True, kw_only=True)
class ClassificationMetric(Metric):
    """A metric of (N, C) targets and probabilities."""

    def __call__(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:
        """The score; NaN with a warning when there are no rows or a probability is not finite.

        Raises:
            Refusal: shapes differ, or `for_task` was not called.
        """
        target, probability = np.asarray(target, np.float64), np.asarray(probability, np.float64)
        if self.task is None:
            raise Refusal(f"{type(self).__name__} does not know its task; call metric.for_task(task, classes) first")
        if target.ndim != 2 or target.shape != probability.shape:
            raise Refusal(f"targets {target.shape} and probabilities {probability.shape} are not both (N, C)")
        weight = np.ones(len(target)) if weight is None else np.asarray(weight, np.float64)
        if weight.shape != (len(target),):
            raise Refusal(f"{len(target)} targets have weights of shape {weight.shape}")
        if not np.isfinite(probability).all():
            rows = int((~np.isfinite(probability).all(axis=1)).sum())
            return undefined(f"{type(self).__name__}: {rows} of {len(target)} rows have NaN or infinite probabilities")
        if weight.sum() <= 0:
            return undefined(f"{type(self).__name__} of no rows (or of weights that are all zero) does not exist")
        return float(self._score(target, probability, weight))

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        raise NotImplementedError

    def hard(self, values: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """(N, C) bool: the largest class of each row (the first of equals), or every class from the threshold on."""
        if self.task == "multilabel":
            return values >= threshold
        return np.arange(values.shape[1]) == values.argmax(axis=1)[:, None]


def confusion_matrix(
    true: np.ndarray, answer: np.ndarray, classes: int, weight: np.ndarray | None = None
) -> np.ndarray:
    """(C, C) counts of (true, answered) class, or sums of weights (N,); of class numbers (N,) int64."""
    return np.bincount(true * classes + answer, weights=weight, minlength=classes**2).reshape(classes, classes)


def undefined(message: str) -> float:
    """NaN, with a warning that says why."""
    warn(message)
    return float("nan")


def warn(message: str) -> None:
    """Say what was left out; never a reason to stop."""
    warnings.warn(message, stacklevel=2)
