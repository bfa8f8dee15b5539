"""Read class names and targets from a table; targets have one float32 column per class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.problems import Check, TableError, has_stray_spaces, some
from foldwise.tasks.base import Task

# Other columns of a prediction file, next to those of the classes.
RESERVED_CLASSES = ("id", "fold", "snapshot", "view")

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


def hard_targets(
    labels: pd.Series, task: Task, names: list[str] | None, check: Check
) -> tuple[list[str], np.ndarray | None]:
    """Return class names and targets: one-hot from `label`, or multi-hot from `labels`, separated by spaces."""
    multilabel = not task.exclusive
    stray = has_stray_spaces(labels)
    check.rows(stray, lambda row: f"the label {labels.iat[row]!r} has whitespace at its ends or two spaces in a row")
    if not multilabel:
        check.rows((labels == "") & ~stray, "the label is empty")
    # Parse each distinct value only once.
    codes, unique = pd.factorize(labels)
    parsed = [value.split() if multilabel else [" ".join(value.split())] for value in unique]
    repeated = np.array([len(set(parts)) < len(parts) for parts in parsed], dtype=bool)[codes]
    check.rows(repeated, lambda row: f"a label occurs twice in {labels.iat[row]!r}")
    found = {part for parts in parsed for part in parts if part}
    if names is None:
        # Integers sort as numbers: metrics like kappa depend on the order of grades.
        numeric = all(name.isascii() and name.isdigit() for name in found)
        names = sorted(found, key=lambda name: (int(name) if numeric else 0, name))
        if len(names) < task.fewest:
            check.problems.append(f"the table has {len(names)} classes; {task.name} needs {task.fewest} or more")
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
        if multilabel:
            for name in (name for name in names if len(name.split()) != 1):
                check.problems.append(f"the class {name!r} has a space, but spaces separate labels; rename it")
    for name in (name for name in names if name in RESERVED_CLASSES):
        check.problems.append(f"a class cannot be called {name!r}: prediction files already have a column of that name")
    if check.problems:
        return names, None
    column = {name: number for number, name in enumerate(names)}
    rows = np.zeros((len(parsed), len(names)), np.float32)
    for row, parts in enumerate(parsed):
        rows[row, [column[part] for part in parts]] = 1
    return names, rows[codes]


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

    def message(row: int) -> str:
        bad = [f"{name} is {raw[name].iat[row]!r}" for name, wrong in zip(names, outside[row], strict=True) if wrong]
        return f"{', '.join(bad)}, not within 0 to 1"

    check.rows(outside.any(axis=1), message)
    if task.exclusive:
        sums = numbers.sum(axis=1)
        wrong = ~outside.any(axis=1) & (np.abs(sums - 1) > SOFT_SUM_TOLERANCE)
        check.rows(wrong, lambda row: f"the class probabilities sum to {sums[row]:.4g}, not to 1")
    return names, numbers.astype(np.float32)


def check_units(units: pd.Series, target: np.ndarray, check: Check) -> None:
    """Check that all images of a unit have the same target, because they get one prediction."""
    codes, names = pd.factorize(units)
    first = pd.Series(np.arange(len(codes))).groupby(codes).first().to_numpy()
    differs = (target != target[first[codes]]).any(axis=1)
    for code in np.unique(codes[differs]):
        check.problems.append(f"the unit {names[code]!r} has different targets: {check.name_lines(codes == code)}")
