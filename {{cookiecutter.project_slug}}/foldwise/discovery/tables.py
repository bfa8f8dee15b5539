"""The tables of an unpacked folder: which lists the training pictures, which the test, and the sample submission."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.problems import TableError
from foldwise.data.table_file import find_separator, read_file
from foldwise.data.targets import LISTS
from foldwise.discovery.files import MASK, NAMES, TABLES, TEST, TRAIN, VALIDATION, Link, Survey, stem, suffix, words

SAMPLE = {"sample", "submission", "submit", "example", "benchmark"}
LONGEST = 200  # letters of a name that may lead to a file; run-length codes are longer
MOST_JSON = 20  # files that are read; more are notes of pictures
MOST_PARTS = 100  # classes in the ids of rows
MOST_NAMES = 1000  # rows of a file of class names
TRIED = 50  # rows of a column, before all are looked up


@dataclass(frozen=True)
class Found:
    """A table of the folder, as text.

    Attributes:
        link: the column that leads to pictures; None: none does. others: further such columns.
        part: what follows the picture's name in that column, such as the class in "a.jpg_1"; by row.
        note: why the file cannot be used as it is, such as without a header; "": it can.
    """

    path: str
    frame: pd.DataFrame
    link: Link | None
    others: tuple[Link, ...] = ()
    part: tuple[str, ...] = ()
    note: str = ""

    @property
    def words(self) -> set[str]:
        """Those of the file's name and, if these say nothing of its part, of its folders."""
        folders, _, name = self.path.rpartition("/")
        own = set(words(name))
        return own if own & (SAMPLE | TEST | TRAIN | VALIDATION) else own | set(words(folders)) - SAMPLE

    @property
    def is_sample(self) -> bool:
        return bool(SAMPLE & self.words)

    @property
    def split(self) -> str:
        return "test" if (TEST | SAMPLE) & self.words else "validation" if VALIDATION & self.words else "train"

    @property
    def beside_ids(self) -> pd.DataFrame:
        """The columns beside the one that leads to pictures, or else the first."""
        return self.frame.drop(columns=self.frame.columns[0] if self.link is None else self.link.column)


def read_tables(survey: Survey) -> tuple[list[Found], list[str]]:
    """Read all tables; also return why some cannot be read."""
    tables, problems = [], []
    json_files = [path for path in survey.others if suffix(path) == ".json"]
    of_tables = [path for path in survey.files if suffix(path) in TABLES]
    for path in [*of_tables, *(json_files if len(json_files) <= MOST_JSON else ())]:
        try:
            frame, note = _read(survey, path)
        except TableError as error:
            if not path.endswith(".txt"):  # most often a licence or a text to read
                problems.append(f"{path}: {error.problems[0]}")
            continue
        if len(frame) and len(frame.columns):
            tables.append(_linked(survey, Found(path, frame, None, note=note)))
    return tables, problems


def _read(survey: Survey, path: str) -> tuple[pd.DataFrame, str]:
    file = survey.root / path
    if path.endswith(".json"):
        return _read_coco(file), "in COCO's form"
    if path.endswith(".parquet"):
        frame = read_file(file).reset_index(drop=True)
        return frame.map(lambda cell: "|".join(map(str, cell)) if isinstance(cell, LISTS) else cell), ""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header = opened.readline().strip()
    except UnicodeDecodeError:
        header = ""  # read_file names the encoding
    separator = find_separator(header)
    spaces = separator not in header and path.endswith(".txt")
    cells = map(str.strip, header.split(None if spaces else separator))
    if any(3 < len(cell) < LONGEST and survey.find(cell)[0] for cell in cells):
        try:
            frame = pd.read_csv(
                file, sep=r"\s+" if spaces else separator, header=None, dtype=str, na_filter=False,
                encoding="utf-8-sig",
            )  # fmt: skip
        except ValueError as error:  # pandas' errors too
            raise TableError(file, [f"its rows differ in their number of cells ({error})"]) from error
        return frame.set_axis([f"column_{n + 1}" for n in range(len(frame.columns))], axis=1), "without a header"
    if spaces:
        raise TableError(file, ["it is text"])
    return read_file(file).reset_index(drop=True), ""


def _read_coco(file: Path) -> pd.DataFrame:
    """Rows of a JSON file as COCO has it, one for each annotation; no rows of other JSON."""
    read = _read_json(file)
    images = pd.DataFrame(read["images"] if isinstance(read, dict) and isinstance(read.get("images"), list) else [])
    if "file_name" not in images or "id" not in images:
        return pd.DataFrame()
    if read.get("annotations"):
        rows = pd.DataFrame(read["annotations"]).rename(columns={"id": "annotation"})
        images = images.merge(rows, left_on="id", right_on="image_id").drop(columns=["image_id", "annotation"])
    nested = [name for name in images if images[name].map(lambda cell: isinstance(cell, list | dict)).any()]
    return images.drop(columns=[name for name in nested if name != "bbox"]).astype(str)


