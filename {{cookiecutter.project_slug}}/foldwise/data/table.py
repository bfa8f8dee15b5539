"""Read and check the table: a CSV or parquet file with one row per image.

CSVs are read as text, so ids keep leading zeros and `NA` is a valid label. All problems are reported at once, with line
numbers.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.images import map_mask, read_mask
from foldwise.data.problems import Check, TableError, has_stray_spaces
from foldwise.data.targets import check_class_names, check_units, split_cells
from foldwise.errors import Refusal
from foldwise.tasks import Task, find_task


@dataclass(frozen=True)
class Columns:
    """Column names in the file; None: the table has no such column.

    `target` defaults to `label` (multiclass), `labels` (multilabel) or `mask` (segmentation). A list of columns means
    soft targets, one column of probabilities per class.
    """

    id: str = "id"
    image: str = "image"
    target: str | Sequence[str] | None = None
    group: str | None = None
    unit: str | None = None
    weight: str | None = None
    fold: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Columns":
        known = [field.name for field in fields(cls)]
        unknown = [key for key in config if key not in known]
        if unknown:
            raise Refusal(f"data.columns has no key {', '.join(unknown)}; its keys are {', '.join(known)}")
        return cls(**config)


@dataclass(frozen=True)
class Table:
    """A checked table.

    Attributes:
        frame: the file's columns, plus `id` and `image` (text) and, if declared, `mask`, `group`, `unit` (text),
            `weight` (float) and `fold` (int); index 0 to N - 1. Undeclared columns with these names are dropped, so
            that they are not used by accident.
        ordered: the order of `classes` was given, not found by sorting.
        target: float32 (N, C), one-hot, multi-hot or soft; None for masks and for tables without target.
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
) -> Table:
    """Read a table and check it as a whole, including that image and mask files exist.

    Args:
        root: folder of the image and mask paths, which must not leave it.
        classes: ordered class names; None takes those found, sorted (as numbers if all are numbers). Required for
            segmentation: class i is pixel value i.
        has_target: False for a test table: target, weight and fold are not read, and the group column is optional.
        needs_group: False makes the group column optional with targets too.
        mask_values: see `Table`.
        separator: of the labels in a cell of a multilabel table; None: whitespace.

    Raises:
        TableError: lists every problem with its line.
    """
    path, root = Path(path), Path(root)
    meaning = find_task(task)
    target_columns = _target_columns(columns, meaning) if has_target else []
    check = Check(path)
    raw = _read_file(path, check)

    declared = {"id": columns.id, "image": columns.image, "unit": columns.unit}
    if has_target:
        declared |= {"weight": columns.weight, "fold": columns.fold}
        if meaning.field.spatial:  # a target is a file
            declared["mask"] = target_columns[0]
    if (has_target and needs_group) or columns.group in raw.columns:
        declared["group"] = columns.group
    declared = {canonical: name for canonical, name in declared.items() if name is not None}
    check.problems += [
        f"there is no column {name!r}; the columns are {', '.join(map(str, raw.columns))}"
        for name in dict.fromkeys([*declared.values(), *target_columns])
        if name not in raw.columns
    ]
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
    _check_ids(frame["id"], check)
    for canonical in ("group", "unit"):
        if canonical in declared:
            check.rows(frame[canonical] == "", f"column {declared[canonical]!r} is empty")
    for canonical in ("image", "mask"):
        if canonical in declared:
            _check_paths(frame[canonical], root, canonical, check)
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
    return Table(frame, task, tuple(names or ()), root, target, path, check_mask_values(mask_values), ordered)


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


def _read_file(path: Path, check: Check) -> pd.DataFrame:
    """Read the columns as stored (CSV: as text), and set `check.lines`."""
    if not path.is_file():
        raise TableError(path, ["the file does not exist"])
    if path.suffix == ".parquet":
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise TableError(path, [f"it cannot be read as parquet ({error})"]) from error
        check.lines = np.arange(1, len(frame) + 1)
        return frame.reset_index(drop=True)
    if path.suffix != ".csv":
        raise TableError(path, [f"the suffix is {path.suffix!r}; a table is a .csv or a .parquet file"])
    try:
        # Without a header, so that rows longer than the header are an error and repeated names are noticed.
        frame = pd.read_csv(
            path, dtype=str, header=None, na_filter=False, skip_blank_lines=False, encoding="utf-8-sig", quotechar='"'
        )
    except pd.errors.EmptyDataError as error:
        raise TableError(path, ["the file is empty"]) from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise TableError(path, [f"it cannot be read as CSV in UTF-8 ({str(error).strip()})"]) from error
    header = frame.iloc[0].tolist()
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise TableError(path, [f"the column {name!r} occurs more than once" for name in repeated])
    frame = frame.iloc[1:].set_axis(header, axis=1)
    frame = frame[(frame != "").any(axis=1)]  # skipped, but counted in line numbers
    check.lines = frame.index.to_numpy() + 1
    return frame.reset_index(drop=True)


def _check_ids(ids: pd.Series, check: Check) -> None:
    check.rows(ids == "", "the id is empty")
    check.rows(has_stray_spaces(ids), "the id has whitespace at its ends or two spaces in a row")
    repeated = ids[ids.duplicated(keep=False) & (ids != "")]
    for name, rows in repeated.groupby(repeated, sort=False).indices.items():
        check.problems.append(f"the id {name!r} occurs more than once: {check.name_lines(repeated.index[rows])}")


def _check_paths(paths: pd.Series, root: Path, what: str, check: Check) -> None:
    """Check that every path is relative, exists, and stays under the root after resolving links."""
    real_root = root.resolve()
    folder_is_inside: dict[Path, bool] = {}  # each folder is resolved only once: a million files are in few folders

    def problem(text: str) -> str | None:
        if not text:
            return f"the {what} path is empty"
        if "\\" in text:
            return f"the {what} path {text!r} has a backslash; write paths with /"
        relative = PurePosixPath(text)
        if relative.is_absolute() or ".." in relative.parts:
            return f"the {what} path {text!r} must be relative to the data root {root}, without '..'"
        file = root / relative
        if not os.path.isfile(file):  # noqa: PTH113  Path.is_file raises if the name is too long
            return f"the {what} file {file} does not exist"
        if file.parent not in folder_is_inside:
            folder_is_inside[file.parent] = file.parent.resolve().is_relative_to(real_root)
        inside = folder_is_inside[file.parent]
        if file.is_symlink():
            inside = file.resolve().is_relative_to(real_root)
        if inside:
            return None
        return f"the {what} path {text!r} is a link that leaves the data root {root}: set data.root to its target"

    messages = [problem(text) for text in paths]
    check.rows([message is not None for message in messages], lambda row: str(messages[row]))


def _weight_column(column: pd.Series, check: Check) -> pd.Series:
    weight = pd.to_numeric(column, errors="coerce").astype(float)
    bad = ~np.isfinite(weight) | (weight < 0)
    check.rows(bad, lambda row: f"the weight {column.iat[row]!r} is not a number of 0 or more")
    if not bad.any() and weight.sum() == 0:
        check.problems.append("all weights are 0")
    return weight


def _fold_column(column: pd.Series, check: Check) -> pd.Series:
    fold = pd.to_numeric(column, errors="coerce").astype(float)
    bad = ~np.isfinite(fold) | (fold < -1) | (fold != np.floor(fold))
    check.rows(bad, lambda row: f"the fold {column.iat[row]!r} is not a whole number of -1 (always train) or more")
    return fold.where(~bad, -1).astype(int)
