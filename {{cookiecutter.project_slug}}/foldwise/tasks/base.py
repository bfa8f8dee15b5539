"""Base class of tasks, and of metrics and submission formats for tasks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from foldwise.data.fields import Field
from foldwise.data.masks import StoredMasks

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from foldwise.data.problems import Check
    from foldwise.tasks.views import View

Kind = Literal["rows", "maps", "vectors", "boxes"]
REDUCTIONS = ("mean", "max", "noisy_or")  # of the images of a unit


class Task:
    """Meaning of a network's output: everything that differs between tasks.

    Columns (classes) are axis 1 of a batch and axis 0 of an item: (C,) for rows, (C, H, W) for maps.

    Attributes:
        name: in configurations and prediction headers.
        kind: what is stored per item: one row of values, one value per pixel ("maps"), an embedding
            ("vectors"), or any number of boxes ("boxes").
        exclusive: an item or pixel has one class; its probabilities sum to 1.
        probabilities: values are class probabilities, so confusions, calibration and log loss apply.
        column: default target column of a table.
        field: of the target in a sample.
        stored: how target files are read, if targets are masks.
        fewest: minimum number of columns.
        metric: default metric, a file in configs/metric.
        metrics: further metrics of an evaluation, by name.
        transforms: `data.transform` applies to the targets.
        means: of `average`.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = "rows"
    exclusive: ClassVar[bool] = False
    probabilities: ClassVar[bool] = False
    column: ClassVar[str]
    field: ClassVar[Field] = Field("values", train_only=True)
    stored: ClassVar[type[StoredMasks]] = StoredMasks
    fewest: ClassVar[int] = 1
    metric: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ()
    transforms: ClassVar[bool] = False
    means: ClassVar[tuple[str, ...]] = ("arithmetic",)

    def read_target(
        self, raw: "pd.DataFrame", columns: Sequence[str], soft: bool, names: list[str] | None, check: "Check"
    ) -> tuple[list[str] | None, np.ndarray | None]:
        """Read the column names of the output and the targets (N, C) float32; None if targets are files.

        Args:
            columns: target columns of the table `raw`.
            soft: there is one column of values per class.
            names: declared class names; None: those found in the table.
            check: collects problems.
        """
        raise NotImplementedError

    def activate(self, raw: "Tensor") -> "Tensor":
        """Convert raw outputs to values (B, C, ...) float32."""
        raise NotImplementedError

    def invert(self, values: "Tensor", smallest: float) -> "Tensor":
        """Raw outputs of which `activate` gives the values (B, C, ...); 0 counts as `smallest`, and 1 likewise."""
        raise NotImplementedError

    def answer(self, values: np.ndarray) -> np.ndarray:
        """Masks of values (C, H, W) before any post-processing: class numbers (H, W), or bool (C, H, W)."""
        raise NotImplementedError

    def undo(self, value: "Tensor", view: "View", size: Sequence[int]) -> "Tensor":
        """Map values (B, C, ...) of a view back to the image, of (height, width) `size`."""
        return value

    def average(self, values: "Tensor", mean: str) -> "Tensor":
        """Average values (V, B, C, ...) over views, skipping NaN, by a mean of `means`; by any other arithmetically."""
        return values.nanmean(0)

    def of_units(self, values: np.ndarray, unit: Any, how: str) -> np.ndarray:
        """Reduce values (N, C) of images to their units' (U, C), skipping NaN, by one of `REDUCTIONS`.

        The largest, or the probability that any image is positive (noisy-or), is scaled to sum 1 if exclusive.

        Args:
            unit: (N,) numbers of the units, from 0.
        """
        import pandas as pd

        if how == "noisy_or":
            with np.errstate(divide="ignore"):  # of 1
                none = pd.DataFrame(np.log1p(-np.asarray(values, np.float64)))
            reduced = -np.expm1(none.groupby(unit).sum(min_count=1).to_numpy())
        else:
            reduced = getattr(pd.DataFrame(values).groupby(unit), how)().to_numpy()
        return reduced / reduced.sum(axis=1, keepdims=True) if self.exclusive and how != "mean" else reduced

    def problems(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Find bad rows of stored values (N, C): a mask (N,) for each problem, phrased to follow the word "rows"."""
        return {"have NaN": np.isnan(values).any(axis=1)}

    def clip(self, values: np.ndarray) -> np.ndarray:
        """Clip values (N, C) to the task's range, which rounding can exceed."""
        return values

    def count(self, target: np.ndarray) -> np.ndarray:
        """How often each row of targets (N, C) has each column, (N, C) float64; here 1 for a known value."""
        return np.isfinite(target).astype(np.float64)

    def strata(self, target: np.ndarray) -> np.ndarray:
        """Memberships (N, K), 0 or 1, of targets (N, C), to balance folds by; here none."""
        return np.zeros((len(target), 0))

    def fallback(self, target: np.ndarray | None, columns: int) -> np.ndarray:
        """Values (C,) for an item that cannot be read, from the training targets (N, C), or None if these are files."""
        raise NotImplementedError

    def describe_settings(self) -> str:
        """Command-line settings that select this task."""
        return f"task={self.name} metric={self.metric}"

    def __eq__(self, other: object) -> bool:  # no state: equal in every process
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class ForTasks:
    """Base of metrics and submission formats; declares which tasks they work for.

    Attributes:
        kind, exclusive: as in `Task`; exclusive None: both.
        probabilities: only for tasks that predict probabilities; False: only for others; None: both.
    """

    kind: ClassVar[Kind] = "rows"
    exclusive: ClassVar[bool | None] = None
    probabilities: ClassVar[bool | None] = True

    @classmethod
    def suits(cls, task: Task) -> bool:
        fits = cls.exclusive in (None, task.exclusive) and cls.probabilities in (None, task.probabilities)
        return task.kind == cls.kind and fits

    @classmethod
    def tasks(cls) -> list[str]:
        """Names of the tasks it works for."""
        from foldwise.tasks import TASKS

        return [name for name, task in TASKS.items() if cls.suits(task)]
