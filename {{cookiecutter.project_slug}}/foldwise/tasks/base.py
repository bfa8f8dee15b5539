"""What all tasks share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from foldwise.data.fields import Field

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from foldwise.data.problems import Check
    from foldwise.inference.views import View

Kind = Literal["rows", "maps", "vectors", "boxes"]


class Task:
    """What an output means: everything that differs between tasks, and nothing that a task could share with others.

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
        libraries: of networks that give such an output, see `models.networks`.
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
    libraries: ClassVar[tuple[str, ...]] = ("timm",)

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
        """The values that a raw output (B, C, ...) means, float32."""
        raise NotImplementedError

    def undo(self, value: "Tensor", view: "View", size: Sequence[int]) -> "Tensor":
        """The values (B, C, ...) of a view as those of the image, whose (height, width) is `size`."""
        return value

    def average(self, values: "Tensor", mean: str) -> "Tensor":
        """The mean of values (V, B, C, ...) over views; NaN takes no part.

        Args:
            mean: "arithmetic", or "geometric" of probabilities.
        """
        return values.nanmean(0)

    def problems(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """What cannot be right in stored values (N, C), as a phrase after "rows": which of them (N,) bool."""
        return {"have NaN": np.isnan(values).any(axis=1)}

    def clip(self, values: np.ndarray) -> np.ndarray:
        """Values (N, C) without what rounding added to them."""
        return values

    def fallback(self, target: np.ndarray | None, columns: int) -> np.ndarray:
        """(C,) values for an item that cannot be read, from the training targets (N, C), None where they are files."""
        raise NotImplementedError

    def describe_settings(self) -> str:
        """What to type for this task, after "add"."""
        return f"task={self.name} metric={self.metric}"

    def __reduce__(self) -> Any:
        return type(self), ()  # no state: equal in every process

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class ForTasks:
    """A metric, a submission format: what serves tasks of one kind.

    Attributes:
        kind: of the tasks.
        exclusive: which the tasks must be, or must not be; None: either.
        probabilities: only for tasks whose values are probabilities.
    """

    kind: ClassVar[Kind] = "rows"
    exclusive: ClassVar[bool | None] = None
    probabilities: ClassVar[bool] = True

    @classmethod
    def suits(cls, task: Task) -> bool:
        """Whether it can be used for a task."""
        return (
            task.kind == cls.kind
            and cls.exclusive in (None, task.exclusive)
            and (task.probabilities or not cls.probabilities)
        )

    @classmethod
    def tasks(cls) -> list[str]:
        """The names of the tasks that it suits."""
        from foldwise.tasks import TASKS

        return [name for name, task in TASKS.items() if cls.suits(task)]
