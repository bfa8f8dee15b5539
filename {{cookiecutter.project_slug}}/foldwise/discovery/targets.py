"""Which columns of a table are the target and the groups, and what kind of target it is; each with its evidence."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.run_lengths import RUNS
from foldwise.data.table import MISSING
from foldwise.data.targets import NEARLY_ALL, NUMBER, SEPARATORS, split_cells
from foldwise.discovery.files import words

# Words in names of columns.
TARGET = {
    "label", "labels", "class", "classes", "target", "targets", "tag", "tags", "category", "categories", "species",
    "breed", "diagnosis", "grade", "disease", "attribute", "individual", "identity", "ans", "answer", "classname",
}  # fmt: skip
NAMES = {"label", "labels", "class", "category", "species", "breed", "id", "code", "disease", "type"}
SEVERAL = {"labels", "tags", "attributes", "classes", "categories", "targets"}
GRADES = {"grade", "diagnosis", "level", "severity", "stage", "rating", "isup", "kl", "score", "quality", "degree"}
AMOUNTS = {  # not age, which is more often known of a patient than asked for
    "count", "price", "weight", "amount", "value", "yield", "volume", "percentage", "biomass", "density",
    "concentration", "popularity", "temperature",
}  # fmt: skip
SIZES = {"area", "height", "length", "width", "size", "depth", "number", "ratio"}
INDIVIDUAL = {"individual", "identity", "whale", "person", "landmark", "name", "animal"}
CORNERS = {"xmin", "ymin", "xmax", "ymax", "x_min", "y_min", "x_max", "y_max", "x1", "y1", "x2", "y2", "left", "top"}
BOXES = {"bbox", "bboxes", "box", "boxes"}
FEW = 10  # grades
MANY = 30  # whole numbers without a telling name are not called classes or numbers beyond
CLASS = {"class", "classid", "label", "category"}  # of a mask in a row
RARE = 0.5  # share of names with one or two rows, from which they look like individuals


@dataclass(frozen=True)
class Target:
    """What a column holds, or several.

    Attributes:
        kind: class, labels, number, grade, individual, rle, files, or "" (undecided).
    """

    columns: tuple[str, ...]
    kind: str
    evidence: str
    separator: str | None = None
    doubt: str = ""

    @property
    def task(self) -> str:
        tasks = {"labels": "multilabel", "number": "regression", "rle": "segmentation", "files": "segmentation"}
        return tasks.get(self.kind, "multiclass")


def choose_columns(
    train: pd.DataFrame, free: Sequence[str], test: Sequence[str] | None, answers: pd.DataFrame
) -> tuple[list[str], str, list[str]]:
    """Choose the target among the free columns: (columns, evidence, other candidates).

    Args:
        test: columns of the test table; None if there is none.
        answers: of the sample submission, without its ids.
    """
    if asked := [name for name in answers if name in free]:
        return asked, "the sample submission asks for it", []
    for name in free:  # names here, there a column a class, or answers
        cells = set(text_column(train[name]))
        names = cells | {part for cell in cells for part in cell.split()}
        if len(answers.columns) > 1 and set(answers) <= names:
            return [name], "its values are the columns of the sample submission", []
        given = {
            part for cell in answers.to_numpy().ravel() for part in str(cell).split() if not NUMBER.fullmatch(part)
        }
        if len(answers.columns) == 1 and given and given <= names:
            return [name], "the answers of the sample submission are among its values", []
    left = [name for name in free if test is None or name not in test] or list(free)
    if runs := [name for name in left if _are_runs(text_column(train[name]))]:
        return runs, "", []
    binary = [name for name in left if set(text_column(train[name])) <= {"0", "1", "0.0", "1.0"}]
    if len(left) == 1:
        return left, "the only other column" if test is None else "the only one that the test table lacks", []
    if len(binary) == len(left) > 1:
        return binary, "columns of 0 and 1", []
    for known in (TARGET, GRADES | AMOUNTS):
        if named := [name for name in left if known & set(words(name))]:
            others = [name for name in left if (GRADES | AMOUNTS | SIZES) & set(words(name)) and name not in named]
            return (named, "by its name", others) if len(named) == 1 else ([], "", named)
    return (binary, "columns of 0 and 1", []) if len(binary) > 2 else ([], "", left)


def judge(frame: pd.DataFrame, columns: Sequence[str], answers: pd.DataFrame) -> Target:
    """Find the kind of target columns.

    Args:
        answers: of the sample submission, without its ids.
    """
    if len(columns) > 1:
        return _several(frame, columns)
    name = columns[0]
    known = set(words(name))
    cells = text_column(frame[name])
    filled = cells[~cells.isin(MISSING)]
    distinct = Counter(filled)
    if _are_runs(filled):
        return Target((name,), "rle", f"{name} holds run-length codes (start length ...), as {filled.iat[0][:20]!r}")
    numbers = all(NUMBER.fullmatch(cell) for cell in distinct)
    if not numbers and (separator := _separator(distinct, bool(SEVERAL & known))):
        parts = {part for cell in split_cells(filled, separator[0]) for part in cell}
        what = "spaces" if separator[0] == " " else repr(separator[0])
        evidence = f"{name}: {len(distinct):,} different cells are made of {len(parts):,} names separated by {what}"
        return Target((name,), "labels", evidence, None if separator[0] == " " else separator[0], separator[1])
    if numbers:
        return _numbers(name, known, filled, distinct, text_column(answers[name]) if name in answers else ())
    shown = ", ".join(str(value) for value, _ in distinct.most_common(3))
    evidence = f"{name}: {len(distinct):,} different names in {len(filled):,} rows, such as {shown}"
    rare = sum(count < 3 for count in distinct.values())
    if len(distinct) == len(filled):
        return Target((name,), "", evidence, doubt=f"every row of {name} has another value, which cannot be learnt")
    if len(distinct) > MANY and rare > RARE * len(distinct):
        return Target((name,), "individual", f"{evidence}; {rare:,} of them have one or two pictures")
    return Target((name,), "class", evidence)


def _several(frame: pd.DataFrame, columns: Sequence[str]) -> Target:
    shown = f"{len(columns)} columns ({', '.join(columns[:3])}{', ...' if len(columns) > 3 else ''})"
    values = frame[list(columns)].replace(list(MISSING), np.nan).apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if all(_are_runs(text_column(frame[name])) for name in columns):
        return Target(tuple(columns), "rle", f"{shown} of run-length codes")
    if np.isnan(values).all() or (np.isnan(values) & (frame[list(columns)] != "").to_numpy()).any():
        return Target(tuple(columns), "", f"{shown}", doubt=f"{shown} hold texts: one of them can be the target")
    inside = ((values >= 0) & (values <= 1)).all()
    one = np.abs(values.sum(axis=1) - 1).max() < 1e-3
    if inside and one:
        kind = "a 1 in each row" if np.isin(values, (0, 1)).all() else "probabilities, which add up to 1 in each row"
        return Target(tuple(columns), "class", f"{shown} with {kind}")
    if inside and np.isin(values, (0, 1)).all():
        most = int(values.sum(axis=1).max())
        return Target(tuple(columns), "labels", f"{shown} of 0 and 1, none to {most} of them 1 in a row")
    if (values == np.round(values)).all() and not inside:
        doubt = f"{shown} are whole numbers: amounts or classes? For amounts write in columns target: [...]"
        return Target(tuple(columns), "", shown, doubt=doubt)
    doubt = (
        f"{shown} are numbers from 0 to 1; if they are probabilities of labels set task=multilabel" if inside else ""
    )
    return Target(tuple(columns), "number", f"{shown} of numbers", doubt=doubt)


def _numbers(name: str, known: set[str], cells: pd.Series, distinct: Counter[str], answers: Sequence[str]) -> Target:
    values = sorted(set(map(float, distinct)))
    low, high = f"{values[0]:g}", f"{values[-1]:g}"
    fraction = next((cell for cell in distinct if not float(cell).is_integer()), None)
    if fraction is not None:
        return Target((name,), "number", f"{name} has decimals such as {fraction}, from {low} to {high}")
    evidence = f"{name}: {len(values):,} different whole numbers, {low} to {high}, in {len(cells):,} rows"
    if len(values) == 2:
        return Target((name,), "class", evidence)
    if GRADES & known and len(values) <= FEW:
        return Target((name,), "grade", evidence)
    if (AMOUNTS | SIZES) & known:
        return Target((name,), "number", evidence)
    if (NAMES | INDIVIDUAL) & known:
        rare = sum(count < 3 for count in distinct.values())
        many = len(values) > MANY and rare > RARE * len(values)
        return Target((name,), "individual" if many else "class", evidence)
    fractions = [cell for cell in answers if NUMBER.fullmatch(cell) and not float(cell).is_integer()]
    if fractions and len(values) > FEW:
        return Target((name,), "number", f"{evidence}; the sample submission has decimals such as {fractions[0]}")
    if len(values) <= FEW and values == [values[0] + step for step in range(len(values))]:
        return Target((name,), "class", evidence)
    kind = "class" if len(values) <= MANY else "number"
    other = "task=regression metric=rmse" if kind == "class" else "task=multiclass metric=accuracy"
    return Target(
        (name,), kind, evidence, doubt=f"{name} may be classes or amounts; taken as {kind}. The other: {other}"
    )


def _are_runs(cells: pd.Series) -> bool:
    """Whether all filled cells are run-length codes whose starts grow, and most have several runs or a long one."""
    filled = cells[~cells.isin((*MISSING, "-1", "1 0", "0"))]
    some = filled.iloc[:: max(1, len(filled) // 500)]
    if some.empty or not some.map(lambda cell: RUNS.fullmatch(str(cell).strip()) is not None).all():
        return False
    numbers = [np.array(str(cell).split(), np.int64) for cell in some]
    grow = all((np.diff(code[0::2]) > code[1:-1:2] - 1).all() for code in numbers)
    return grow and bool(np.median([code[1::2].sum() for code in numbers]) > 1 or max(map(len, numbers)) > 6)


def _separator(distinct: Counter[str], several: bool) -> tuple[str, str] | None:
    """The separator of the labels in cells, with a doubt; None if each cell is one name."""
    best: tuple[str, str] | None = None
    for separator in SEPARATORS:
        cells = {
            cell: [
                part for part in re.split(r"\s+" if separator == " " else re.escape(separator), cell) if part.strip()
            ]
            for cell in distinct
        }
        combined = [cell for cell, parts in cells.items() if len(parts) > 1]
        times = Counter(part.strip() for parts in cells.values() for part in set(parts))
        if not combined or any(len(set(parts)) < len(parts) for parts in cells.values()):
            continue
        parts = [part.strip() for cell in combined for part in cells[cell]]
        shared = sum(times[part] > 1 for part in parts) / len(parts)
        bracketed = sum(cell.strip()[0] in "[({" for cell in combined) == len(combined)
        lengths = {len(parts) for parts in cells.values()}
        if separator == " " and not bracketed:
            numbers = all(re.fullmatch(r"\d+", part) for part in times)
            if numbers or (len(times) < len(distinct) and shared >= NEARLY_ALL and len(lengths) > 1):
                doubt = (
                    ""
                    if numbers or several or len(times) * 2 <= len(distinct)
                    else (f"cells such as {combined[0]!r} may be one class: then add task=multiclass metric=accuracy")
                )
                best = best or (" ", doubt)
        elif shared >= NEARLY_ALL or (several and shared >= 0.5):
            return separator, ""
    return best


def box_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold bounding boxes."""
    corners = [name for name in frame if name.casefold() in CORNERS]
    return [name for name in frame if name.casefold() in BOXES] + (corners if len(corners) > 1 else [])
