"""Collect all problems of a table, to report them in one error."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.errors import Refusal


class TableError(Refusal):
    """A table or its images cannot be used; `problems` has one message each."""

    shown = 20

    def __init__(self, source: Path | str, problems: Sequence[str]):
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"{source} has {count}:", *(f"  - {problem}" for problem in self.problems[: self.shown])]
        if len(self.problems) > self.shown:
            lines.append(f"  and {len(self.problems) - self.shown} more")
        super().__init__("\n".join(lines))


class Check:
    """Collects problems; names rows by line in a CSV, by number from 1 in a parquet file."""

    each = 3  # values of one cause that are problems of their own; more are one

    def __init__(self, path: Path):
        self.path = path
        self.problems: list[str] = []
        self.lines = np.arange(0)
        self.ids = np.arange(0)
        self.noun = "row" if path.suffix == ".parquet" else "line"

    def rows(self, bad: Any, message: str | Callable[[int], str]) -> None:
        """Add a problem for the rows where `bad` is true, one for all rows with the same message."""
        rows_of: dict[str, list[int]] = {}
        for row in np.flatnonzero(np.asarray(bad, dtype=bool)).tolist():
            rows_of.setdefault(message if isinstance(message, str) else message(row), []).append(row)
        for text, rows in rows_of.items():
            where = f"{self.noun} {self.lines[rows[0]]} (id {self.ids[rows[0]]!r})"
            if len(rows) > 1:
                where = f"{len(rows):,} rows, {self.name_lines(rows)} (the first id is {self.ids[rows[0]]!r})"
            self.problems.append(f"{where}: {text}")

    def cells(self, bad: Any, values: Any, message: str) -> None:
        """As `rows`, for values that share a cause: `{}` in the message stands for the value, or for some of many."""
        bad = np.asarray(bad, dtype=bool)
        if not bad.any():
            return
        values = np.asarray(values, dtype=object)
        distinct = list(dict.fromkeys(map(repr, values[bad])))
        if len(distinct) > self.each:
            self.rows(bad, message.replace("{}", some(distinct, self.each)))
        else:
            self.rows(bad, lambda row: message.replace("{}", repr(values[row])))

    def name_lines(self, rows: Any) -> str:
        return f"{self.noun}s {some(self.lines[rows])}"

    def stop_if_bad(self) -> None:
        if self.problems:
            raise TableError(self.path, self.problems)


# How the ids of two files often differ, by what to ignore.
WRITINGS: dict[str, Callable[[str], str]] = {
    "leading zeros": lambda id: id.lstrip("0"),
    "a .0 at the end": lambda id: id.removesuffix(".0"),
    "a suffix such as .jpg": lambda id: id.rpartition(".")[0] or id,
    "folders": lambda id: id.rpartition("/")[2],
    "the case": str.casefold,
    "spaces": lambda id: "".join(id.split()),
}


def explain_ids(first: Iterable[str], second: Iterable[str]) -> str:
    """Say what most ids of two files differ by, as " (they differ only by leading zeros)"; "" if by nothing known."""
    one, two = set(first), set(second)
    for name, plain in WRITINGS.items():
        alike = {plain(id) for id in one} & {plain(id) for id in two}
        if len(alike) > 2 * len(one & two) and len(alike) >= 0.9 * min(len(one), len(two)):
            return f" (they differ only by {name})"
    return ""


def has_stray_spaces(values: pd.Series) -> np.ndarray:
    """True for texts with whitespace at an end, repeated spaces, or whitespace other than a plain space."""
    codes, unique = pd.factorize(values)
    return np.array([value != " ".join(value.split()) for value in unique], dtype=bool)[codes]


def shorten(lines: Sequence[str], most: int = 5) -> list[str]:
    """Keep the first lines, and count the rest."""
    return [*lines[:most], *([f"and {len(lines) - most:,} more"] if len(lines) > most else [])]


def enumerated(names: Sequence[str]) -> str:
    """Join names as in "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def some(names: Sequence[Any], most: int = 5) -> str:
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def first_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1:,} more)"
