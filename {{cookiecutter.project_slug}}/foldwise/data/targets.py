"""Read class names and targets from a table; targets have one float32 column per class."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.problems import Check, TableError, some
from foldwise.errors import Refusal
from foldwise.tasks.base import Task

# Other columns of a prediction file, next to those of the classes.
RESERVED_CLASSES = ("id", "fold", "snapshot", "view")

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
SEPARATORS = ",;|/+&: "  # that are looked for; spaces only in brackets
BRACKETED = re.compile(r"\[.*\]|\(.*\)|\{.*\}", re.DOTALL)
LISTS = (list, tuple, set, frozenset, np.ndarray)
NEARLY_ALL = 0.9  # of the cells with a separator must split into names of other cells

SOFT_SUM_TOLERANCE = 1e-3  # probabilities are often rounded to three or four digits


def check_class_names(classes: Sequence[Any] | None, task: Task, check: Check) -> list[str] | None:
    """Check class names and convert them to text: YAML parses some as numbers, and an unquoted `no` as False."""
    if classes is None:
        return None
    names = [str(name) for name in classes]
    for name in classes:
        if name is None or isinstance(name, bool):
            check.problems.append(f"data.classes has {name!r}: put the name in quotes, or YAML reads it as a value")
    for name in sorted({name for name in names if names.count(name) > 1}):
        check.problems.append(f"data.classes has {name!r} more than once")
    if len(names) < task.fewest:
        check.problems.append(f"data.classes has {len(names)} names; {task.name} needs {task.fewest} or more")
    return names


def as_numbers(names: Sequence[str]) -> list[Decimal] | None:
    """Convert names such as 3, 03 or 3.0 to numbers; None if one is no number."""
    return list(map(Decimal, names)) if all(map(NUMBER.fullmatch, names)) else None


def check_order(what: str, names: Sequence[str], ordered: bool) -> None:
    """Refuse grades that are numbers out of order (1, 10, 2), or words whose order was not given."""
    numbers = as_numbers(names)
    if numbers is not None and numbers != sorted(numbers):
        raise Refusal(
            f"{what} needs classes in the order of the grades, not {', '.join(names)}; set in "
            f"configs/data: classes: {json.dumps(sorted(names, key=Decimal), ensure_ascii=False)}"
        )
    if numbers is None and not ordered:
        raise Refusal(
            f"{what} needs the order of the grades, and their names are not numbers; list them in "
            f"configs/data from the lowest to the highest: classes: {json.dumps(list(names), ensure_ascii=False)}"
        )


def split_cells(column: pd.Series, separator: str) -> pd.Series:
    """Split the texts of a column into tuples of names; lists stay."""
    texts = column.astype(object).where(column.notna(), "")
    return texts.map(lambda cell: cell if isinstance(cell, LISTS) else _split(str(cell), separator))


def _split(cell: str, separator: str) -> tuple[str, ...]:
    """Split a cell into names; one in brackets also loses these and the quotes, as in "['cat', 'dog']"."""
    bracketed = BRACKETED.fullmatch(cell.strip()) is not None
    text = cell.strip()[1:-1] if bracketed else cell
    parts = [part.strip() for part in (text.split() if separator.isspace() else text.split(separator))]
    if bracketed:
        return tuple(part.strip("'\"") for part in parts if part)
    return () if parts == [""] else tuple(parts)


def find_separator(cells: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    """Find a separator other than spaces, and an example; None unless nearly all cells with it split into known names.

    Known are `names` and what other cells have too.
    """
    best, most = None, 0
    bracketed = {cell for cell in cells if BRACKETED.fullmatch(cell.strip()) and _split(cell, " ")}
    for separator in SEPARATORS:
        split = {cell: _split(cell, separator) for cell in cells}
        times = Counter([*names, *names, *(part for parts in split.values() for part in set(parts))])
        combined = [cell for cell in cells if cell in bracketed or (separator in cell.strip() and separator != " ")]
        good = 0
        for cell in combined:
            single = len(split[cell]) == 1 and not re.search(r"[\s'\"]", split[cell][0])
            good += (single and cell in bracketed) or all(times[part] > 1 for part in split[cell])
        if good > most and good >= NEARLY_ALL * len(combined):
            best, most = (separator, max(combined, key=lambda cell: len(split[cell]))), good
    return best


def _label_names(value: str | tuple[str, ...], multilabel: bool) -> list[str]:
    if isinstance(value, tuple):
        return list(value)
    return value.split() if multilabel else [" ".join(value.split())]


def hard_targets(
    column: pd.Series, task: Task, names: list[str] | None, check: Check
) -> tuple[list[str], np.ndarray | None]:
    """Return class names and targets: one-hot from `label`, or multi-hot from `labels`, text with spaces or lists."""
    multilabel = not task.exclusive
    labels = column.astype(object).where(column.notna(), "")
    labels = labels.map(lambda cell: tuple(map(_as_text, cell)) if isinstance(cell, LISTS) else str(cell))
    codes, unique = pd.factorize(labels.to_numpy(object))  # parse each distinct value only once
    parsed = [_label_names(value, multilabel) for value in unique]
    texts = [value for value in unique if isinstance(value, str)]

    def report(bad: Callable[[Any, list[str]], bool], message: str) -> None:
        of_value = [bad(value, parts) for value, parts in zip(unique, parsed, strict=True)]
        check.cells(np.array(of_value, dtype=bool)[codes], labels, message)

    new = multilabel and not {part for text in texts for part in text.split()} <= set(names or ())
    if new and (found_separator := find_separator(texts, names or ())):
        separator, example = found_separator
        text = f"cells such as {example!r} seem to hold several labels: write in configs/data: "
        keep = "" if example[0] in "[({" else '; or label_separator: " " if each is one label'
        check.problems.append(f'{text}label_separator: "{separator}"{keep}')
        return names or [], None
    report(
        lambda value, _: any(part != " ".join(part.split()) for part in ([value] if isinstance(value, str) else value)),
        "the label {} has whitespace at its ends or two spaces in a row: remove it",
    )
    report(lambda value, parts: isinstance(value, tuple) and "" in parts, "a label is empty in {}")
    if not multilabel:
        report(lambda value, _: value == "", "the label is empty")
        report(
            lambda value, _: isinstance(value, tuple),
            f"the label {{}} is a list: is the task multilabel, not {task.name}?",
        )
    report(lambda _, parts: len(set(parts)) < len(parts), "a label occurs twice in {}")
    found = {part for parts in parsed for part in parts if part}
    if names is None:
        # Numbers sort as numbers: metrics like kappa depend on the order of grades.
        names = sorted(found)
        if numbers := as_numbers(names):
            names = [name for _, name in sorted(zip(numbers, names, strict=True))]
        if len(names) < task.fewest:
            check.problems.append(
                f"the number of classes in the table is {len(names)}; {task.name} needs {task.fewest} or more"
            )
    else:
        listed = f"the classes are {some(names, 20)}"
        unknown = sorted(found - set(names))
        if len(unknown) > TableError.shown:
            affected = np.array([not set(parts) <= {*names, ""} for parts in parsed])[codes]
            check.rows(
                affected,
                f"{len(unknown)} unknown labels, such as {some(list(map(repr, unknown)), 3)}; {listed}: is "
                f"data.columns.target the column of the labels, and the task {task.name}?",
            )
        else:
            for name in unknown:
                affected = np.array([name in parts for parts in parsed])[codes]
                check.rows(affected, f"unknown label {name!r}; {listed}: correct it, or add it to data.classes")
        if multilabel and any(texts):
            for name in (name for name in names if len(name.split()) != 1):
                check.problems.append(
                    f"the class {name!r} has a space, but spaces separate labels: rename it or set data.label_separator"
                )
    for name in (name for name in names if name in RESERVED_CLASSES):
        check.problems.append(f"a class cannot be called {name!r}: prediction files already have a column of that name")
    if check.problems:
        return names, None
    column = {name: number for number, name in enumerate(names)}
    rows = np.zeros((len(parsed), len(names)), np.float32)
    for row, parts in enumerate(parsed):
        rows[row, [column[part] for part in parts]] = 1
    return names, rows[codes]


def _as_text(value: Any) -> str:
    return "" if value is None or value != value else str(value)  # NaN differs from itself


def soft_targets(
    raw: pd.DataFrame, target_columns: list[str], task: Task, names: list[str] | None, check: Check
) -> tuple[list[str], np.ndarray | None]:
    """Return class names and soft targets, read from one column of probabilities per class."""
    names = names or target_columns
    if sorted(names) != sorted(target_columns):
        check.problems.append(
            f"data.classes ({', '.join(names)}) and data.columns.target "
            f"({', '.join(target_columns)}) must have the same names"
        )
        return names, None
    numbers = raw[names].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    outside = ~((numbers >= 0) & (numbers <= 1))
    known, texts = numbers[np.isfinite(numbers)], raw[names].to_numpy(object)[np.isnan(numbers)]
    advice = ""
    if (known > 1).any() and (known >= 0).all() and (known <= 100).all():
        advice = ": divide percentages by 100"
    elif any(str(text).strip().isalpha() for text in texts):
        advice = ": write 0 and 1 for no and yes"
    wrong_columns = [name for name, bad in zip(names, outside.T, strict=True) if bad.any()]
    if len(wrong_columns) > check.each:
        what = f"{len(wrong_columns):,} columns have values not within 0 to 1{advice}: {some(wrong_columns)}"
        check.rows(outside.any(axis=1), what)
    else:
        for name in wrong_columns:
            check.cells(outside[:, names.index(name)], raw[name], f"{name} is {{}}, not within 0 to 1{advice}")
    if task.exclusive:
        sums = np.array([float(f"{value:.4g}") for value in numbers.sum(axis=1)], dtype=object)
        wrong = ~outside.any(axis=1) & (np.abs(numbers.sum(axis=1) - 1) > SOFT_SUM_TOLERANCE)
        check.cells(wrong, sums, "the class probabilities sum to {}, not to 1")
    return names, numbers.astype(np.float32)


def fill_missing(raw: pd.DataFrame, columns: Sequence[str], check: Check) -> tuple[pd.DataFrame, np.ndarray]:
    """Replace rows with empty target columns by the first complete one; also return which rows these are, bool (N,)."""
    empty = raw[list(columns)].isna() | (raw[list(columns)] == "")
    unknown = empty.all(axis=1).to_numpy(bool)
    if unknown.all():
        check.problems.append(f"the target {', '.join(columns)} is empty in every row")
        return raw, unknown
    first = raw.iloc[int(unknown.argmin())]
    return raw.assign(**{name: raw[name].where(~unknown, first[name]) for name in columns}), unknown


def check_units(units: pd.Series, target: np.ndarray, check: Check) -> None:
    """Check that all images of a unit have the same target, because they get one prediction."""
    codes, names = pd.factorize(units)
    first = pd.Series(np.arange(len(codes))).groupby(codes).first().to_numpy()
    differs = ~np.isclose(target, target[first[codes]], rtol=0, atol=0, equal_nan=True).all(axis=1)
    for code in np.unique(codes[differs]):
        check.problems.append(f"the unit {names[code]!r} has different targets: {check.name_lines(codes == code)}")
