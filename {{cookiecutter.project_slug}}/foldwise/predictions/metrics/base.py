"""Base classes of metrics, and table rows as records."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from foldwise.data.problems import enumerated, some
from foldwise.errors import Note, Refusal
from foldwise.tasks import ForTasks, Task, find_task

if TYPE_CHECKING:
    import pandas as pd

    from foldwise.data.table import Table

EXAMPLES = 1000  # table rows to try a metric on

Score = Callable[[np.ndarray], float]  # from weights (N,), how often each row counts, to the score


@dataclass(frozen=True, kw_only=True)
class Metric(ForTasks):
    """Base class of all metrics; `ForTasks` declares the tasks.

    Attributes:
        task, classes, examples: set by `for_task`; examples are records of table rows, see `row_records`.
        pooled: True scores the rows of all folds together, False averages the folds' scores. Ranking metrics are
            averaged: each fold's model has a different offset, which ruins a pooled ranking.
    """

    task: Task | None = None
    classes: tuple[str, ...] = ()
    examples: np.ndarray | None = field(default=None, repr=False, compare=False)

    greater_is_better = True
    pooled = True

    def for_task(self, task: str, classes: Sequence[str], table: "Table | None" = None) -> Self:
        """Return the metric set up for a task and its classes or columns; refuse a task that it does not suit.

        Args:
            table: the table to score, if known; a metric that reads its columns is tried on it.
        """
        meaning = find_task(task)
        if not self.suits(meaning):
            from foldwise.predictions.metrics import METRICS  # circular at module level

            others = ", ".join(sorted(name for name, kind in METRICS.items() if kind.suits(meaning)))
            raise Refusal(
                f"metric {type(self).__name__} is for {enumerated(self.tasks())}, not for {task}; "
                f"choose one of: {others} (metric=<name>)"
            )
        examples = None if table is None else row_records(table.frame[:EXAMPLES])
        return replace(self, task=meaning, classes=tuple(str(name) for name in classes), examples=examples)

    @property
    def name(self) -> str:
        """Name in outputs and reports."""
        return type(self).__name__

    def class_name(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else str(index)

    def mean_of_classes(self, values: np.ndarray, reason: str, first: int = 0) -> float:
        """Average values (C,) from class `first` on; leave out NaN with a warning that gives the `reason`."""
        missing = [self.class_name(first + index) for index in np.flatnonzero(np.isnan(values[first:])).tolist()]
        scored = len(values) - first
        if missing:
            warn(f"{type(self).__name__} leaves out {len(missing)} of {scored} classes ({reason}): {some(missing, 10)}")
        return float(np.nanmean(values[first:])) if len(missing) < scored else float("nan")


@dataclass(frozen=True, kw_only=True)
class RowMetric(Metric):
    """Base class of metrics of (N, C) targets and probabilities, or other values of a row task."""

    def __call__(
        self,
        target: np.ndarray,
        probability: np.ndarray,
        weight: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> float:
        """Return the score; NaN with a warning if there are no rows or a probability is not finite.

        Args:
            weight: (N,), how often each row counts.
            rows: (N,) records, see `row_records`; few metrics read them.
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
            bad = int((~np.isfinite(probability).all(axis=1)).sum())
            return undefined(f"{type(self).__name__}: {bad} of {len(target)} rows have NaN or infinite probabilities")
        if weight.sum() <= 0:
            return undefined(f"{type(self).__name__} is undefined: no rows, or all weights are zero")
        return float(self._score_rows(target, probability, weight, rows))

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        """Return the score as a function of row weights, for fast bootstraps; all other work is done once.

        A metric implements this, `_score` or `_score_rows`.
        """
        raise NotImplementedError

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        return self.prepare(target, probability)(weight)

    def _score_rows(
        self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray, rows: np.ndarray | None
    ) -> float:
        """Override instead of `_score` to read ids or columns of the table."""
        return self._score(target, probability, weight)

    def of_columns(
        self,
        target: np.ndarray,
        predicted: np.ndarray,
        column: Callable[[np.ndarray, np.ndarray], Score],
        reason: str = "no known targets",
    ) -> Score:
        """For numbers: return the mean over columns of `column(target, predicted)`, each a function of row weights.

        Rows without a known target are left out of their column; `reason` explains a score of NaN.
        """
        known = [np.flatnonzero(np.isfinite(values)) for values in target.T]
        scores = [column(target[rows, index], predicted[rows, index]) for index, rows in enumerate(known)]

        def score(weight: np.ndarray) -> float:
            pairs = zip(scores, known, strict=True)
            values = [of(weight[rows]) if weight[rows].any() else np.nan for of, rows in pairs]
            return self.mean_of_classes(np.array(values), reason)

        return score

    def example_rows(self, count: int) -> np.ndarray | None:
        """Return `count` records of real rows to try the metric on; None without a table."""
        return None if self.examples is None else repeat_records(self.examples, np.arange(count) % len(self.examples))

    def hard(self, values: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """Predicted labels (N, C) bool: the argmax of each row; for multi-label every class at or above `threshold`."""
        if self.task is None or self.task.exclusive:
            return np.arange(values.shape[1]) == values.argmax(axis=1)[:, None]
        return values >= threshold


def weighted_mean(values: np.ndarray) -> Score:
    """Return the mean of values (N,) as a function of their weights; NaN if all weights are 0."""
    return lambda weight: float((values * weight).sum() / weight.sum()) if weight.any() else float("nan")


def confusion_matrix(
    true: np.ndarray, predicted: np.ndarray, classes: int, weight: np.ndarray | None = None
) -> np.ndarray:
    """Count (true, predicted) pairs of class indices (N,) int64 as (C, C), or sum their weights."""
    counts = np.bincount(true * classes + predicted, weights=weight, minlength=classes**2)
    return counts.reshape(classes, classes)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)


def row_records(frame: "pd.DataFrame") -> np.ndarray:
    """Convert a table's frame to records (N,), or (U,) if it has units: the first row of each, with the unit as id.

    Fields are `id` and the table's columns, so `records["patient"]` is one column.
    """
    if "unit" in frame:
        frame = frame.assign(id=frame["unit"]).drop_duplicates("id")
    return frame.to_records(index=False)


def repeat_records(records: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Select records by index (M,); repeats of a row get the ids `<id>#1`, `<id>#2`, ..."""
    result = records[rows].copy()
    order = np.argsort(rows, kind="stable")
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    copy = np.empty(len(rows), np.int64)
    copy[order] = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
    again = copy > 0
    result["id"][again] = [f"{id}#{number}" for id, number in zip(result["id"][again], copy[again], strict=True)]
    return result


def undefined(message: str) -> float:
    """Return NaN after a warning."""
    warn(message)
    return float("nan")


def warn(message: str) -> None:
    warnings.warn(message, Note, stacklevel=2)
