"""A competition's own metric function."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

import foldwise
from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import ClassificationMetric, undefined
from foldwise.predictions.schema import some


@dataclass(frozen=True, kw_only=True)
class Published(ClassificationMetric):
    """A competition's own `score(solution, submission, row_id_column_name) -> float`, as they are published.

    Both tables have the column of row ids (the row numbers) and either one column a class (targets and
    probabilities; `column` null) or one `column` of answers: the class name, or for multi-label the blank-separated
    names of the classes from `threshold` on. Sample weights take no part: published functions have none.

    Args:
        function: the function, or its dotted path (`my_metric.score` for my_metric.py in the repository's root).
    """

    function: str | Callable[[Any, Any, str], float]
    row_id_column_name: str = "id"
    column: str | None = None
    threshold: float = 0.5
    greater_is_better: bool = True
    pooled: bool = True

    def for_task(self, task: str, classes: Sequence[str]) -> Self:
        """As `Metric.for_task`; also tries the function on a made-up table, so that it does not fail after training.

        Raises:
            Refusal: the function is not there, or fails on four rows a class with uniform probabilities.
        """
        ready = super().for_task(task, classes)
        target = np.tile(np.eye(len(classes)), (4, 1))
        try:
            float(ready._call(target, np.full_like(target, 1 / len(classes))))
        except Exception as error:
            raise Refusal(
                f"the published metric {self.function} fails on a made-up table with the classes "
                f"{some(classes, 10)}: {type(error).__name__}: {error}"
            ) from error
        return ready

    def _call(self, target: np.ndarray, probability: np.ndarray) -> float:
        function = _import(self.function) if isinstance(self.function, str) else self.function
        return function(self._table(target), self._table(probability), self.row_id_column_name)

    def _table(self, values: np.ndarray) -> Any:
        import pandas as pd

        names = [self.class_name(index) for index in range(values.shape[1])]
        if self.column is None:
            frame = pd.DataFrame(values, columns=names)
        else:
            rows = self.hard(values, self.threshold)
            answers = [" ".join(name for name, yes in zip(names, row, strict=True) if yes) for row in rows]
            frame = pd.DataFrame({self.column: answers})
        frame.insert(0, self.row_id_column_name, np.arange(len(values)))
        return frame

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        try:
            return float(self._call(target, probability))
        except Exception as error:  # the function is somebody else's, and the training behind it is worth keeping
            return undefined(f"the published metric {self.function} failed: {type(error).__name__}: {error}")


def example_score(solution: Any, submission: Any, row_id_column_name: str) -> float:
    """An example of a published metric: one minus the mean absolute error of the class probabilities."""
    solution, submission = (frame.set_index(row_id_column_name) for frame in (solution, submission))
    return float(1 - (solution - submission.loc[solution.index]).abs().to_numpy().mean())


def _import(path: str) -> Callable[..., Any]:
    """A function of a file of this repository. Nothing else is imported: configurations come from other people too."""
    module, _, name = path.rpartition(".")
    file = Path(foldwise.__file__).parents[1].joinpath(*module.split("."))
    if not module or not (file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()):
        raise Refusal(f"{module or path} is no file of this repository: save the function there, as my_metric.py")
    return getattr(importlib.import_module(module), name)
