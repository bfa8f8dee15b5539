"""Base class of submission formats."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.tasks import ForTasks


@dataclass(frozen=True, kw_only=True)
class Format(ForTasks):
    """Base of the formats.

    Args:
        value_column: name of the column beside the ids, for formats with a single one.
        empty: text of an empty answer (no labels, or a mask without pixels).
        names: of the classes in the file; empty: `classes`.
        row_id: template of row ids with {id}; with {class} (its name) or {index} (its number) a row per class.
    """

    classes: Sequence[str]
    id_column: str = "id"
    value_column: str = "label"
    empty: str = ""
    names: Sequence[str] = ()
    row_id: str | None = None

    name: ClassVar[str]
    suffix: ClassVar[str] = ".csv"

    def __post_init__(self) -> None:
        try:
            self.row_ids(["1"])
        except (KeyError, ValueError, IndexError) as error:
            raise Refusal(f"--row-id {self.row_id!r}: the placeholders are {{id}}, {{class}} and {{index}}") from error
        if "{id}" not in self.template:
            raise Refusal(f"--row-id {self.row_id!r} has no {{id}}, so that all images would have the same rows")

    @property
    def written(self) -> list[str]:
        """Names of the classes in the file."""
        return list(self.names or self.classes)

    @property
    def single(self) -> bool:
        """Whether there is one column beside the ids."""
        return True

    @property
    def columns(self) -> list[str]:
        return [self.id_column, *([self.value_column] if self.single else self.written)]

    @property
    def template(self) -> str:
        return self.row_id or "{id}"

    @property
    def by_class(self) -> bool:
        """Whether there is a row for each class."""
        return "{class}" in self.template or "{index}" in self.template

    def row_ids(self, ids: Sequence[str]) -> list[str]:
        """Return the row ids of the file for the predicted ids."""
        indices = self._indices if self.by_class else [0]
        return [
            self.template.format_map({"id": id, "class": self.written[index], "index": index})
            for id in ids
            for index in indices
        ]

    @property
    def _indices(self) -> list[int]:
        """Classes that have rows, if rows are by class."""
        return list(range(len(self.classes)))

    def fill(self, rows: Sequence[str], answer: np.ndarray) -> pd.DataFrame:
        """Build the table of the same answer (1, C) for rows of these ids, which are not of predicted images."""
        if not self.by_class:
            return replace(self, row_id=None).table(rows, np.repeat(answer, len(rows), axis=0))
        ends = [row.rpartition("\0")[2] for row in self.row_ids(["\0"])]
        order = sorted(range(len(ends)), key=lambda index: -len(ends[index]))
        classes = [next((index for index in order if row.endswith(ends[index])), 0) for row in rows]
        return pd.DataFrame({self.id_column: list(rows), self.value_column: answer[0, classes]})

    def table(self, ids: Sequence[str], answers: np.ndarray) -> pd.DataFrame:
        """Build the table of the answers (N, C) of predicted ids; for formats of rows."""
        raise NotImplementedError

    def id_problems(self, ids: Sequence[str]) -> list[str]:
        """Describe ids that the format cannot write."""
        return []

    @staticmethod
    def differ(first: str, second: str) -> float:
        """Distance between two cells, 0 to 1; here of their sets of words."""
        return jaccard_distance(first.split(), second.split())

    def check_classes(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.classes:
                raise Refusal(f"there is no class {name}; the classes are {', '.join(self.classes)}")


def jaccard_distance(first: Any, second: Any) -> float:
    both = len(np.intersect1d(first, second))
    either = len(first) + len(second) - both
    return 1 - both / either if either else 0.0
