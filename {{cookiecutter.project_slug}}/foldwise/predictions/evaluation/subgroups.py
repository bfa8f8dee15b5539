"""Subsets of a table: subgroups to score separately, and images to show but not score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data.problems import some
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.files import read_text
from foldwise.predictions.schema import listed
from foldwise.tasks import find_task

MOST_VALUES = 20  # of a column with subgroups by default
MOST_SUBGROUPS = 100  # of a column named with --by
CANONICAL = ("id", "image", "mask", "group", "unit", "weight", "fold", "gold")


def subgroup_columns(table: Table, declared: Mapping[str, Any], by: Sequence[str] | None = None) -> list[str]:
    """Return the columns `by`, with at most 100 values; by default the table's extra columns with 2 to 20 values.

    Args:
        declared: `data.columns` of the configuration, which are not extra.
    """
    if by is not None:
        for name in by:
            count = _column(table, name).nunique()
            if count > MOST_SUBGROUPS:
                raise Refusal(f"the column {name} has {count:,} values; subgroups allow at most {MOST_SUBGROUPS}")
        return list(by)
    known = {*CANONICAL, find_task(table.task).column}
    for names in declared.values():
        known |= {names} if isinstance(names, str) else set(names or ())
    return [name for name in table.frame if name not in known and 2 <= _column(table, name).nunique() <= MOST_VALUES]


def subgroups(table: Table, column: str, rows: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Return (column, value, indices into `rows`) for each value, sorted."""
    values = _column(table, column).iloc[rows].to_numpy()
    return [(column, value or "(empty)", np.flatnonzero(values == value)) for value in sorted(set(values))]


def shown_rows(table: Table, show: str) -> np.ndarray:
    """Select rows (N,) bool by `show`: a file with one id per line, or column=value; refuse unknown ids and values."""
    if Path(show).is_file():
        ids = {line.strip() for line in read_text(Path(show)).split("\n")} - {""}
        if unknown := listed(f"ids that are not in {table.path}", ids - set(table.ids)):
            raise Refusal(f"{show} has {unknown[0]}")
        return table.frame["id"].isin(ids).to_numpy()
    column, equals, value = show.partition("=")
    if not equals:
        raise Refusal(f"--show {show} is neither a file of ids nor column=value")
    values = _column(table, column)
    if value not in set(values):
        raise Refusal(f"no row of {table.path} has {column} {value!r}; its values are {some(sorted(set(values)), 10)}")
    return (values == value).to_numpy()


def _column(table: Table, name: str) -> Any:
    if name not in table.frame:
        raise Refusal(f"{table.path} has no column {name}; its columns are {', '.join(table.frame)}")
    return table.frame[name].astype(str)
