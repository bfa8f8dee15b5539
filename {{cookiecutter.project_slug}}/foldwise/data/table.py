"""Read and check the table: a CSV or parquet file with one row per image.

CSVs are read as text, so ids keep leading zeros and `NA` is a valid label. All problems are reported at once, with line
numbers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.columns import Columns, missing_columns
from foldwise.data.images import map_mask, read_mask
from foldwise.data.orientation import oriented
from foldwise.data.paths import check_paths
from foldwise.data.problems import Check, has_stray_spaces, some
from foldwise.data.table_file import read_file
from foldwise.data.targets import check_class_names, check_units, split_cells
from foldwise.errors import Refusal
from foldwise.tasks import Task, find_task

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MISSING = ("", "nan", "NaN", "None", "NULL", "null", "<NA>")  # texts of missing values, which are no group


@dataclass(frozen=True)
class Table:
    """A checked table.

    Attributes:
        frame: the file's columns, plus `id` and `image` (text) and, if declared, `mask`, `group`, `unit` (text),
            `weight` (float) and `fold` (int); index 0 to N - 1. Undeclared columns with these names are dropped, so
            that they are not used by accident.
        exif: `data.exif`: "apply", "ignore", or None, which is apply.
        ordered: the order of `classes` was given, not found by sorting.
        target: float32 (N, C), one-hot, multi-hot or soft; for retrieval int64 (N, 1), the index of the identity; None
            for masks and for tables without target.
        mask_values: class number of each stored mask value, `data.mask_values`; None: masks store class numbers.
    """

    frame: pd.DataFrame
    task: str
    classes: tuple[str, ...]
    root: Path
    target: np.ndarray | None
    path: Path
    mask_values: Mapping[int, int] | None = None
    ordered: bool = True
    exif: str | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def ids(self) -> list[str]:
        return self.frame["id"].tolist()

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def image_path(self, row: int) -> Path:
        return self.root / self.frame["image"].iat[row]

    def mask_path(self, row: int) -> Path:
        return self.root / self.frame["mask"].iat[row]

    def read_mask(self, row: int) -> np.ndarray:
        """Read a mask as (H, W) class numbers, uint8 or uint16; ImageError for a value without a class."""
        path = self.mask_path(row)
        with oriented(self.exif):
            mask = read_mask(path)
        return mask if self.mask_values is None else map_mask(mask, self.mask_values, path)

    @property
    def weights(self) -> np.ndarray:
        """Sample weights, float32 (N,), with mean 1; ones without a weight column."""
        if "weight" not in self.frame:
            return np.ones(len(self), np.float32)
        weight = self.frame["weight"].to_numpy(np.float64)
        return (weight / weight.mean()).astype(np.float32)


def read_table(
    path: Path | str,
    task: str,
    root: Path | str,
    columns: Columns,
    classes: Sequence[str] | None = None,
    has_target: bool = True,
    needs_group: bool = True,
    mask_values: Mapping[Any, Any] | None = None,
    separator: str | None = None,
    exif: str | None = None,
) -> Table:
    """Read a table and check it as a whole, including that image and mask files exist.

    Args:
        root: folder of the image and mask paths, which must not leave it.
        classes: ordered class names; None takes those found, sorted (as numbers if all are numbers). Required for
            segmentation: class i is pixel value i.
        has_target: False for a test table: target, weight and fold are not read, and the group column is optional.
        needs_group: False makes the group column optional with targets too.
        mask_values, exif: see `Table`.
        separator: of the labels in a cell of a multilabel table; None: whitespace.

    Raises:
        TableError: lists every problem with its line.
    """
    path, root = Path(path), Path(root)
    meaning = find_task(task)
    target_columns = _target_columns(columns, meaning) if has_target else []
    check = Check(path)
    raw = read_file(path)
    check.lines = raw.index.to_numpy()
    raw = raw.reset_index(drop=True)

    optional = {"id": columns.id, "image": columns.image, "unit": columns.unit}
    if has_target:
        optional |= {"weight": columns.weight, "fold": columns.fold}
        if meaning.field.spatial:  # a target is a file
            optional["mask"] = target_columns[0]
    if (has_target and needs_group) or columns.group in raw.columns:
        optional["group"] = columns.group
    declared = {canonical: name for canonical, name in optional.items() if name is not None}
    targets = [("target", name) for name in target_columns if name not in declared.values()]
    check.problems += missing_columns([*declared.items(), *targets], raw, root)
    if not root.is_dir():
        check.problems.append(f"the data root {root} is not a folder")
    if raw.empty and not check.problems:
        check.problems.append("the table has no rows: add one row per image below the header")
    check.stop_if_bad()

    frame = raw.drop(columns=["id", "image", "mask", "group", "unit", "weight", "fold"], errors="ignore")
    for canonical in ("id", "image", "mask", "group", "unit"):
        if canonical in declared:
            frame[canonical] = text_column(raw[declared[canonical]])
    check.ids = frame["id"].to_numpy(object)
    _check_ids(frame["id"], raw[declared["id"]], check)
    for canonical in ("group", "unit"):
        if canonical in declared:
            text = f"column {declared[canonical]!r} is empty, or says so: give each such row a {canonical} of its own"
            check.rows(frame[canonical].isin(MISSING), text)
    for canonical in ("image", "mask"):
        if canonical in declared:
            check_paths(frame[canonical], root, canonical, check)
    if "weight" in declared:
        frame["weight"] = _weight_column(raw[declared["weight"]], check)
    if "fold" in declared:
        frame["fold"] = _fold_column(raw[declared["fold"]], check)

    names = check_class_names(classes, meaning, check)
    target = None
    if has_target:
        soft = not isinstance(columns.target, str | None)
        if separator is not None and not soft and meaning.kind == "rows" and not meaning.exclusive:
            raw = raw.assign(**{name: split_cells(raw[name], separator) for name in target_columns})
        names, target = meaning.read_target(raw, target_columns, soft, names, check)
    if target is not None and "unit" in declared:
        check_units(frame["unit"], target, check)
    check.stop_if_bad()
    ordered = classes is not None or not isinstance(columns.target, str | None)
    return Table(frame, task, tuple(names or ()), root, target, path, check_mask_values(mask_values), ordered, exif)


def check_mask_values(values: Any) -> dict[int, int] | None:
    """Check `data.mask_values`; refuse anything but stored values and class numbers, each 0 to 65535."""
    if values is None:
        return None
    pairs = dict(values) if isinstance(values, Mapping) else {}
    keys = [int(key) if str(key).isdecimal() else key for key in pairs]  # JSON has them as text
    numbers = [*keys, *pairs.values()]
    if not numbers or not all(type(number) is int and 0 <= number <= 65535 for number in numbers):
        raise Refusal(
            f"data.mask_values is {values!r}; it must be null or map stored values to class numbers, such as "
            "{0: 0, 255: 1}"
        )
    return dict(zip(keys, pairs.values(), strict=True))


def text_column(column: pd.Series) -> pd.Series:
    """Convert a column to text; missing values become empty."""
    return column.astype(object).where(column.notna(), "").map(str)


def _target_columns(columns: Columns, task: Task) -> list[str]:
    if columns.target is None:
        return [task.column]
    if isinstance(columns.target, str):
        return [columns.target]
    if task.field.spatial:
        raise Refusal(f"data.columns.target is a list, but {task.name} needs one column, with mask paths")
    return list(columns.target)


def _check_ids(ids: pd.Series, stored: pd.Series, check: Check) -> None:
    check.rows(ids == "", "the id is empty")
    check.cells(has_stray_spaces(ids), ids, "the id {} has whitespace at its ends or two spaces in a row: remove it")
    check.cells(ids.str.contains(CONTROL), ids, "the id {} has a control character")
    if pd.api.types.is_float_dtype(stored):
        check.problems.append(
            f"the ids are decimals, such as {ids.iat[0]}, most often because one was missing when the table was made: "
            f'write them as text, with frame["{stored.name}"].astype("Int64").astype(str)'
        )
    repeated = ids[ids.duplicated(keep=False) & (ids != "")]
    rows_of = repeated.groupby(repeated, sort=False).indices
    each = [f"{name!r} ({check.name_lines(repeated.index[rows])})" for name, rows in rows_of.items()]
    if each:
        what = "1 id occurs" if len(each) == 1 else f"{len(each):,} ids occur"
        check.problems.append(
            f"{what} more than once: {some(each, 3)}. A table has one row per image: join the labels of several rows, "
            "and give images of one thing their own ids, with the thing in data.columns.unit"
        )


def _weight_column(column: pd.Series, check: Check) -> pd.Series:
    weight = pd.to_numeric(column, errors="coerce").astype(float)
    bad = ~np.isfinite(weight) | (weight < 0)
    comma = column.astype(str).str.contains(",")
    for rows, advice in ((bad & comma, ": write decimals with a point"), (bad & ~comma, "")):
        check.cells(rows, column, "the weight {} is not a number of 0 or more" + advice)
    if not bad.any() and weight.sum() == 0:
        check.problems.append("all weights are 0")
    return weight


def _fold_column(column: pd.Series, check: Check) -> pd.Series:
    fold = pd.to_numeric(column, errors="coerce").astype(float)
    bad = ~np.isfinite(fold) | (fold < -1) | (fold != np.floor(fold))
    check.cells(bad, column, "the fold {} is not a whole number of -1 (always train) or more")
    return fold.where(~bad, -1).astype(int)
