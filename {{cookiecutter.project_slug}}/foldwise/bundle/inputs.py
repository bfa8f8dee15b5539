"""Hidden test data: a table or a folder of images. A bad image costs only its own answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.decoding import refusing, stored_size
from foldwise.data.orientation import oriented
from foldwise.data.problems import some
from foldwise.data.samples import Samples, TableItems
from foldwise.data.table import Table
from foldwise.data.table_file import read_file
from foldwise.data.units import Units
from foldwise.errors import Refusal
from foldwise.inference.items import Items, Read

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LARGEST = 100_000_000  # pixels: 300 MB of RGB in each worker; PIL warns of a decompression bomb from 89 million
SMALLEST = 2  # pixels per side


class Image(NamedTuple):
    """An image to predict: id, unit (the id if there are no units), first file (may be missing), number of its item."""

    id: str
    unit: str
    path: Path
    number: int


class Inputs(NamedTuple):
    """Images without duplicates, all items of the test, and notes for the user."""

    images: list[Image]
    test: TableItems
    notes: list[str]


def read_inputs(
    test: Path,
    images: Path | None,
    columns: Mapping[str, str | None],
    names: set[str],
    samples: Samples,
    exif: str | None = None,
) -> Inputs:
    """Find the images of a test.

    Args:
        test: a CSV or parquet file, or a folder of images.
        images: folder that image paths are relative to; default: that of `test`.
        columns: names of the id, image, unit and group column. Without an image column, the file name is the id.
        names: ids of the sample submission; if they have a suffix, ids of a folder's images get it too.
        exif: see `Table`.
    """
    if not test.exists():
        raise Refusal(f"--test {test} does not exist")
    root = images or (test if test.is_dir() else test.parent)
    if not root.is_dir():
        raise Refusal(f"--images {root} is not a folder")
    if test.is_dir():
        files = _image_files(root)
        with_suffix = any(path.name in names for path in files)
        frame = pd.DataFrame({"id": [path.name if with_suffix else path.stem for path in files]}, dtype=object)
        frame["image"] = [str(path) for path in files]
    else:
        frame = _read_table(test, root, columns)
    if frame.empty:
        raise Refusal(f"there is no image in {test}")
    repeated = sorted(set(frame["id"][frame["id"].duplicated()]))
    notes = [f"{len(repeated)} ids of {test} are repeated and count once: {some(repeated)}"] if repeated else []
    table = Table(frame.drop_duplicates("id").reset_index(drop=True), "", (), root, None, test, exif=exif)
    items = TableItems.of(table, samples)
    rows = items.table.frame
    each = zip(rows["id"], rows["unit" if "unit" in rows else "id"], rows["image"], range(len(rows)), strict=True)
    return Inputs([Image(id, unit, root / name, number) for id, unit, name, number in each], items, notes)


def _read_table(path: Path, root: Path, columns: Mapping[str, str | None]) -> pd.DataFrame:
    """Read id, image, unit and group as text, and all other columns; a CSV as text only."""
    frame = read_file(path).reset_index(drop=True)
    missing = [columns[name] for name in ("id", "unit") if columns[name] not in (None, *frame)]
    if missing:
        raise Refusal(f"{path} has no column {', '.join(map(str, missing))}; its columns are {', '.join(frame)}")
    text = {name: text_column(frame[column]) for name, column in columns.items() if column in frame}
    if "image" not in text:
        files = _image_files(root)
        names = {file.stem: str(file) for file in files} | {file.name: str(file) for file in files}
        text["image"] = [names.get(id, id) for id in text["id"]]
    reserved = ["id", "image", "unit", "mask", "group", "weight", "fold"]
    return frame.drop(columns=reserved, errors="ignore").assign(**text)


def _image_files(root: Path) -> list[Path]:
    """Find images below `root`, as paths relative to it."""
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)


class CarefulItems(Items):
    """`Items` that also report tiny and enormous images, and any exception of a reader, as a problem."""

    def __getitem__(self, index: int) -> Read:
        number = self.numbers[index]
        try:
            files, bad = self.first.files(number), dict[Path, str]()
            for path in files:
                with oriented("ignore"):  # which side is which does not matter
                    height, width = size = stored_size(path)
                if size != (0, 0) and (min(size) < SMALLEST or height * width > LARGEST):
                    bad[path] = f"has {height} x {width} pixels"
            if bad and not isinstance(self.first.samples, Units):  # which leaves a picture out
                return Read(index, [], size, " ".join(map(str, next(iter(bad.items())))))
            with refusing(bad):
                return super().__getitem__(index)
        except Exception as error:  # whatever a reader raises must not cost the submission
            return Read(index, [], (0, 0), f"{self.first.items[number].id}: {type(error).__name__}: {error}")
