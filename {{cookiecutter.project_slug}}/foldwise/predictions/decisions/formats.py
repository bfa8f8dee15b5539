"""Submission formats: columns, rows, and a distance between answers.

labels     id and one column: the class, or labels with a separator
columns    id and one column a class: probabilities or other values, or 0 and 1; or one column for one class
rle        id and run-length encoded masks, a row for each image and class
ranking    id and one column of names, the most likely first
masks      a zip of PNG masks <id>.png (a / in the id is a folder), whose pixel values are the class numbers; of
           overlapping or soft masks <id>.tif with a channel per class from 0 to 255, for one class <id>.png
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from foldwise.data.class_masks import encode_layers
from foldwise.data.problems import some
from foldwise.data.run_lengths import encode_runs, run_pixels
from foldwise.errors import Refusal
from foldwise.files import name_problem
from foldwise.tasks import ForTasks, Kind


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
        return _jaccard_distance(first.split(), second.split())

    def check_classes(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.classes:
                raise Refusal(f"there is no class {name}; the classes are {', '.join(self.classes)}")


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


@dataclass(frozen=True, kw_only=True)
class RunLengths(Format):
    """Masks as run-length codes.

    Args:
        painted: the classes that get rows; empty: all but the first, which is the background.
        row_id: as in `Format`; None: {id}_{class}, or {id} if only one class is painted.
        by_row: see `foldwise.data.run_lengths`.
    """

    painted: Sequence[str] = ()
    by_row: bool = False

    name: ClassVar[str] = "rle"
    kind: ClassVar[Kind] = "maps"

    def __post_init__(self) -> None:
        self.check_classes(self.painted)
        super().__post_init__()

    @property
    def template(self) -> str:
        return self.row_id or ("{id}" if len(self._indices) == 1 else "{id}_{class}")

    @property
    def by_class(self) -> bool:
        return True

    @property
    def _indices(self) -> list[int]:
        return [self.classes.index(name) for name in self.painted or self.classes[1:]]

    def encode(self, mask: np.ndarray) -> bytes:
        """Encode each painted class of a mask (H, W), or of masks per class (C, H, W), one line per class."""
        layers = [mask == index if mask.ndim == 2 else mask[index] >= 0.5 for index in self._indices]
        return "\n".join(encode_runs(layer, self.by_row) or self.empty for layer in layers).encode()

    @staticmethod
    def differ(first: str, second: str) -> float:
        return _jaccard_distance(run_pixels(first), run_pixels(second))


@dataclass(frozen=True, kw_only=True)
class Masks(Format):
    """A zip of image files; a sample submission provides only the ids.

    Args:
        layers: masks per class, with values from 0 to 255, instead of class numbers.
    """

    layers: bool = False

    name: ClassVar[str] = "masks"
    kind: ClassVar[Kind] = "maps"
    suffix: ClassVar[str] = ".zip"

    def file_name(self, id: str) -> str:
        name, suffix = self.row_ids([id])[0], ".tif" if self.layers and len(self.classes) > 1 else ".png"
        return name if name.lower().endswith(suffix) else f"{name}{suffix}"

    def id_problems(self, ids: Sequence[str]) -> list[str]:
        bad = {id: problem for id in ids if (problem := name_problem(self.file_name(id)))}
        return [f"{len(bad):,} ids cannot be file names: {some([f'{id!r} {bad[id]}' for id in bad], 3)}"] if bad else []

    def encode(self, mask: np.ndarray) -> bytes:
        import cv2

        if mask.ndim == 3:
            return encode_layers(np.rint(mask * np.float32(255)).astype(np.uint8))
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return cv2.imencode(".png", mask.astype(dtype))[1].tobytes()


FORMATS: dict[str, Any] = {kind.name: kind for kind in (Labels, Ranking, ColumnPerClass, RunLengths, Masks)}


def _jaccard_distance(first: Any, second: Any) -> float:
    both = len(np.intersect1d(first, second))
    either = len(first) + len(second) - both
    return 1 - both / either if either else 0.0
