"""Submission formats: columns, rows, and a distance between answers.

labels     id and one column: the class, or labels with a separator
columns    id and one column a class: probabilities or other values, or 0 and 1; or one column for one class
rle        id and run-length encoded masks, a row for each image and class
masks      a zip of PNG masks <id>.png, whose pixel values are the class numbers
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.tasks import ForTasks, Kind


@dataclass(frozen=True, kw_only=True)
class Format(ForTasks):
    """Base of the formats.

    Args:
        value_column: name of the column beside the ids, for formats with a single one.
        empty: text of an empty answer (no labels, or a mask without pixels).
    """

    classes: Sequence[str]
    id_column: str = "id"
    value_column: str = "label"
    empty: str = ""

    name: ClassVar[str]
    suffix: ClassVar[str] = ".csv"

    @property
    def columns(self) -> list[str]:
        return [self.id_column, self.value_column]

    def row_ids(self, ids: Sequence[str]) -> list[str]:
        """Return the row ids of the file for the predicted ids."""
        return list(ids)

    @staticmethod
    def differ(first: str, second: str) -> float:
        """Distance between two cells, 0 to 1."""
        raise NotImplementedError

    def check_classes(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.classes:
                raise Refusal(f"there is no class {name}; the classes are {', '.join(self.classes)}")


@dataclass(frozen=True, kw_only=True)
class Labels(Format):
    """One column of class names."""

    separator: str = " "

    name: ClassVar[str] = "labels"

    def table(self, ids: Sequence[str], answers: np.ndarray) -> pd.DataFrame:
        """Build the table of answers (N, C) bool."""
        names = np.array(self.classes, object)
        text = [self.separator.join(names[row]) or self.empty for row in answers.astype(bool)]
        return pd.DataFrame({self.id_column: list(ids), self.value_column: text})

    @staticmethod
    def differ(first: str, second: str) -> float:
        return _jaccard_distance(first.split(), second.split())


@dataclass(frozen=True, kw_only=True)
class ColumnPerClass(Format):
    """One column per class, or with `positive` the values of that class only."""

    positive: str | None = None

    name: ClassVar[str] = "columns"
    probabilities: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check_classes([] if self.positive is None else [self.positive])

    @property
    def columns(self) -> list[str]:
        return [self.id_column, *(self.classes if self.positive is None else [self.value_column])]

    def table(self, ids: Sequence[str], answers: np.ndarray) -> pd.DataFrame:
        """Build the table of answers (N, C): bool, written as 0 and 1, or probabilities."""
        values = answers.astype(np.int64) if answers.dtype == bool else answers
        if self.positive is not None:
            values = values[:, [self.classes.index(self.positive)]]
        frame = pd.DataFrame(values, columns=self.columns[1:])
        frame.insert(0, self.id_column, list(ids))
        return frame

    @staticmethod
    def differ(first: str, second: str) -> float:
        return abs(float(first) - float(second))


@dataclass(frozen=True, kw_only=True)
class RunLengths(Format):
    """Masks as run-length codes.

    Args:
        painted: the classes that get rows; empty: all but the first, which is the background.
        row_id: template with {id}, {class} (name) and {index} (number of the class); None: {id}_{class}, or {id} if
            only one class is painted.
        by_row: as `encode_runs`.
    """

    painted: Sequence[str] = ()
    row_id: str | None = None
    by_row: bool = False

    name: ClassVar[str] = "rle"
    kind: ClassVar[Kind] = "maps"

    def __post_init__(self) -> None:
        self.check_classes(self.painted)
        try:
            self.row_ids(["1"])
        except (KeyError, ValueError, IndexError) as error:
            raise Refusal(f"--row-id {self.row_id!r}: the placeholders are {{id}}, {{class}} and {{index}}") from error

    @property
    def _indices(self) -> list[int]:
        return [self.classes.index(name) for name in self.painted or self.classes[1:]]

    def row_ids(self, ids: Sequence[str]) -> list[str]:
        indices = self._indices
        template = self.row_id or ("{id}" if len(indices) == 1 else "{id}_{class}")
        return [
            template.format_map({"id": id, "class": self.classes[index], "index": index})
            for id in ids
            for index in indices
        ]

    def encode(self, mask: np.ndarray) -> bytes:
        """Encode each painted class of a mask (H, W), one line per class."""
        return "\n".join(encode_runs(mask == index, self.by_row) or self.empty for index in self._indices).encode()

    @staticmethod
    def differ(first: str, second: str) -> float:
        return _jaccard_distance(_pixels(first), _pixels(second))


@dataclass(frozen=True, kw_only=True)
class Masks(Format):
    """A zip of PNG masks; a sample submission provides only the ids."""

    name: ClassVar[str] = "masks"
    kind: ClassVar[Kind] = "maps"
    suffix: ClassVar[str] = ".zip"

    def encode(self, mask: np.ndarray) -> bytes:
        import cv2

        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return cv2.imencode(".png", mask.astype(dtype))[1].tobytes()


FORMATS: dict[str, Any] = {kind.name: kind for kind in (Labels, ColumnPerClass, RunLengths, Masks)}


def encode_runs(mask: np.ndarray, by_row: bool = False) -> str:
    """Encode the runs of true pixels of a mask (H, W) as "start length start length ...", starts counted from 1.

    Pixels are counted down the columns, left to right, as on Kaggle; with `by_row` along the rows, top to bottom.
    """
    pixels = np.concatenate([[0], mask.ravel(order="C" if by_row else "F").astype(np.int8), [0]])
    starts, ends = (np.flatnonzero(np.diff(pixels) == change) for change in (1, -1))
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def _pixels(code: str) -> np.ndarray:
    """Pixel numbers in a run-length code; none for a placeholder of an empty mask, such as -1."""
    numbers = np.array(code.split(), np.int64)
    starts, lengths = numbers[0 : len(numbers) // 2 * 2 : 2], numbers[1::2]
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def _jaccard_distance(first: Any, second: Any) -> float:
    both = len(np.intersect1d(first, second))
    either = len(first) + len(second) - both
    return 1 - both / either if either else 0.0
