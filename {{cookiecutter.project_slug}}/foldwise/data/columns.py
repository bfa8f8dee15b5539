"""The columns of a table but for the target: read as what they mean, and checked row by row."""

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from foldwise.data.problems import Check, has_stray_blanks


def text_column(column: pd.Series) -> pd.Series:
    """The column as text; a missing value is empty."""
    return column.astype(object).where(column.notna(), "").map(str)


def check_ids(ids: pd.Series, check: Check) -> None:
    """Ids are there, once each, and without stray blanks."""
    check.rows(ids == "", "the id is empty")
    check.rows(has_stray_blanks(ids), "the id has blanks at its ends or in a row")
    repeated = ids[ids.duplicated(keep=False) & (ids != "")]
    for name, rows in repeated.groupby(repeated, sort=False).indices.items():
        check.problems.append(f"the id {name!r} is there more than once: {check.name_lines(repeated.index[rows])}")


def check_paths(paths: pd.Series, root: Path, what: str, check: Check) -> None:
    """Every path must be relative, name a file, and stay under the root after links are resolved."""
    real_root = root.resolve()
    folder_is_inside: dict[Path, bool] = {}  # folders are resolved once: a million files lie in few of them

    def problem(text: str) -> str | None:
        if not text:
            return f"the {what} path is empty"
        if "\\" in text:
            return f"the {what} path {text!r} has a backslash; write paths with /"
        relative = PurePosixPath(text)
        if relative.is_absolute() or ".." in relative.parts:
            return f"the {what} path {text!r} must be relative to the data root {root}, without '..'"
        file = root / relative
        if not os.path.isfile(file):  # noqa: PTH113  Path.is_file raises for a name that is too long
            return f"the {what} file {file} does not exist"
        if file.parent not in folder_is_inside:
            folder_is_inside[file.parent] = file.parent.resolve().is_relative_to(real_root)
        inside = folder_is_inside[file.parent]
        if file.is_symlink():
            inside = file.resolve().is_relative_to(real_root)
        if inside:
            return None
        return f"the {what} path {text!r} is a link that leaves the data root {root}: set data.root to its target"

    found = [problem(text) for text in paths]
    check.rows([message is not None for message in found], lambda row: str(found[row]))


def weight_column(column: pd.Series, check: Check) -> pd.Series:
    """The sample weights as float64, 0 or more, not all 0."""
    weight = pd.to_numeric(column, errors="coerce").astype(float)
    bad = ~np.isfinite(weight) | (weight < 0)
    check.rows(bad, lambda row: f"the weight {column.iat[row]!r} is not a number of 0 or more")
    if not bad.any() and weight.sum() == 0:
        check.problems.append("all weights are 0")
    return weight


def fold_column(column: pd.Series, check: Check) -> pd.Series:
    """The given folds as int64, -1 for always train."""
    fold = pd.to_numeric(column, errors="coerce").astype(float)
    bad = ~np.isfinite(fold) | (fold < -1) | (fold != np.floor(fold))
    check.rows(bad, lambda row: f"the fold {column.iat[row]!r} is not a whole number of -1 (always train) or more")
    return fold.where(~bad, -1).astype(int)
