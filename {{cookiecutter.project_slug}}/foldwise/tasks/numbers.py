"""Regression: numbers of an image, such as a price, or a length and a width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from foldwise.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from foldwise.data.problems import Check

BINS = 10  # quantiles of each column that folds are balanced by


class Regression(Task):
    """One or more numbers per image; NaN where the table has none."""

    name, column, metric = "regression", "value", "rmse"
    metrics = ("rmse", "mae", "r2")
    transforms = True
    means = ("arithmetic", "median")

    def read_target(
        self, raw: "pd.DataFrame", columns: Sequence[str], soft: bool, names: list[str] | None, check: "Check"
    ) -> tuple[list[str] | None, np.ndarray | None]:
        import pandas as pd

        from foldwise.data.targets import RESERVED_CLASSES

        names = names or list(columns)
        if sorted(names) != sorted(columns):
            check.problems.append(
                f"data.classes ({', '.join(names)}) must be null or the names in data.columns.target "
                f"({', '.join(columns)}), in any order"
            )
            return names, None
        check.problems += [
            f"a target cannot be called {name!r}: prediction files already have a column of that name"
            for name in names
            if name in RESERVED_CLASSES
        ]
        cells = raw[names]
        empty = (cells.isna() | (cells.astype(str).apply(lambda column: column.str.strip()) == "")).to_numpy()
        with np.errstate(over="ignore"):
            target = cells.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64).astype(np.float32)
        bad = ~np.isfinite(target) & ~empty

        for name, wrong in zip(names, bad.T, strict=True):
            text = cells[name].astype(str)
            written = (text.str.contains(",") | text.str.endswith("%")).to_numpy(bool)
            for rows, advice in (
                (wrong & written, "write decimals with a point, and no sign for thousands or percent"),
                (wrong & ~written, "leave the cell empty if it is unknown"),
            ):
                check.cells(rows, cells[name], f"{name} is {{}}, which is no number: {advice}")
        check.problems += [
            f"the column {name!r} has no numbers" for name, none in zip(names, empty.all(axis=0), strict=True) if none
        ]
        return names, target

    def activate(self, raw: "Tensor") -> "Tensor":
        return raw.float()

    def average(self, values: "Tensor", mean: str) -> "Tensor":
        """As `Task.average`; the median is that of each column."""
        return values.nanquantile(0.5, dim=0) if mean == "median" else values.nanmean(0)

    def problems(self, values: np.ndarray) -> dict[str, np.ndarray]:
        return {**super().problems(values), "are infinite": np.isinf(values).any(axis=1)}

    def strata(self, target: np.ndarray) -> np.ndarray:
        """Quantiles of each column, and whether it is missing."""
        members = []
        for column in target.T.astype(np.float64):
            edges = np.nanquantile(column, np.linspace(0, 1, BINS + 1)[1:-1])
            number = np.where(np.isnan(column), BINS, np.searchsorted(edges, column, side="right"))
            members.append(np.eye(BINS + 1)[number])
        found = np.hstack(members)
        return found[:, found.any(axis=0)]

    def fallback(self, target: np.ndarray | None, columns: int) -> np.ndarray:
        """Median of each column in the training table."""
        assert target is not None
        return np.nanmedian(target.astype(np.float64), axis=0)
