"""What all metrics share, metrics of rows, and records of rows; see the package's text."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from foldwise.data.problems import some
from foldwise.errors import Refusal
from foldwise.tasks import ForTasks, Task, find_task

if TYPE_CHECKING:
    import pandas as pd

    from foldwise.data.table import Table

EXAMPLES = 1000  # rows of the table that a metric is tried with

Score = Callable[[np.ndarray], float]  # of (N,) weights: how often each row counts


@dataclass(frozen=True, kw_only=True)
class Metric(ForTasks):
    """What all metrics share; for which tasks one is, see `ForTasks`.

    Attributes:
        task, classes, examples: set by `for_task`; the last are some records of the table, see `row_records`.
        greater_is_better: False for losses.
        pooled: True: the score of all folds is that of all rows together; False: the mean over the folds. Metrics
            of ranking are averaged, since each fold's model has its own offset, which ruins a pooled ranking.
    """

    task: Task | None = None
    classes: tuple[str, ...] = ()
    examples: np.ndarray | None = field(default=None, repr=False, compare=False)

    greater_is_better = True
    pooled = True

    def for_task(self, task: str, classes: Sequence[str], table: "Table | None" = None) -> Self:
        """The metric, ready for a task and its classes, or whatever its columns are called.

        Args:
            table: what will be scored, where it is known: to try a metric that reads its columns.

        Raises:
            Refusal: the task does not have this metric; the message names those that it has.
        """
        meaning = find_task(task)
        if not self.suits(meaning):
            from foldwise.predictions.metrics import METRICS  # which are built on this class

            others = ", ".join(sorted(name for name, kind in METRICS.items() if kind.suits(meaning)))
            raise Refusal(
                f"metric {type(self).__name__} is for {' and '.join(self.tasks())}, not for {task}; "
                f"choose one of: {others} (metric=<name>)"
            )
        examples = None if table is None else row_records(table.frame[:EXAMPLES])
        return replace(self, task=meaning, classes=tuple(str(name) for name in classes), examples=examples)

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
class RowMetric(Metric):
    """A metric of (N, C) targets and probabilities, or other values of a task of rows."""

    def __call__(
        self,
        target: np.ndarray,
        probability: np.ndarray,
        weight: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> float:
        """The score; NaN with a warning when there are no rows or a probability is not finite.

        Args:
            weight: (N,), how often each row counts.
            rows: (N,) records of the rows, see `row_records`; few metrics read them.

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
            bad = int((~np.isfinite(probability).all(axis=1)).sum())
            return undefined(f"{type(self).__name__}: {bad} of {len(target)} rows have NaN or infinite probabilities")
        if weight.sum() <= 0:
            return undefined(f"{type(self).__name__} of no rows (or of weights that are all zero) does not exist")
        return float(self._score_rows(target, probability, weight, rows))

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        """The score as a function of the rows' weights; all that does not depend on them is done once.

        A metric has this, or `_score`, or `_score_rows`.
        """
        raise NotImplementedError

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        return self.prepare(target, probability)(weight)

    def _score_rows(
        self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray, rows: np.ndarray | None
    ) -> float:
        """In place of `_score`, for a metric that reads ids or columns of the table."""
        return self._score(target, probability, weight)

    @property
    def reads_rows(self) -> bool:
        """Whether it takes records: without them, repeating rows is ten times as fast."""
        return type(self)._score_rows is not RowMetric._score_rows

    def example_rows(self, count: int) -> np.ndarray | None:
        """So many records of real rows, to try the metric with on made-up values; None where no table is known."""
        return None if self.examples is None else repeat_records(self.examples, np.arange(count) % len(self.examples))

    def hard(self, values: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """(N, C) bool: the largest class of each row (the first of equals), or every class from the threshold on."""
        if self.task is None or self.task.exclusive:
            return np.arange(values.shape[1]) == values.argmax(axis=1)[:, None]
        return values >= threshold


def weighted_mean(values: np.ndarray) -> Score:
    """The mean of values (N,) as a function of their weights; NaN where all weights are 0."""
    return lambda weight: float((values * weight).sum() / weight.sum()) if weight.any() else float("nan")


def confusion_matrix(
    true: np.ndarray, predicted: np.ndarray, classes: int, weight: np.ndarray | None = None
) -> np.ndarray:
    """(C, C) counts of (true, predicted) class, or sums of weights (N,); of class numbers (N,) int64."""
    counts = np.bincount(true * classes + predicted, weights=weight, minlength=classes**2)
    return counts.reshape(classes, classes)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, NaN where it does not exist."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def row_records(frame: "pd.DataFrame") -> np.ndarray:
    """(N,) records of the rows of a table's frame, or (U,) of its units, by their first rows.

    Their fields are `id` and the table's columns: `records["patient"]` is one column. Ids of units are their names.
    """
    if "unit" in frame:
        frame = frame.assign(id=frame["unit"]).drop_duplicates("id")
    return frame.to_records(index=False)


def repeat_records(records: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The records with these numbers (M,), in their order; a row that comes again has the id `<id>#1`, `<id>#2`, ..."""
    result = records[rows].copy()
    order = np.argsort(rows, kind="stable")
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    copy = np.empty(len(rows), np.int64)
    copy[order] = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
    again = copy > 0
    result["id"][again] = [f"{id}#{number}" for id, number in zip(result["id"][again], copy[again], strict=True)]
    return result


def undefined(message: str) -> float:
    """NaN, with a warning that says why."""
    warn(message)
    return float("nan")


def warn(message: str) -> None:
    """Warn of what was left out; never a reason to stop."""
    warnings.warn(message, stacklevel=2)
