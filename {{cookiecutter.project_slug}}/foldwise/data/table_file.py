"""Read the file of a table as it is stored: CSV with any usual separator, as text, or parquet."""

import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.data.problems import TableError, some
from foldwise.shell import command

CSV = (".csv", ".tsv", ".txt")
SEPARATORS = ",;\t|"
# First bytes of files that are no tables, with what to do.
OTHERS = {
    b"PK\x03\x04": "it is an Excel file or a zip: save it as CSV UTF-8 in Excel or LibreOffice, or unpack it",
    b"\xd0\xcf\x11\xe0": "it is an Excel file: save it as CSV UTF-8 in Excel or LibreOffice",
    b"\x1f\x8b": "it is compressed: unpack it with gunzip",
    b"version https://git-lfs": "it is a Git LFS pointer, not the file: fetch it with git lfs pull",
    b"<": "it is a web page, often that of a login: download the table again",
}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_file(path: Path, suffixes: tuple[str, ...] = (*CSV, ".parquet")) -> pd.DataFrame:
    """Read the columns as stored, in a CSV as text; the index is the line in a CSV, or the row of a parquet from 1.

    A CSV's separator is the one of comma, semicolon, tab and bar that splits its header into the most columns. Names
    of columns lose spaces at their ends. A named index of a parquet file is a column, an unnamed one of texts the
    column "".

    Raises:
        TableError: with the cause, and what to do.
    """
    if path.is_dir():
        raise TableError(path, ["it is a folder, not a file"])
    if not path.is_file():
        others = [other.name for other in sorted(path.parent.glob(f"{path.stem}.*"))]
        raise TableError(path, ["the file does not exist" + (f"; there is {some(others)}" if others else "")])
    with path.open("rb") as file:
        start = file.read(4096)
    for signature, advice in OTHERS.items():
        if start.startswith(signature):
            raise TableError(path, [advice])
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        raise TableError(path, [f"it is JSON: write it as parquet with\n{_json_command(path, start)}"])
    if start.startswith(b"PAR1") or path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix.lower() not in suffixes:
        raise TableError(path, [f"the suffix is {path.suffix!r}; a table is a .csv, .tsv or .parquet file"])
    return _read_csv(path, start)


def read_header(path: Path) -> tuple[str, list[str]]:
    """Return the separator of a CSV and the cells of its first line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    separator = find_separator(header)
    return separator, [name.strip() for name in next(csv.reader([header], delimiter=separator))]


def find_separator(header: str) -> str:
    """The separator that splits a header into the most columns; the comma if none splits it."""
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([header], delimiter=separator), [])))


def _read_csv(path: Path, start: bytes) -> pd.DataFrame:
    if not start.strip():
        raise TableError(path, ["the file is empty"])
    separator, lines = _check_csv(path)
    frame = pd.read_csv(
        path, sep=separator, dtype=str, header=None, na_filter=False, skip_blank_lines=False, encoding="utf-8-sig"
    )
    frame = frame.set_axis(lines, axis=0)
    header = [name.strip() for name in frame.iloc[0].tolist()]
    frame = frame.iloc[1:].set_axis(header, axis=1)
    frame = frame[(frame != "").any(axis=1)]  # skipped, but counted in line numbers
    unnamed = [number for number, name in enumerate(header) if name == ""]
    useless = [number for number in unnamed if _is_useless(frame.iloc[:, number])]
    frame = frame.iloc[:, [number for number in range(len(header)) if number not in useless]]
    names = list(frame)
    if names.count("") > 1:
        which = some([number + 1 for number in unnamed if number not in useless])
        raise TableError(path, [f"the columns {which} have no name in the header: name them, or delete them"])
    _check_names(path, names)
    return frame


def _check_names(path: Path, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TableError(
            path, [f"the column {name!r} occurs more than once: rename or delete one" for name in repeated]
        )


def _is_useless(column: pd.Series) -> bool:
    """Whether an unnamed column is empty, or numbers the rows, as pandas writes its index."""
    return bool((column == "").all()) or column.tolist() == list(map(str, range(len(column))))


def _check_csv(path: Path) -> tuple[str, list[int]]:
    """Return the separator, and the line of each row; refuse other encodings and rows of another length."""
    csv.field_size_limit(sys.maxsize)  # run-length codes are long
    lines, lengths = list[int](), list[int]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = find_separator(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            before = 0
            for row in reader:
                lines.append(before + 1)
                before = reader.line_num
                lengths.append(len(row))
    except UnicodeDecodeError as error:
        raise TableError(path, [_encoding_problem(path)]) from error
    except csv.Error as error:
        line = lines[-1] + 1 if lines else 1
        raise TableError(path, [f"a quote that opens in line {line} or later is not closed ({error})"]) from error
    counts = np.array(lengths)
    short, long = (counts > 0) & (counts < counts[0]), counts > counts[0]
    problems = []
    for bad, what, advice in (
        (long, "more", f"put cells that contain {separator!r} in quotes"),
        (short, "fewer", "complete them; was the file copied to its end?"),
    ):
        if bad.any():
            where = f"line {lines[bad.argmax()]} has {counts[bad.argmax()]} cells and the header {counts[0]}"
            also = f" ({bad.sum():,} such lines)" if bad.sum() > 1 else ""
            problems.append(f"{where}, {what} than there are columns{also}: {advice}")
    if problems:
        raise TableError(path, problems)
    return separator, lines


def _encoding_problem(path: Path) -> str:
    """Name the encoding and the first line that is not UTF-8, with a command that writes the file as UTF-8."""
    data, new = path.read_bytes(), path.with_name(f"{path.stem}-utf8{path.suffix}")
    if data.startswith(UTF_16):
        encoding, what = "utf-16", "it is UTF-16, not UTF-8"
    else:
        encoding = "cp1252"
        lines = data.split(b"\n")
        number = next(number for number, line in enumerate(lines) if not _is_utf8(line))
        text = lines[number].decode(encoding, "replace").strip()[:60]
        what = f"line {number + 1} is not UTF-8; as Windows' cp1252 it reads {text!r}"
    program = (
        "import sys, pathlib as p; p.Path(sys.argv[2]).write_text(p.Path(sys.argv[1]).read_text(sys.argv[3]), 'utf-8')"
    )
    return f"{what}: write it as UTF-8 with\n{command('python', '-c', program, path, new, encoding)}"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _json_command(path: Path, start: bytes) -> str:
    lines = ", lines=True" if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else ""
    read = f"pd.read_json(sys.argv[1], dtype=False, convert_dates=False{lines})"
    program = f"import sys, pandas as pd; {read}.to_parquet(sys.argv[2])"
    return command("python", "-c", program, path, path.with_suffix(".parquet"))


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise TableError(path, [f"it cannot be read as parquet ({error})"]) from error
    names = list(map(str, frame.columns))
    _check_names(path, names)
    frame = frame.set_axis(names, axis=1)
    index = [name for name in frame.index.names if name is not None and name not in names]
    if index:
        frame = frame.reset_index(index)
    elif frame.index.names == [None] and not pd.api.types.is_numeric_dtype(frame.index):
        frame.insert(0, "", frame.index)
    return frame.set_axis(range(1, len(frame) + 1), axis=0)
