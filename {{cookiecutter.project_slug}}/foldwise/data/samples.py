"""Readers: turn the rows of a table into items, and items into samples.

A competition subclasses `Samples` in solution/samples.py. Everything reads through it, in training and in prediction.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import pandas as pd

from foldwise.data.boxes import Crop
from foldwise.data.fields import Field, Item
from foldwise.data.images import MODES, ImageError, read_image
from foldwise.data.orientation import oriented
from foldwise.data.problems import TableError, some
from foldwise.data.table import UNDECLARED, Table
from foldwise.errors import Refusal

Sample = dict[str, Any]  # arrays by field name


class Rows:
    """What a reader sees of a table: ids, image paths, its `columns`, and, if `targets`, masks and `target_columns`."""

    def __init__(self, table: Table, samples: "Samples", targets: bool = False) -> None:
        columns = [*samples.columns, *(samples.target_columns if targets else ())]
        require_columns(table, columns)
        self.source, self.root, self.targets, self.exif = table.path, table.root, targets, table.exif
        self.channels = samples.channels
        names = ["id", "image", *columns, *(["mask"] if targets and "mask" in table.frame else [])]
        self._columns = {name: table.frame[name].to_numpy(object) for name in names}
        self._numbers: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._columns["id"])

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def __getitem__(self, column: str) -> np.ndarray:
        """A declared column (N,) as stored; text if the table is a CSV."""
        if column not in self._columns:
            raise Refusal(f"the reader uses the column {column!r}: add it to `columns` of its class in solution/")
        return self._columns[column]

    def numbers(self, column: str) -> np.ndarray:
        """A declared column as float64 (N,), NaN where empty; TableError if a value is not a number."""
        if column not in self._numbers:
            values = pd.Series(self[column], dtype=object)
            empty = values.isna() | (values == "")
            numbers = pd.to_numeric(values.where(~empty), errors="coerce").to_numpy(np.float64)
            bad = np.flatnonzero(~np.isfinite(numbers) & ~empty.to_numpy())
            if len(bad):
                ids = [f"{self['id'][row]} has {values.iat[row]!r}" for row in bad]
                raise TableError(self.source, [f"column {column!r} must have numbers or be empty: {some(ids)}"])
            self._numbers[column] = numbers
        return self._numbers[column]

    def path(self, row: int, column: str = "image") -> Path:
        """The file that a column names, under the data root or, of `samples.channels`, under the table's folder."""
        text, root = str(self[column][row]), self.source.parent if column in self.channels else self.root
        relative = PurePosixPath(text)
        if not text or relative.is_absolute() or ".." in relative.parts:
            raise Refusal(f"{self.source}: {column} {text!r} of id {self['id'][row]!r} must be a path under {root}")
        return root / relative

    def files(self, row: int) -> list[Path]:
        """The picture of a row, and the files of its further channels."""
        return [self.path(row, column) for column in ("image", *self.channels)]


def require_columns(table: Table, columns: Sequence[str]) -> None:
    existing = some(list(table.frame), 20)
    problems = []
    for name in columns:
        if name in UNDECLARED and name not in table.frame:
            problems.append(
                f"the reader declares the column {name!r}, which is read under this name only if data.columns.{name} "
                "has it: set that if it means the same, else rename the column in the table"
            )
        elif name not in table.frame:
            problems.append(f"there is no column {name!r}, which the reader declares; the columns are {existing}")
    if problems:
        raise TableError(table.path, problems)


