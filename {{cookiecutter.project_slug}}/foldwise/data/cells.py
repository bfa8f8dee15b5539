"""Check the cells of a table's columns, and convert them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.data.masks import IN_FILES, SEPARATOR
from foldwise.data.paths import check_paths
from foldwise.data.problems import Check, has_stray_spaces, some
from foldwise.data.run_lengths import RUNS

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def text_column(column: pd.Series) -> pd.Series:
    """Convert a column to text; missing values become empty."""
    return column.astype(object).where(column.notna(), "").map(str)


def check_ids(ids: pd.Series, stored: pd.Series, check: Check) -> None:
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


def check_masks(cells: pd.Series, root: Path, name: str, encoding: str, exclusive: bool, check: Check) -> None:
    """Check mask paths or run-length codes; a cell may be empty unless classes are exclusive."""
    if encoding in IN_FILES:
        if (cells != "").any() and cells.map(lambda text: RUNS.fullmatch(text) is not None).all():
            check.problems.append(
                f"the column {name!r} has run-length codes, not files: set data.masks=overlapping "
                "data.mask_encoding=rle and data.columns.target to a list of a column per class"
            )
            return
        check_paths(cells, root, "mask", check, optional=not exclusive)
        shared = cells.str.contains(SEPARATOR, regex=False)
        check.rows(shared, f"the path in {name!r} has a {SEPARATOR}: rename the file")
        return
    check.cells(
        ~cells.map(lambda text: RUNS.fullmatch(text) is not None).to_numpy(bool),
        cells.str[:40],
        f"{{}} in column {name!r} is no run-length code: pairs of start and length, such as 1 3 10 5, or nothing for "
        "an empty mask",
    )


def weight_column(column: pd.Series, check: Check) -> pd.Series:
    weight = pd.to_numeric(column, errors="coerce").astype(float)
    bad = ~np.isfinite(weight) | (weight < 0)
    comma = column.astype(str).str.contains(",")
    for rows, advice in ((bad & comma, ": write decimals with a point"), (bad & ~comma, "")):
        check.cells(rows, column, "the weight {} is not a number of 0 or more" + advice)
    if not bad.any() and weight.sum() == 0:
        check.problems.append("all weights are 0")
    return weight


def gold_column(column: pd.Series, check: Check) -> pd.Series:
    """Convert 1 and 0, true and false, or an empty cell, to bool."""
    gold = is_gold(column)
    bad = ~gold & ~text_column(column).str.strip().str.lower().isin(["", "0", "0.0", "false"])
    check.cells(bad, column, "the cell {} of the gold column is not 1 (never trained, always scored), 0 or empty")
    if not gold.any() and not bad.any():
        check.problems.append(
            f"the gold column {column.name!r} marks no row with 1: do so, or set data.columns.gold=null"
        )
    return gold


def is_gold(column: pd.Series) -> pd.Series:
    return text_column(column).str.strip().str.lower().isin(["1", "1.0", "true"])


def check_gold(frame: pd.DataFrame, check: Check) -> None:
    """Refuse scenes with gold rows and others, which are trained: the gold score would be too good."""
    for name in frame.columns.intersection(["image", "group", "unit"], sort=False):
        shared = sorted(set(frame[name][frame["gold"]]) & set(frame[name][~frame["gold"]]))
        if shared:
            check.problems.append(
                f"{len(shared):,} {name}s have gold rows and others: {some(shared)}; mark all rows of each, or none"
            )


def fold_column(column: pd.Series, check: Check) -> pd.Series:
    fold = pd.to_numeric(column, errors="coerce").astype(float)
    bad = ~np.isfinite(fold) | (fold < -1) | (fold != np.floor(fold))
    check.cells(bad, column, "the fold {} is not a whole number of -1 (always train) or more")
    return fold.where(~bad, -1).astype(int)
