"""Read and check the table: a CSV or parquet file with one row per image.

CSVs are read as text, so ids keep leading zeros and `NA` is a valid label. All problems are reported at once, with line
numbers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.cells import (
    check_gold,
    check_ids,
    check_masks,
    fold_column,
    gold_column,
    text_column,
    weight_column,
)
from foldwise.data.columns import Columns, missing_columns
from foldwise.data.masks import IN_FILES, SEPARATOR, StoredMasks
from foldwise.data.orientation import oriented
from foldwise.data.paths import check_paths
from foldwise.data.problems import Check
from foldwise.data.table_file import read_file
from foldwise.data.targets import check_class_names, check_units, fill_missing, split_cells
from foldwise.errors import Refusal
from foldwise.tasks import Task, find_task

UNDECLARED = ("mask", "group", "unit", "weight", "fold", "gold")  # read only where data.columns names such a column
MISSING = ("", "nan", "NaN", "None", "NULL", "null", "<NA>")  # texts of missing values, which are no group


@dataclass(frozen=True)
class Table:
    """A checked table.

    Attributes:
        frame: the file's columns, plus `id` and `image` (text) and, if declared, `mask`, `boxes`, `group`, `unit`
            (text), `weight` (float), `fold` (int) and `gold` (bool); index 0 to N - 1. Undeclared columns with these
            names are dropped, so that they are not used by accident.
        exif: `data.exif`: "apply", "ignore", or None, which is apply.
        ordered: the order of `classes` was given, not found by sorting.
        target: float32 (N, C), one-hot, multi-hot or soft; for retrieval int64 (N, 1), the index of the identity; None
            for masks and for tables without target.
        masks: how masks are stored; the cells of several mask columns are joined by `SEPARATOR` in `mask`.
        missing: value of a missing mask; None: targets cannot be missing.
        reduction: of the predictions of a unit's images, see `Task.of_units`.
    """

    frame: pd.DataFrame
    task: str
    classes: tuple[str, ...]
    root: Path
    target: np.ndarray | None
    path: Path
    masks: StoredMasks = field(default_factory=StoredMasks)
    ordered: bool = True
    exif: str | None = None
    missing: int | None = None
    reduction: str = "mean"

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def ids(self) -> list[str]:
        return self.frame["id"].tolist()

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    @cached_property
    def known(self) -> np.ndarray:
        """Rows with a target, bool (N,)."""
        if self.target is not None:
            return ~np.isnan(self.target).all(axis=1)
        if self.missing is None or not find_task(self.task).exclusive:  # an empty cell is an empty mask
            return np.ones(len(self), bool)
        return (self.frame["mask"] != "").to_numpy(bool)

    def image_path(self, row: int) -> Path:
        return self.root / self.frame["image"].iat[row]

    def mask_cells(self, row: int) -> list[str]:
        return self.frame["mask"].iat[row].split(SEPARATOR)

    def mask_files(self, row: int) -> list[Path]:
        """The mask files of a row; none for run-length codes."""
        return [self.root / cell for cell in self.mask_cells(row) if cell and self.masks.encoding in IN_FILES]

    def mask_name(self, row: int) -> str:
        """The mask paths of a row, or a hash of its run-length codes."""
        text = self.frame["mask"].iat[row]
        return text if self.masks.encoding in IN_FILES else hashlib.sha256(text.encode()).hexdigest()[:16]

    def read_mask(self, row: int) -> np.ndarray:
        """Read a mask: class numbers (H, W), or a mask per class (C, H, W), see `StoredMasks.read`."""
        with oriented(self.exif):
            return self.masks.read(self.mask_cells(row), self.root, self.image_path(row))

    @property
    def gold(self) -> np.ndarray:
        """Rows that are never trained, bool (N,)."""
        return self.frame["gold"].to_numpy(bool) if "gold" in self.frame else np.zeros(len(self), bool)

    @property
    def trained_target(self) -> np.ndarray | None:
        """The target without gold rows."""
        return None if self.target is None else self.target[~self.gold]

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
    masks: Mapping[str, Any] | None = None,
    separator: str | None = None,
    exif: str | None = None,
    missing: int | None = None,
    reduction: str = "mean",
) -> Table:
    """Read a table and check it as a whole, including that image and mask files exist.

    Args:
        root: folder of the image and mask paths, which must not leave it.
        classes: ordered class names; None takes those found, sorted (as numbers if all are numbers). Required for
            segmentation: class i is pixel value i.
        has_target: False for a test table: target, weight, fold, gold are not read, and the group column is optional.
        needs_group: False makes the group column optional with targets too.
        masks: arguments of `StoredMasks`.
        exif, reduction: see `Table`.
        separator: of the labels in a cell of a multilabel table; None: whitespace.
        missing: allows empty targets, read as NaN or a mask full of this value; an empty cell of labels has no label.

    Raises:
        TableError: lists every problem with its line.
    """
    path, root = Path(path), Path(root)
    meaning = find_task(task)
    target_columns = _target_columns(columns, meaning) if has_target else []
    stored = meaning.stored(**(masks or {})) if meaning.field.spatial and has_target else StoredMasks()
    check = Check(path)
    raw = read_file(path)
    check.lines = raw.index.to_numpy()
    raw = raw.reset_index(drop=True)

    optional = {"id": columns.id, "image": columns.image, "unit": columns.unit}
    if has_target:
        optional |= {"weight": columns.weight, "fold": columns.fold, "gold": columns.gold}
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

    frame = raw.drop(columns=["id", "image", *UNDECLARED], errors="ignore")
    for canonical in ("id", "image", "group", "unit"):
        if canonical in declared:
            frame[canonical] = text_column(raw[declared[canonical]])
    check.ids = frame["id"].to_numpy(object)
    check_ids(frame["id"], raw[declared["id"]], check)
    for canonical in ("group", "unit"):
        if canonical in declared:
            text = f"column {declared[canonical]!r} is empty, or says so: give each such row a {canonical} of its own"
            check.rows(frame[canonical].isin(MISSING), text)
    check_paths(frame["image"], root, "image", check)
    if meaning.field.spatial and has_target:
        cells = [text_column(raw[name]) for name in target_columns]
        for name, column in zip(target_columns, cells, strict=True):
            check_masks(column, root, name, stored.encoding, meaning.exclusive and missing is None, check)
        frame["mask"] = cells[0].str.cat(cells[1:], sep=SEPARATOR) if cells[1:] else cells[0]
    if meaning.kind == "boxes" and has_target:
        frame["boxes"] = text_column(raw[target_columns[0]])
    if "weight" in declared:
        frame["weight"] = weight_column(raw[declared["weight"]], check)
    if "fold" in declared:
        frame["fold"] = fold_column(raw[declared["fold"]], check)
    if "gold" in declared:
        frame["gold"] = gold_column(raw[declared["gold"]], check)
        check_gold(frame, check)

    names = check_class_names(classes, meaning, check)
    target = None
    if has_target:
        soft = not isinstance(columns.target, str | None)
        if separator is not None and not soft and meaning.kind == "rows" and not meaning.exclusive:
            raw = raw.assign(**{name: split_cells(raw[name], separator) for name in target_columns})
        unknown = None
        if missing is not None and meaning.kind == "rows" and (soft or meaning.exclusive):
            raw, unknown = fill_missing(raw, target_columns, check)
        names, target = meaning.read_target(raw, target_columns, soft, names, check)
        if target is not None and unknown is not None:
            target[unknown] = np.nan
    if target is not None and "unit" in declared:
        check_units(frame["unit"], target, check)
    check.stop_if_bad()
    ordered = classes is not None or not isinstance(columns.target, str | None)
    final = tuple(names or ())
    masks_of = replace(stored, classes=final)
    return Table(frame, task, final, root, target, path, masks_of, ordered, exif, missing, reduction)


def target_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `read_table` for a table with targets, from a data configuration; older ones lack some."""
    ignore_index = data.get("ignore_index", 255)
    return {
        "masks": {
            "encoding": data.get("mask_encoding", "files"),
            "values": data.get("mask_values"),
            "scale": data.get("mask_scale"),
            "ignore_index": ignore_index,
        },
        "separator": data.get("label_separator"),
        "exif": data.get("exif"),
        "missing": ignore_index if data.get("missing_targets") else None,  # of a further output
        "reduction": data.get("unit_reduction", "mean"),
    }


def _target_columns(columns: Columns, task: Task) -> list[str]:
    if columns.target is None:
        return [task.column]
    if isinstance(columns.target, str):
        return [columns.target]
    repeated = sorted({name for name in columns.target if list(columns.target).count(name) > 1})
    if repeated or not columns.target:
        problem = f"has {', '.join(repeated)} more than once" if repeated else "is an empty list"
        raise Refusal(f"data.columns.target {problem}: name each column once, or set null for {task.column!r}")
    if task.field.spatial and task.exclusive:
        raise Refusal(
            f"data.columns.target is a list, but {task.name} needs one column, with mask paths; for a mask per class "
            "set data.masks=overlapping"
        )
    return list(columns.target)
