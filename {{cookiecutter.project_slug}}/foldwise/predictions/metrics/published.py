"""A competition's own metric function."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from foldwise.data.problems import some
from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import RowMetric, undefined

if TYPE_CHECKING:
    from foldwise.data.table import Table


@dataclass(frozen=True, kw_only=True)
class Published(RowMetric):
    """A competition's published function `score(solution, submission, row_id_column_name) -> float`.

    Both tables have the id column. With `column` null they also have one column per class, with targets or
    probabilities. Otherwise they have one `column` of labels: the class name, or for multi-label the names of all
    classes at or above `threshold`, separated by spaces. Sample weights are ignored. A bootstrap repeats rows under
    distinct ids (`<id>#1` is the first repeat).

    Args:
        function: in a configuration its dotted path, such as `solution.metric.score`.
        columns: further columns of the table for the solution, such as patient or region.
    """

    function: Callable[[Any, Any, str], float]
    row_id_column_name: str = "id"
    column: str | None = None
    columns: Sequence[str] = ()
    threshold: float = 0.5
    greater_is_better: bool = True
    pooled: bool = True
    probabilities = None

    def for_task(self, task: str, classes: Sequence[str], table: "Table | None" = None) -> Self:
        """As `Metric.for_task`; also try the function, so that it fails before training.

        It gets uniform predictions of the table, or else of four made-up rows per class.
        """
        ready = super().for_task(task, classes, table)
        spaced = [name for name in ready.classes if " " in name]
        if self.column is not None and spaced and not (ready.task and ready.task.exclusive):
            raise Refusal(f"metric.column separates labels by spaces, but {some(spaced)} have spaces: rename them")
        target, rows, what = np.tile(np.eye(len(classes)), (4, 1)), None, "a made-up table"
        if table is not None:
            from foldwise.predictions.scoring import by_unit

            missing = [name for name in self.columns if name not in table.frame]
            if missing:
                columns = ", ".join(table.frame)
                raise Refusal(f"metric.columns: {table.path} has no column {some(missing)}; its columns are {columns}")
            every, uniform = np.arange(len(table)), np.zeros((len(table), len(classes)))
            (target, _, _, rows), what = by_unit(table, every, uniform, every), str(table.path)
        elif self.columns:
            return ready  # made-up rows lack these columns
        try:
            float(ready._call(target, np.full(target.shape, 1 / len(classes)), rows))
        except Exception as error:
            raise Refusal(
                f"the published metric {self._name} fails on {what} with the classes "
                f"{some(classes, 10)}: {type(error).__name__}: {error}"
            ) from error
        return ready

    @property
    def _name(self) -> str:
        return re.sub(r"^solution_[0-9a-f]{8}\.", "solution.", f"{self.function.__module__}.{self.function.__name__}")

    def _call(self, target: np.ndarray, probability: np.ndarray, rows: np.ndarray | None) -> float:
        solution, submission = self._table(target, rows), self._table(probability, rows)
        for name in self.columns:
            assert rows is not None
            solution[name] = rows[name]
        return self.function(solution, submission, self.row_id_column_name)

    def _table(self, values: np.ndarray, rows: np.ndarray | None) -> Any:
        import pandas as pd

        names = [self.class_name(index) for index in range(values.shape[1])]
        frame = pd.DataFrame(values, columns=names)
        if self.column is not None:
            chosen = self.hard(values, self.threshold)
            labels = [" ".join(name for name, yes in zip(names, row, strict=True) if yes) for row in chosen]
            frame = pd.DataFrame({self.column: labels})
        frame.insert(0, self.row_id_column_name, np.arange(len(values)) if rows is None else rows["id"])
        return frame

    def _score_rows(
        self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray, rows: np.ndarray | None
    ) -> float:
        try:
            return float(self._call(target, probability, rows))
        except Exception as error:  # somebody else's function; it must not cost a finished training
            return undefined(f"the published metric {self._name} failed: {type(error).__name__}: {error}")
