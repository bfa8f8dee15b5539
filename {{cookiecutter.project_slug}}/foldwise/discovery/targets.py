"""Which columns of a table are the target and the groups, and what kind of target it is; each with its evidence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.problems import some
from foldwise.data.run_lengths import RUNS
from foldwise.data.table import MISSING
from foldwise.data.targets import NEARLY_ALL, NUMBER, SEPARATORS, find_separator, split_cells
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


TASKS = {  # of each kind of target, and why
    "class": ("multiclass", "as each picture has one class"),
    "individual": ("multiclass", "as each picture has one name"),
    "grade": ("multiclass", "as each picture has one grade"),
    "labels": ("multilabel", "as a picture has any number of labels"),
    "number": ("regression", "as the target is a number"),
    "rle": ("segmentation", "a mask per class, as codes can overlap"),
    "files": ("segmentation", "as each pixel has a class"),
}


@dataclass(frozen=True)
class Target:
    """What a column holds, or several.

    Attributes:
        kind: one of TASKS, or "" (undecided).
    """

    columns: tuple[str, ...]
    kind: str
    evidence: str
    separator: str | None = None
    doubt: str = ""

    @property
    def task(self) -> str:
        return TASKS[self.kind][0] if self.kind else ""


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
    (name,), known = columns, set(words(columns[0]))
    cells = text_column(frame[name])
    filled = cells[~cells.isin(MISSING)]
    distinct = Counter(filled)
    names, rare = [name for name, _ in distinct.most_common()], sum(count < 3 for count in distinct.values())
    kind = "individual" if len(distinct) > MANY and rare > RARE * len(distinct) else "class"
    if _are_runs(filled):
        return Target((name,), "rle", f"{name} holds run-length codes (start length ...), as {filled.iat[0][:20]!r}")
    if all(NUMBER.fullmatch(cell) for cell in distinct):
        return _numbers(name, known, filled, kind, text_column(answers[name]) if name in answers else ())
    if found := _separator(names, bool(SEVERAL & known)):
        separator, doubt = found
        parts = {part for cell in split_cells(filled, separator) for part in cell}
        what = "spaces" if separator == " " else repr(separator)
        evidence = f"{name}: {len(distinct):,} different cells are made of {len(parts):,} names separated by {what}"
        return Target((name,), "labels", evidence, None if separator == " " else separator, doubt)
    evidence = f"{name}: {len(distinct):,} different names in {len(filled):,} rows, such as {some(names, 3)}"
    if len(distinct) == len(filled):
        return Target((name,), "", evidence, doubt=f"every row of {name} has another value, which cannot be learnt")
    return Target((name,), kind, evidence + f"; {rare:,} of them have one or two pictures" * (kind == "individual"))


def _several(frame: pd.DataFrame, columns: Sequence[str]) -> Target:
    names, shown = tuple(columns), f"{len(columns)} columns ({some(columns, 3)})"
    if all(_are_runs(text_column(frame[name])) for name in columns):
        return Target(names, "rle", f"{shown} of run-length codes")
    texts = frame[list(columns)].replace(list(MISSING), "")
    values = texts.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if (np.isnan(values) & (texts != "").to_numpy()).any() or np.isnan(values).all():
        return Target(names, "", shown, doubt=f"{shown} hold texts: one of them can be the target")
    inside, binary = ((values >= 0) & (values <= 1)).all(), np.isin(values, (0, 1)).all()
    if inside and np.abs(values.sum(axis=1) - 1).max() < 1e-3:
        kind = "a 1 in each row" if binary else "probabilities, which add up to 1 in each row"
        return Target(names, "class", f"{shown} with {kind}")
    if binary:
        most = int(values.sum(axis=1).max())
        return Target(names, "labels", f"{shown} of 0 and 1, none to {most} of them 1 in a row")
    if (values == np.round(values)).all():
        doubt = f"{shown} are whole numbers: amounts or classes? For amounts write in columns target: [...]"
        return Target(names, "", shown, doubt=doubt)
    doubt = f"{shown} are numbers from 0 to 1; if they are probabilities of labels set task=multilabel"
    return Target(names, "number", f"{shown} of numbers", doubt=doubt if inside else "")


def _numbers(name: str, known: set[str], cells: pd.Series, kind: str, answers: Sequence[str]) -> Target:
    """The target of a column of numbers; `kind`, class or individual, if they are names."""
    values, doubt = sorted(set(map(float, cells))), ""
    few, extent = len(values) <= FEW, f"{values[0]:g} to {values[-1]:g}"
    fractions = [cell for cell in cells if not float(cell).is_integer()]
    if fractions:
        return Target((name,), "number", f"{name} has decimals such as {fractions[0]}, from {extent}")
    evidence = f"{name}: {len(values):,} different whole numbers, {extent}, in {len(cells):,} rows"
    decimals = [cell for cell in answers if NUMBER.fullmatch(cell) and not float(cell).is_integer()]
    if len(values) == 2:
        kind = "class"
    elif GRADES & known and few:
        kind = "grade"
    elif (AMOUNTS | SIZES) & known:
        kind = "number"
    elif (NAMES | INDIVIDUAL) & known:
        pass
    elif decimals and not few:
        kind, evidence = "number", f"{evidence}; the sample submission has decimals such as {decimals[0]}"
    elif few and values == [values[0] + step for step in range(len(values))]:
        kind = "class"
    else:
        kind = "class" if len(values) <= MANY else "number"
        other = "task=regression metric=rmse" if kind == "class" else "task=multiclass metric=accuracy"
        doubt = f"{name} may be classes or amounts; taken as {kind}. The other: {other}"
    return Target((name,), kind, evidence, doubt=doubt)


def _are_runs(cells: pd.Series) -> bool:
    """Whether all filled cells are run-length codes whose starts grow, and most have several runs or a long one."""
    filled = cells[~cells.isin((*MISSING, "-1", "1 0", "0"))]
    sample = filled.iloc[:: max(1, len(filled) // 500)]
    if sample.empty or not sample.map(lambda cell: RUNS.fullmatch(str(cell).strip()) is not None).all():
        return False
    numbers = [np.array(str(cell).split(), np.int64) for cell in sample]
    grow = all((np.diff(code[0::2]) > code[1:-1:2] - 1).all() for code in numbers)
    return grow and bool(np.median([code[1::2].sum() for code in numbers]) > 1 or max(map(len, numbers)) > 6)


def _separator(distinct: Sequence[str], several: bool) -> tuple[str, str] | None:
    """The separator of the labels in cells, with a doubt; None if each cell is one name."""
    if found := find_separator(distinct, ()):
        return found[0], ""
    for separator in SEPARATORS.strip() if several else "":
        if _shared([cell.split(separator) for cell in distinct]) >= 0.5:
            return separator, ""
    cells = [cell.split() for cell in distinct]
    names = {name for parts in cells for name in parts}
    shared, lengths = _shared(cells), set(map(len, cells))
    if shared and all(map(str.isdecimal, names)):
        return " ", ""
    if len(names) >= len(cells) or shared < NEARLY_ALL or len(lengths) < 2:
        return None
    example = next(cell for cell, parts in zip(distinct, cells, strict=True) if len(parts) > 1)
    doubt = f"cells such as {example!r} may be one class: then add task=multiclass metric=accuracy"
    return " ", "" if several or len(names) * 2 <= len(cells) else doubt


def _shared(cells: Sequence[Sequence[str]]) -> float:
    """Share of the names in cells of several that other cells have too; 0 if a cell has one twice."""
    times = Counter(name.strip() for names in cells for name in {*map(str.strip, names)})
    shared = [times[name.strip()] > 1 for names in cells if len(names) > 1 for name in names]
    repeated = any(len({*map(str.strip, names)}) < len(names) for names in cells)
    return 0.0 if repeated or not shared else sum(shared) / len(shared)


def box_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold bounding boxes."""
    corners = [name for name in frame if name.casefold() in CORNERS]
    return [name for name in frame if name.casefold() in BOXES] + (corners if len(corners) > 1 else [])
