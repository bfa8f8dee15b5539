"""Formats of answers for each row: labels, values of the classes, names in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.predictions.decisions.formats.base import Format
from foldwise.tasks import Kind


@dataclass(frozen=True, kw_only=True)
class Labels(Format):
    """One column of class names."""

    separator: str = " "

    name: ClassVar[str] = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by_class:
            raise Refusal(f"the rows {self.row_id} are of one class each: use --format columns")

    def table(self, ids: Sequence[str], answers: np.ndarray) -> pd.DataFrame:
        """Build the table of answers (N, C) bool."""
        names = np.array(self.written, object)
        text = [self.separator.join(names[row]) or self.empty for row in answers.astype(bool)]
        return pd.DataFrame({self.id_column: self.row_ids(ids), self.value_column: text})


@dataclass(frozen=True, kw_only=True)
class Ranking(Format):
    """One column of names in order; `new` names an individual that is not in the training table."""

    separator: str = " "
    new: str = "new_individual"

    name: ClassVar[str] = "ranking"
    kind: ClassVar[Kind] = "vectors"
    probabilities: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        split = [name for name in (*self.written, self.new) if self.separator in name]
        if split:
            raise Refusal(
                f"the name {split[0]!r} contains the separator {self.separator!r}: choose another --separator"
            )
        if self.new in self.written:
            raise Refusal(
                f"{self.new!r} is a name in the training table: choose another for new individuals with --new"
            )

    def table(self, ids: Sequence[str], answers: Any) -> pd.DataFrame:
        """Build the table of answers, a list of names per image."""
        return pd.DataFrame({self.id_column: self.row_ids(ids), self.value_column: map(self.separator.join, answers)})


@dataclass(frozen=True, kw_only=True)
class ColumnPerClass(Format):
    """One column per class, or a row per class (`row_id`), or with `positive` the values of that class only."""

    positive: str | None = None

    name: ClassVar[str] = "columns"
    probabilities: ClassVar[bool | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_classes([] if self.positive is None else [self.positive])

    @property
    def single(self) -> bool:
        return self.by_class or self.positive is not None

    def table(self, ids: Sequence[str], answers: np.ndarray) -> pd.DataFrame:
        """Build the table of answers (N, C): bool, written as 0 and 1, or probabilities."""
        values = answers.astype(np.int64) if answers.dtype == bool else answers
        if self.by_class:
            values = values.reshape(-1, 1)
        elif self.positive is not None:
            values = values[:, [self.classes.index(self.positive)]]
        frame = pd.DataFrame(values, columns=self.columns[1:])
        frame.insert(0, self.id_column, self.row_ids(ids))
        return frame

    @staticmethod
    def differ(first: str, second: str) -> float:
        return abs(float(first) - float(second))
