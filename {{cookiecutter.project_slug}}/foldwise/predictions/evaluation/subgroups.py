"""Parts of a table: subgroups that are scored for themselves, and images that are only looked at."""

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

MOST_VALUES = 20  # of a column that makes subgroups by default
MOST_SUBGROUPS = 100  # of a column that is asked for
CANONICAL = ("id", "image", "mask", "group", "unit", "weight", "fold")


def subgroup_columns(table: Table, declared: Mapping[str, Any], by: Sequence[str] | None = None) -> list[str]:
    """The columns `by`, or else the table's extra columns with 2 to 20 values.

    Args:
        declared: `data.columns` of the configuration: these columns make no subgroups by default.

    Raises:
        Refusal: columns that the table does not have, or that have more than 100 values.
    """
    if by is not None:
        for name in by:
            count = _column(table, name).nunique()
            if count > MOST_SUBGROUPS:
                raise Refusal(f"the column {name} has {count:,} values, and at most {MOST_SUBGROUPS} make subgroups")
        return list(by)
    own = {*CANONICAL, find_task(table.task).column}
    for names in declared.values():
        own |= {names} if isinstance(names, str) else set(names or ())
    return [name for name in table.frame if name not in own and 2 <= _column(table, name).nunique() <= MOST_VALUES]


def subgroups(table: Table, column: str, rows: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """The column, a value and the positions in `rows` that have it, for each value in sorted order."""
    values = _column(table, column).iloc[rows].to_numpy()
    return [(column, value or "(empty)", np.flatnonzero(values == value)) for value in sorted(set(values))]


def shown_rows(table: Table, show: str) -> np.ndarray:
    """(N,) bool: the rows that `show` selects, a file with one id a line, or column=value.

    Raises:
        Refusal: neither, or ids or values that the table does not have.
    """
    if Path(show).is_file():
        ids = {line.strip() for line in read_text(Path(show)).split("\n")} - {""}
        if unknown := listed(f"ids that {table.path} does not have", ids - set(table.ids)):
            raise Refusal(f"{show} has {unknown[0]}")
        return table.frame["id"].isin(ids).to_numpy()
    column, equals, value = show.partition("=")
    if not equals:
        raise Refusal(f"--show {show} is neither a file of ids nor column=value")
    values = _column(table, column)
    if value not in set(values):
        raise Refusal(f"no row of {table.path} has {column} {value!r}; it has {some(sorted(set(values)), 10)}")
    return (values == value).to_numpy()


def _column(table: Table, name: str) -> Any:
    """A column as text."""
    if name not in table.frame:
        raise Refusal(f"{table.path} has no column {name}; its columns are {', '.join(table.frame)}")
    return table.frame[name].astype(str)