class Samples:
    """Reads items; this base class reads one image per row.

    A reader declares everything it uses (`columns` and `files`); all of it is part of a run's identity. Constructor
    arguments are plain values, saved with every model.

    Attributes:
        columns: of the table, besides id and image.
        crop: cuts pictures by columns of boxes (foldwise/data/boxes.py).
        channels: columns of files whose channels are stacked behind those of the picture, such as `score_map`.
        target_columns: seen only while `rows.targets` is true, in training and validation.
        fields: of a sample; the targets of the task are added automatically.
    """

    columns: Sequence[str] = ()
    target_columns: Sequence[str] = ()
    fields: Mapping[str, Field] = {"image": Field("image")}

    crop: Crop | None = None
    channels: Sequence[str] = ()

    def __init__(
        self, mode: str = "stored", crop: Mapping[str, Any] | None = None, channels: Sequence[str] = ()
    ) -> None:
        if mode not in MODES:
            raise Refusal(f"data.mode is {mode!r}; it must be one of {', '.join(MODES)}")
        self.mode = mode
        if crop is not None:
            self.crop = Crop.of(crop)
            self.columns = list(dict.fromkeys([*self.columns, *self.crop.columns]))
        if isinstance(channels, str):
            raise Refusal(f"samples.channels is {channels!r}: write [{channels}]")
        if channels:
            self.channels = list(channels)
            self.columns = list(dict.fromkeys([*self.columns, *channels]))

    def with_margin(self, margin: float) -> Self:
        """A reader that cuts with another margin (tta.margins)."""
        other = copy.copy(self)
        other.crop = self.crop and replace(self.crop, margin=margin)
        return other

    def items(self, rows: Rows) -> list[Item]:
        """List the items to predict: here one per row, with its id."""
        return [Item(id, (row,)) for row, id in enumerate(rows["id"])]

    def files(self, rows: Rows, item: Item) -> list[Path]:
        """List every file that `read` opens; they are checked before training and part of a run's identity."""
        return [path for row in item.rows for path in rows.files(row)]

    def fit(self, rows: Rows, items: Sequence[Item]) -> dict[str, Any]:
        """Learn from the training items, such as a column's mean; returns JSON values, saved with the model."""
        return {}

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        """Read an item.

        Args:
            state: returned by `fit` on the fold's training items.
            rng: for random choices in training, seeded from (seed, epoch, id); None in validation and prediction.

        Returns:
            An array for each field. Images are (H, W, C) as stored: uint8, uint16 or float32; maps (H, W, C) float32;
            masks (H, W) uint8 or uint16. A list of them is a stack, passed to the network as (N, C, H, W); its images
            may differ in size.
        """
        return {"image": self.read_image(rows, item.rows[0], rng)}

    def read_image(self, rows: Rows, row: int, rng: np.random.Generator | None) -> np.ndarray:
        """Read the picture (H, W, C) of a row with its further `channels`, cut by `crop`."""
        first, *others = rows.files(row)
        image = read_image(first, self.mode)
        further = [read_image(path) for path in others]
        for path, other in zip(others, further, strict=True):
            if other.shape[:2] != image.shape[:2] or other.dtype != image.dtype:
                size, expected = (f"{one.shape[1]} x {one.shape[0]} pixels of {one.dtype}" for one in (other, image))
                raise ImageError(f"{path} has {size}, and its picture {expected}")
        image = np.concatenate([image, *further], axis=2) if further else image
        return image if self.crop is None else self.crop.cut(image, rows, row, rng)

    def picture(self, sample: Mapping[str, Any]) -> np.ndarray:
        """Return the image (H, W, C) that reports show for a sample."""
        for name, field in self.fields.items():
            if field.kind == "image":
                image = sample[name]
                return image[len(image) // 2] if isinstance(image, list) or image.ndim == 4 else image
        raise Refusal(f"{type(self).__name__} has no image field: add a method `picture` for reports")


def group_items(rows: Rows, column: str, order: str | None = None) -> list[Item]:
    """Make one item per value of `column`, which is its id; `order` is a numeric column to sort the rows by."""
    empty = [rows["id"][row] for row, name in enumerate(rows[column]) if pd.isna(name) or str(name) == ""]
    if empty:
        raise TableError(rows.source, [f"column {column!r}, which makes the items, is empty: ids {some(empty)}"])
    frame = pd.DataFrame({"name": rows[column].astype(str), "row": np.arange(len(rows))})
    if order is not None:
        frame = frame.assign(order=rows.numbers(order)).sort_values("order", kind="stable")
    grouped = frame.groupby("name")["row"].apply(tuple)
    return [Item(name, grouped[name]) for name in dict.fromkeys(rows[column].astype(str))]


@dataclass(frozen=True)
class TableItems:
    """A table and the items that a reader makes of its rows."""

    source: Table
    samples: Samples
    rows: Rows
    items: Sequence[Item]

    @classmethod
    def of(cls, source: Table, samples: Samples, targets: bool = False) -> "TableItems":
        rows = Rows(source, samples, targets)
        if targets and samples.crop is not None:
            samples.crop.check(rows)
        return cls(source, samples, rows, samples.items(rows))

    @cached_property
    def table(self) -> Table:
        return item_table(self.source, self.items)

    @cached_property
    def state(self) -> dict[str, Any]:
        with oriented(self.rows.exif):
            return self.samples.fit(self.rows, self.items)

    def picture(self, number: int) -> np.ndarray:
        with oriented(self.rows.exif):
            return self.samples.picture(self.samples.read(self.rows, self.items[number], self.state, None))


def item_table(table: Table, items: Sequence[Item]) -> Table:
    """Reduce a table to one row per item; refuses repeated ids, and items with no rows or several groups or folds."""
    frame = table.frame
    problems = [f"the item {item.id!r} has no rows" for item in items if not item.rows]
    names = pd.Series([item.id for item in items])
    if names.duplicated().any():
        repeated = names[names.duplicated()].unique().tolist()
        problems.append(f"{len(repeated)} item ids come more than once: {some(repeated)}")
    for column in ("group", "fold"):
        if column in frame:
            values = frame[column].to_numpy()
            mixed = [item.id for item in items if len(set(values[list(item.rows)])) > 1]
            if mixed:
                problems.append(f"{len(mixed)} items have rows in several {column}s: {some(mixed)}")
    if problems:
        raise TableError(table.path, problems)
    first = np.array([item.rows[0] for item in items], dtype=np.int64)
    if names.tolist() == table.ids and np.array_equal(first, np.arange(len(table))):
        return table
    # An item replaces the unit: there is nothing left to average.
    frame = frame.iloc[first].drop(columns="unit", errors="ignore").reset_index(drop=True).assign(id=names)
    return replace(table, frame=frame, target=None if table.target is None else table.target[first])
