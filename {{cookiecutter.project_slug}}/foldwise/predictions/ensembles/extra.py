"""Further inputs of stacking: columns of the table, encoded, and the units and groups of the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from foldwise.data.cells import text_column

MOST = 20  # inputs of a column of texts


@dataclass(frozen=True)
class Extra:
    """What stacking knows of N rows besides their predictions.

    Attributes:
        values: (N, F) float32, NaN where unknown.
        units, groups: (N,), equal for rows of one unit, and for rows of one group that one fold's model predicted.
    """

    values: np.ndarray
    units: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame, encoder: "Encoder", group: str | None, folds: np.ndarray | None = None) -> Self:
        """Read the rows of a table; `group` is a column, `folds` (N,) are those of the models that predict."""
        units = frame["unit" if "unit" in frame else "id"].to_numpy(object)
        names = text_column(frame[group]).to_numpy(object) if group else np.full(len(frame), "")
        keys = pd.DataFrame({"group": names, "fold": 0 if folds is None else folds})
        return cls(encoder.encode(frame), units, keys.groupby(["group", "fold"]).ngroup().to_numpy())

    def take(self, rows: Any) -> Self:
        return replace(self, values=self.values[rows], units=self.units[rows], groups=self.groups[rows])

    def beside(self, values: np.ndarray) -> Self:
        """Add further values (N, F)."""
        return replace(self, values=np.hstack([self.values, values]))


@dataclass(frozen=True)
class Encoder:
    """Encodes columns as numbers: standardised ones, NaN where there is none, and texts one-hot.

    Attributes:
        numbers: mean and standard deviation by column.
        texts: by column, the values with an input of their own, and None for the input of all others.
    """

    numbers: Mapping[str, Sequence[float]]
    texts: Mapping[str, Sequence[str | None]]

    @classmethod
    def fit(cls, frame: pd.DataFrame, names: Sequence[str]) -> "Encoder":
        """CSVs are read as text, so a column has numbers if all its values parse as numbers."""
        numbers: dict[str, Sequence[float]] = {}
        texts: dict[str, Sequence[str | None]] = {}
        for name in names:
            written = frame[name].replace("", np.nan).dropna()
            values = pd.to_numeric(written, errors="coerce").to_numpy(np.float64)
            if np.isfinite(values).all():
                numbers[name] = [float(values.mean()), float(values.std()) or 1.0] if len(values) else [0.0, 1.0]
                continue
            found = text_column(frame[name]).value_counts().sort_index()
            common = found.sort_values(ascending=False, kind="stable").index.tolist()
            texts[name] = common if len(common) <= MOST else [*common[: MOST - 1], None]
        return cls(numbers, texts)

    @property
    def columns(self) -> list[str]:
        return [*self.numbers, *self.texts]

    def encode(self, frame: pd.DataFrame) -> np.ndarray:
        """Encode the columns as (N, F) float32."""
        encoded = [np.zeros((len(frame), 0))]
        for name, (mean, deviation) in self.numbers.items():
            values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
            encoded.append((np.where(np.isfinite(values), values, np.nan)[:, None] - mean) / deviation)
        for name, known in self.texts.items():
            own = np.array([value for value in known if value is not None], object)
            same = text_column(frame[name]).to_numpy(object)[:, None] == own
            encoded += [same, ~same.any(axis=1, keepdims=True)] if None in known else [same]
        return np.hstack(encoded).astype(np.float32)
