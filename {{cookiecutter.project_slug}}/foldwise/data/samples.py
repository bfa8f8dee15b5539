"""Readers: how an item of the table becomes a sample.

`Samples` is what a competition subclasses in solution/samples.py. Training, validation, out-of-fold prediction,
predict.py, a bundle and prepare.py all read through it, so that they cannot read differently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.fields import Field, Item
from foldwise.data.images import MODES, read_image
from foldwise.data.problems import TableError, some
from foldwise.data.table import Table
from foldwise.errors import Refusal

Sample = dict[str, Any]  # arrays by the name of their field


class Rows:
    """The part of a table that a reader sees: its declared columns, and where files are.

    Args:
        targets: the reader may see targets: in training and validation, never in prediction.
    """

    def __init__(self, table: Table, samples: "Samples", targets: bool = False) -> None:
        columns = [*samples.columns, *(samples.target_columns if targets else ())]
        require_columns(table, columns)
        self.source, self.root, self.targets = table.path, table.root, targets
        names = ["id", "image", *columns, *(["mask"] if targets and "mask" in table.frame else [])]
        self._columns = {name: table.frame[name].to_numpy(object) for name in names}
        self._numbers: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._columns["id"])

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def __getitem__(self, column: str) -> np.ndarray:
        """A declared column (N,), as the file has it: of a CSV, text."""
        if column not in self._columns:
            raise Refusal(f"the reader asks for the column {column!r}: add it to `columns` of its class in solution/")
        return self._columns[column]

    def numbers(self, column: str) -> np.ndarray:
        """A declared column as float64 (N,), NaN where it is empty.

        Raises:
            TableError: values that are no numbers.
        """
        if column not in self._numbers:
            values = pd.Series(self[column], dtype=object)
            empty = values.isna() | (values == "")
            numbers = pd.to_numeric(values.where(~empty), errors="coerce").to_numpy(np.float64)
            bad = np.flatnonzero(np.isnan(numbers) & ~empty.to_numpy())
            if len(bad):
                ids = [f"{self['id'][row]} has {values.iat[row]!r}" for row in bad]
                raise TableError(self.source, [f"column {column!r} must have numbers or be empty: {some(ids)}"])
            self._numbers[column] = numbers
        return self._numbers[column]

    def path(self, row: int, column: str = "image") -> Path:
        """The file that a column names; a path that leaves the data root is refused."""
        text = str(self[column][row])
        relative = PurePosixPath(text)
        if not text or relative.is_absolute() or ".." in relative.parts:
            raise Refusal(
                f"{self.source}: {column} {text!r} of id {self['id'][row]!r} must be a path under {self.root}"
            )
        return self.root / relative


def require_columns(table: Table, columns: Sequence[str]) -> None:
    """Refuse a table without the columns that a reader declares."""
    there = some(list(table.frame), 20)
    problems = [
        f"there is no column {name!r}, which the reader declares; the columns are {there}"
        for name in columns
        if name not in table.frame
    ]
    if problems:
        raise TableError(table.path, problems)


class Samples:
    """Reads items; this one reads the image of each row.

    Everything that a reader uses is declared, and is part of a run's identity: `columns`, and what `files` names.
    Arguments of the constructor are plain values, kept with every saved model.

    Attributes:
        columns: of the table; beside these, a reader sees ids and images.
        target_columns: further ones that it may see while `rows.targets`: in training and validation alone.
        fields: of a sample. The targets of the task are added by themselves.
    """

    columns: Sequence[str] = ()
    target_columns: Sequence[str] = ()
    fields: Mapping[str, Field] = {"image": Field("image")}

    def __init__(self, mode: str = "stored") -> None:
        if mode not in MODES:
            raise Refusal(f"data.mode is {mode!r}; it must be one of {', '.join(MODES)}")
        self.mode = mode

    def items(self, rows: Rows) -> list[Item]:
        """Make the items, of which each is predicted: here one of each row, under its id."""
        return [Item(id, (row,)) for row, id in enumerate(rows["id"])]

    def files(self, rows: Rows, item: Item) -> list[Path]:
        """Every file that `read` opens for an item: checked before training, and part of a run's identity."""
        return [rows.path(row) for row in item.rows]

    def fit(self, rows: Rows, items: Sequence[Item]) -> dict[str, Any]:
        """Learn from the training items, such as means of a column; returns JSON values, saved with the model."""
        return {}

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        """The sample of an item.

        Args:
            state: what `fit` gave on the fold's training items.
            rng: for what is drawn in training, a function of (seed, epoch, id); None in validation and prediction.

        Returns:
            An array for each field. Images are (H, W, C) as stored: uint8, uint16 or float32; maps (H, W, C) float32;
            masks (H, W) uint8 or uint16. A list of them is a stack, whose images may differ in size: it reaches the
            network as (N, C, H, W).
        """
        return {"image": read_image(rows.path(item.rows[0]), self.mode)}

    def picture(self, sample: Mapping[str, Any]) -> np.ndarray:
        """(H, W, C) of a sample to look at, in reports."""
        for name, field in self.fields.items():
            if field.kind == "image":
                image = sample[name]
                return image[len(image) // 2] if isinstance(image, list) or image.ndim == 4 else image
        raise Refusal(f"{type(self).__name__} has no image among its fields: give it a method `picture` to look at")


def group_items(rows: Rows, column: str, order: str | None = None) -> list[Item]:
    """Group all rows that share a value of `column` into an item of that name.

    Args:
        order: a column of numbers that the rows of an item are sorted by; None: as in the table.
    """
    frame = pd.DataFrame({"name": rows[column].astype(str), "row": np.arange(len(rows))})
    if order is not None:
        frame = frame.assign(order=rows.numbers(order)).sort_values("order", kind="stable")
    grouped = frame.groupby("name")["row"].apply(tuple)
    return [Item(name, grouped[name]) for name in dict.fromkeys(rows[column].astype(str))]


@dataclass(frozen=True)
class TableItems:
    """The items that a reader makes of a table.

    Attributes:
        source: the table, a row an image.
        rows: what the reader sees of it.
    """

    source: Table
    samples: Samples
    rows: Rows
    items: Sequence[Item]

    @classmethod
    def of(cls, source: Table, samples: Samples, targets: bool = False) -> "TableItems":
        rows = Rows(source, samples, targets)
        return cls(source, samples, rows, samples.items(rows))

    @cached_property
    def table(self) -> Table:
        """A row an item; see `item_table`."""
        return item_table(self.source, self.items)

    @cached_property
    def state(self) -> dict[str, Any]:
        """The reader's `fit` on all items."""
        return self.samples.fit(self.rows, self.items)

    def picture(self, number: int) -> np.ndarray:
        """The picture of an item, (H, W, C) as stored."""
        return self.samples.picture(self.samples.read(self.rows, self.items[number], self.state, None))


def item_table(table: Table, items: Sequence[Item]) -> Table:
    """A table with one row an item, which all that follows reading works on: folds, scores, submissions.

    Raises:
        TableError: ids of items that are not unique, items without rows, or with rows of several groups or folds.
    """
    frame = table.frame
    problems = [f"the item {item.id!r} has no rows" for item in items if not item.rows]
    names = pd.Series([item.id for item in items])
    if names.duplicated().any():
        twice = names[names.duplicated()].unique().tolist()
        problems.append(f"{len(twice)} ids of items come more than once: {some(twice)}")
    for column in ("group", "fold"):
        if column in frame:
            values = frame[column].to_numpy()
            mixed = [item.id for item in items if len(set(values[list(item.rows)])) > 1]
            if mixed:
                problems.append(f"{len(mixed)} items have rows of several {column}s: {some(mixed)}")
    if problems:
        raise TableError(table.path, problems)
    first = np.array([item.rows[0] for item in items], dtype=np.int64)
    if names.tolist() == table.ids and np.array_equal(first, np.arange(len(table))):
        return table
    # The images that a unit would average are those of one item now.
    frame = frame.iloc[first].drop(columns="unit", errors="ignore").reset_index(drop=True).assign(id=names)
    return replace(table, frame=frame, target=None if table.target is None else table.target[first])
