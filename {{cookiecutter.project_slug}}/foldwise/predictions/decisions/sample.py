"""The competition's sample submission: the column of the ids, the names of the rows, and those of the columns."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from foldwise.data.columns import plain
from foldwise.data.problems import some
from foldwise.data.table_file import read_file, read_header
from foldwise.predictions.schema import PredictionsError, raise_problems
from foldwise.shell import command

ROW = "\0row"  # column with the ids of rows that two columns name


@dataclass(frozen=True)
class Sample:
    """A sample submission, as text.

    Attributes:
        row_id: template of the row ids, see `Format`; None: the ids of images.
        copied: columns that number the rows, or that are in their ids.
        numbered: the first column numbers the rows and has no name; `frame` lacks it.
    """

    path: Path
    frame: pd.DataFrame
    id_column: str
    separator: str = ","
    row_id: str | None = None
    copied: tuple[str, ...] = ()
    numbered: bool = False

    @property
    def columns(self) -> list[str]:
        return [name for name in self.frame if name != ROW]

    @property
    def ids(self) -> list[str]:
        return self.frame[self.id_column].tolist()

    @property
    def values(self) -> list[str]:
        """Names of the columns of answers."""
        return [name for name in self.frame if name not in (self.id_column, *self.copied)]

    @property
    def notes(self) -> list[str]:
        """What was found that differs from ids in the first column, one for an image."""
        if self.id_column == ROW:
            return [f"Sample submission: {' and '.join(self.copied)} together name a row."]
        found = [f"the ids are in column {self.id_column}"] if self.id_column != self.frame.columns[0] else []
        found += [f"the rows are called {self.row_id}"] if self.row_id else []
        found += [f"{some(self.copied)} numbers the rows and is copied"] if self.copied else []
        found += ["the first column numbers the rows"] if self.numbered else []
        return [f"Sample submission: {'; '.join(found)}."] if found else []


def read_sample(path: Path) -> Sample:
    """Read and check a sample submission; the first column is taken for the ids, until `locate` looks for them."""
    frame = read_file(path).reset_index(drop=True).astype(str)
    problems = [] if len(frame.columns) > 1 else ["it has no column beside the ids"]
    problems += [] if len(frame) else ["it has no rows; a sample submission has one for every expected answer"]
    raise_problems(path, problems)
    if path.suffix == ".parquet":
        return Sample(path, frame, frame.columns[0])
    separator, header = read_header(path)
    return Sample(path, frame, frame.columns[0], separator, numbered=header[0] == "" and "" not in frame)


def locate(sample: Sample, ids: Iterable[str], classes: Sequence[str]) -> Sample:
    """Find the column that has the ids, and what its rows add to them, such as .jpg or the class."""
    known = set(ids)
    lengths = sorted({len(id) for id in known}, reverse=True)

    def split(row: str) -> tuple[str, str] | None:
        return next(((row[:length], row[length:]) for length in lengths if row[:length] in known), None)

    found = {name: [split(row) for row in sample.frame[name]] for name in sample.frame}
    name = max(found, key=lambda name: len({pair[0] for pair in found[name] if pair}))
    pairs = [pair for pair in found[name] if pair]
    several = len({id for id, _ in pairs}) < len(pairs)  # rows of an image
    template = _template(Counter(end for _, end in pairs), classes if several else ())
    others = [other for other in sample.frame if other != name]
    for other in others if len(others) > 1 else ():
        if (kind := _class_kind(sample.frame, name, other, classes)) is not None:
            frame = sample.frame.assign(**{ROW: sample.frame[name] + "_" + sample.frame[other]})
            row_id = f"{_template(Counter(end for _, end in pairs), ())}_{kind}"
            return replace(sample, frame=frame, id_column=ROW, row_id=row_id, copied=(name, other))
    numbers = [list(map(str, range(first, first + len(sample.frame)))) for first in (0, 1)]
    copied = tuple(other for other in others if sample.frame[other].tolist() in numbers)[: len(others) - 1]
    return replace(sample, id_column=name, row_id=None if template == "{id}" else template, copied=copied)


def _class_kind(frame: pd.DataFrame, name: str, other: str, classes: Sequence[str]) -> str | None:
    """The placeholder of a column that distinguishes the rows of an image by class; None if it does not."""
    if not frame[name].duplicated().any() or frame[[name, other]].duplicated().any():
        return None
    values = set(frame[other])
    numbers = set(map(str, range(len(classes))))
    return "{class}" if values <= set(classes) else "{index}" if values <= numbers else None


def _template(ends: Counter[str], classes: Sequence[str]) -> str:
    """The template of row ids with these ends: the most frequent end, or a class name or number, if there are any."""

    def template(end: str) -> str:
        of_class = [name for name in classes if end.endswith(name)]
        number = re.fullmatch(r"(.*\D)(\d+)", end, re.DOTALL)
        if of_class:
            return "{id}" + _escape(end[: -len(max(of_class, key=len))]) + "{class}"
        if number and int(number[2]) < len(classes) and str(int(number[2])) == number[2]:
            return "{id}" + _escape(number[1]) + "{index}"
        return "{id}" + _escape(end)

    counts: Counter[str] = Counter()
    for end, count in ends.items():
        counts[template(end)] += count
    return counts.most_common(1)[0][0] if counts else "{id}"


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def fit_layout(layout: Any, sample: Sample) -> Any:
    """Give a format the names of the sample's columns and rows; refuse one whose columns differ.

    Columns of classes may have a common start or end, and another case or punctuation.
    """
    layout = replace(layout, id_column=sample.id_column, row_id=layout.row_id or sample.row_id)
    if layout.name == "masks":
        return layout
    if layout.single:
        if len(sample.values) > 1:
            columns = f"it has the columns {', '.join(sample.values)} beside the ids"
            raise PredictionsError(sample.path, [f"{columns}, but the format writes one: choose another --format"])
        return replace(layout, value_column=sample.values[0])
    names = match_names(layout.written, sample.values)
    if names is None:
        text = f"it has the columns {some(sample.values, 20)}, but the classes are {some(layout.written, 20)}"
        if len(sample.values) == len(layout.classes):
            pairs = [f"{name}={column}" for name, column in zip(layout.classes, sample.values, strict=True)]
            text += f": name the column of each class, if they are in this order with {command('--names', *pairs)}"
        raise PredictionsError(sample.path, [text])
    return layout if names == layout.written else replace(layout, names=names)


def match_names(classes: Sequence[str], columns: Sequence[str]) -> list[str] | None:
    """The column of each class; None if one has none or several, or a column is left."""
    if set(classes) == set(columns):
        return list(classes)
    if len(classes) != len(columns):
        return None
    for first in range(_common(columns) + 1):
        for last in range(_common([name[::-1] for name in columns]) + 1):
            column_of = {plain(name[first : len(name) - last]): name for name in columns}
            if set(column_of) == set(map(plain, classes)) and len(column_of) == len(classes):
                return [column_of[plain(name)] for name in classes]
    return None


def _common(names: Sequence[str]) -> int:
    """Length of the start that all names share."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))