def _read_json(file: Path) -> Any:
    """The content of a JSON file; None if it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _linked(survey: Survey, table: Found) -> Found:
    links = []
    for name in table.frame:
        cells = text_column(table.frame[name])
        some = cells[cells != ""].iloc[:TRIED]
        if some.empty or some.str.len().max() > LONGEST or not any(survey.find(cell)[0] for cell in some):
            continue
        if (link := survey.link(name, cells.tolist(), table.split)) is not None:
            links.append(link)
    if links:

        def rank(link: Link) -> tuple[bool, int, bool, bool]:
            return not link.of_masks, len(set(link.found)), link.how == "file name", "id" in words(link.column)

        links.sort(key=rank, reverse=True)
        return replace(table, link=links[0], others=tuple(links[1:]))
    for name in table.frame:  # "a.jpg_1" is class 1 in a.jpg
        cells = text_column(table.frame[name])
        ends = cells.str.rpartition("_")
        few = ends[2].nunique() <= min(MOST_PARTS, len(cells) / 2)
        if not few or not ends[0].all() or cells.str.len().max() > LONGEST:
            continue
        if (link := survey.link(name, ends[0].tolist(), table.split)) is not None:
            return replace(table, link=link, part=tuple(ends[2]))
    return table


def choose_train(tables: Sequence[Found]) -> Found | None:
    """The table of the training pictures: with columns of the sample submission, else named train, else the longest."""
    fitting = [t for t in tables if t.link is not None and t.split != "test" and len(t.frame.columns) > 1]
    asked = {name for sample in tables if sample.is_sample for name in sample.beside_ids}

    def rank(table: Found) -> tuple[bool, bool, bool, bool, int]:
        named = bool(TRAIN & table.words), bool(MASK & table.words)
        return table.split == "train", bool(asked & set(table.beside_ids)), *named, len(table.frame)

    return max(fitting, key=rank, default=None)


def choose_test(tables: Sequence[Found], train: Found | None) -> Found | None:
    """The table of the test pictures, if any: one named test, else a sample submission that leads to other pictures."""
    known = set(train.link.found) if train is not None and train.link is not None else set()
    fitting = [t for t in tables if t is not train and t.link is not None and not known & set(t.link.found)]
    return next(iter(sorted((t for t in fitting if t.split == "test"), key=lambda t: t.is_sample)), None)


def choose_sample(tables: Sequence[Found], train: Found | None) -> Found | None:
    return next((t for t in tables if t is not train and t.is_sample and len(t.frame.columns) > 1), None)


def find_names(survey: Survey, tables: Sequence[Found]) -> tuple[dict[str, list[str]], str]:
    """Find a file of class names: the names in the order of their numbers, and colours as #rrggbb, with the file."""
    for table in tables:
        column = {name.casefold().strip(): name for name in table.frame}
        name = next((column[key] for key in ("name", "class_name", "class", "label") if key in column), None)
        if table.link is not None or name is None or len(table.frame) > MOST_NAMES:
            continue
        names = text_column(table.frame[name]).str.strip().tolist()
        rgb = [column[key] for color in ("red", "green", "blue") for key in (color, color[0]) if key in column]
        if len(rgb) == 3 and table.frame[rgb].map(lambda cell: str(cell).strip().isdecimal()).all(axis=None):
            cells = table.frame[rgb].astype(int).to_numpy().tolist()
            return {"names": names, "colors": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in cells]}, table.path
        numbers = list(map(str, range(len(names))))
        if any(text_column(table.frame[other]).tolist() == numbers for other in table.frame):
            return {"names": names}, table.path
    listed = [path for path in survey.files if suffix(path) in (".json", ".txt") and NAMES & set(words(stem(path)))]
    found = ((_read_names(survey.root / path), path) for path in listed)
    return next((({"names": names}, path) for names, path in found if names), ({}, ""))


def _read_names(path: Path) -> list[str]:
    """Names of a JSON object {"0": name} or {name: 0}, or of a text with a name a line; [] for anything else."""
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines if all(0 < len(line.strip()) < 40 for line in lines) else []
    read = _read_json(path)
    if not isinstance(read, dict) or not 1 < len(read) <= MOST_NAMES:
        return []
    number_first = all(str(key).isdecimal() for key in read)
    pairs = {str(key if number_first else value): str(value if number_first else key) for key, value in read.items()}
    order = list(map(str, range(len(pairs))))
    return [pairs[number] for number in order] if pairs.keys() == set(order) else []
