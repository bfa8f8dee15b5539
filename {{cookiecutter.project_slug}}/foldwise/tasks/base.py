"""Base of tasks, and of what is made for tasks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from foldwise.data.fields import Field

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from foldwise.data.problems import Check
    from foldwise.tasks.views import View

Kind = Literal["rows", "maps", "vectors", "boxes"]


class Task:
    """Meaning of an output: everything that differs between tasks.

    A task knows neither Lightning nor where values come from. Arrays have the columns (classes) in axis 1 of a batch,
    so in axis 0 of one item: (C,) for rows, (C, H, W) for maps.

    Attributes:
        name: as configurations and headers write it.
        kind: what is stored of an item: a row of values, or a map of values a pixel.
        exclusive: the values over the columns sum to 1.
        probabilities: the values are probabilities of the columns, so that there are confusions, calibration, log loss.
        column: the usual target column of a table.
        field: of the target in a sample.
        fewest: columns that there must be.
        metric: the usual one, by its file in configs/metric.
        metrics: names by which an evaluation measures it beside the competition's metric.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = "rows"
    exclusive: ClassVar[bool] = False
    probabilities: ClassVar[bool] = False
    column: ClassVar[str]
    field: ClassVar[Field] = Field("values", train_only=True)
    fewest: ClassVar[int] = 1
    metric: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ()

    def read_target(
        self, raw: "pd.DataFrame", columns: Sequence[str], soft: bool, names: list[str] | None, check: "Check"
    ) -> tuple[list[str] | None, np.ndarray | None]:
        """The names of the output's columns, and the targets (N, C) float32; None where a target is a file.

        Args:
            raw: the table.
            columns: its target columns, which are there.
            soft: one column of values a class.
            names: declared names; None: as they are found.
            check: takes what is wrong.
        """
        raise NotImplementedError

    def activate(self, raw: "Tensor") -> "Tensor":
        """Values (B, C, ...), float32, of a raw output."""
        raise NotImplementedError

    def undo(self, value: "Tensor", view: "View", size: Sequence[int]) -> "Tensor":
        """Turn values (B, C, ...) of a view into those of the image, whose (height, width) is `size`."""
        return value

    def average(self, values: "Tensor", mean: str) -> "Tensor":
        """The mean of values (V, B, C, ...) over views; NaN takes no part.

        Args:
            mean: "arithmetic", or "geometric" of probabilities.
        """
        return values.nanmean(0)

    def problems(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Problems of stored values (N, C): phrases to follow "rows", with the mask (N,) of the rows."""
        return {"have NaN": np.isnan(values).any(axis=1)}

    def clip(self, values: np.ndarray) -> np.ndarray:
        """Values (N, C) within the task's range, which rounding can leave."""
        return values

    def fallback(self, target: np.ndarray | None, columns: int) -> np.ndarray:
        """(C,) values for an item that cannot be read, from the training targets (N, C), None where they are files."""
        raise NotImplementedError

    def describe_settings(self) -> str:
        """The settings to add for this task."""
        return f"task={self.name} metric={self.metric}"

    def __eq__(self, other: object) -> bool:  # no state: equal in every process
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class ForTasks:
    """Base of metrics and submission formats: which tasks they are for.

    Attributes:
        kind, exclusive: of the tasks; exclusive None: either.
        probabilities: only for tasks whose values are probabilities.
    """

    kind: ClassVar[Kind] = "rows"
    exclusive: ClassVar[bool | None] = None
    probabilities: ClassVar[bool] = True

    @classmethod
    def suits(cls, task: Task) -> bool:
        probable = task.probabilities or not cls.probabilities
        return task.kind == cls.kind and cls.exclusive in (None, task.exclusive) and probable

    @classmethod
    def tasks(cls) -> list[str]:
        """The names of the tasks that it is for."""
        from foldwise.tasks import TASKS

        return [name for name, task in TASKS.items() if cls.suits(task)]
