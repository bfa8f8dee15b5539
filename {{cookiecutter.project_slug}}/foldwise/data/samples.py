"""Readers: how an item of the table becomes a sample.

`Samples` is what a competition subclasses in solution/samples.py. Training, validation, out-of-fold prediction,
predict.py, a bundle and prepare.py all read through it, so that they cannot read differently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    """What a reader sees of a table: the declared columns, and where files are.

    Args:
        samples: the reader, whose declared columns are seen.
        targets: whether it may see targets: in training and validation, never in prediction.

    Raises:
        TableError: the table lacks some of the columns.
    """

    def __init__(self, table: Table, samples: "Samples", targets: bool = False) -> None:
        columns = [*samples.columns, *(samples.target_columns if targets else ())]
        missing = [name for name in columns if name not in table.frame]
        if missing:
            raise TableError(
                table.path,
                [
                    f"there is no column {name!r}, which the reader declares; the columns are "
                    f"{some(list(table.frame), 20)}"
                    for name in missing
                ],
            )
        self.source, self.root, self.targets = table.path, table.root, targets
        names = ["id", "image", *columns, *(["mask"] if targets and "mask" in table.frame else [])]
        self._columns = {name: table.frame[name].to_numpy(object) for name in dict.fromkeys(names)}
        self._numbers: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._columns["id"])

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def __getitem__(self, column: str) -> np.ndarray:
        """A declared column (N,), as the file has it: of a CSV, text.

        Raises:
            Refusal: it is not declared.
        """
        if column not in self._columns:
            raise Refusal(f"the reader asks for the column {column!r}: add it to `columns` of its class in solution/")
        return self._columns[column]

    def numbers(self, column: str) -> np.ndarray:
        """A declared column as float64 (N,), NaN where it is empty.

        Raises:
            TableError: values that are no numbers.
        """
        if column in self._numbers:
            return self._numbers[column]
        values = pd.Series(self[column], dtype=object)
        empty = values.isna() | (values == "")
        found = pd.to_numeric(values.where(~empty), errors="coerce").to_numpy(np.float64)
        bad = np.flatnonzero(np.isnan(found) & ~empty.to_numpy())
        if len(bad):
            ids = [f"{self['id'][row]} has {values.iat[row]!r}" for row in bad]
            raise TableError(self.source, [f"column {column!r} must have numbers or be empty: {some(ids)}"])
        self._numbers[column] = found
        return found

    def path(self, row: int, column: str = "image") -> Path:
        """The file that a column names, under the data root.

        Raises:
            Refusal: the path is empty, absolute, or leaves the root.
        """
        text = str(self[column][row])
        relative = PurePosixPath(text)
        if not text or relative.is_absolute() or ".." in relative.parts:
            raise Refusal(
                f"{self.source}: {column} {text!r} of id {self['id'][row]!r} must be a path under {self.root}"
            )
        return self.root / relative


class Samples:
    """Reads items; this one reads the picture of each row.

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
        """What is predicted: here each row, under its id."""
        return [Item(id, (row,)) for row, id in enumerate(rows["id"])]

    def files(self, rows: Rows, item: Item) -> list[Path]:
        """Every file that `read` opens for an item: checked before training, and part of a run's identity."""
        return [rows.path(row) for row in item.rows]

    def fit(self, rows: Rows, items: Sequence[Item]) -> dict[str, Any]:
        """What reading has to know of the training items, such as means of a column: JSON, saved with the model."""
        return {}

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        """The sample of an item.

        Args:
            state: what `fit` gave on the fold's training items.
            rng: for what is drawn in training, a function of (seed, epoch, id); None in validation and prediction.

        Returns:
            An array for each field. Images are (H, W, C) as stored: uint8, uint16 or float32; maps (H, W, C) float32;
            masks (H, W) uint8 or uint16. A list of them is a stack, whose pictures may differ in size: it reaches the
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
    """An item for each value of a column, named by it, with all its rows.

    Args:
        order: a column of numbers that the rows of an item are sorted by; None: as in the table.
    """
    frame = pd.DataFrame({"name": rows[column].astype(str), "row": np.arange(len(rows))})
    if order is not None:
        frame = frame.assign(order=rows.numbers(order)).sort_values("order", kind="stable")
    grouped = frame.groupby("name")["row"].apply(tuple)
    return [Item(name, grouped[name]) for name in dict.fromkeys(rows[column].astype(str))]


def item_table(table: Table, items: Sequence[Item]) -> Table:
    """A table with one row an item, which all that follows reading works on: folds, scores, submissions.

    Raises:
        TableError: ids of items that are not unique, items without rows, or with rows of several groups or folds.
    """
    if [item.id for item in items] == table.ids and all(item.rows[:1] == (row,) for row, item in enumerate(items)):
        own = table
    else:
        frame = table.frame
        problems = [f"the item {item.id!r} has no rows" for item in items if not item.rows]
        if problems:
            raise TableError(table.path, problems)
        names = pd.Series([item.id for item in items])
        twice = names[names.duplicated()].unique().tolist()
        if twice:
            raise TableError(table.path, [f"{len(twice)} ids of items come more than once: {some(twice)}"])
        first = np.array([item.rows[0] for item in items])
        # What several pictures of one thing are averaged by is the item itself now.
        frame = frame.iloc[first].drop(columns="unit", errors="ignore").reset_index(drop=True).assign(id=names)
        own = replace(table, frame=frame, target=None if table.target is None else table.target[first])
    problems = []
    for column in ("group", "fold"):
        if column in table.frame:
            values = table.frame[column].to_numpy()
            mixed = [item.id for item in items if len(set(values[list(item.rows)])) > 1]
            if mixed:
                problems.append(f"{len(mixed)} items have rows of several {column}s: {some(mixed)}")
    if problems:
        raise TableError(table.path, problems)
    return own
