"""The hidden test: a table or a folder of images; whatever is wrong with one image is its own problem alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from foldwise.data.decoding import TIFF_MAGIC
from foldwise.data.problems import some
from foldwise.data.samples import Samples, TableItems
from foldwise.data.table import Table, text_column
from foldwise.errors import Refusal
from foldwise.inference.reading import Items, Read

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LARGEST = 100_000_000  # pixels: 300 MB of colours in each worker that decodes one; PIL calls 89 million a bomb
LEAST = 2  # pixels a side


class Image(NamedTuple):
    """What is predicted: its id and unit (its id where there are none), its first file (which may be missing), and the
    number of its item."""

    id: str
    unit: str
    path: Path
    number: int


class Inputs(NamedTuple):
    """Images, each once; the items of the test among which they are; notes for the user."""

    images: list[Image]
    found: TableItems
    notes: list[str]


def read_inputs(
    test: Path, images: Path | None, columns: Mapping[str, str | None], names: set[str], samples: Samples
) -> Inputs:
    """Find the images.

    Args:
        test: a CSV or parquet file, or a folder of images.
        images: the folder that image paths begin in; None: that of `test`.
        columns: of the table: id, image, unit, group. Without the image column, an image is found by its id as its
            name.
        names: ids of the sample submission; a folder's ids are names with suffix where these have it.
        samples: the reader, which makes items of the rows.

    Raises:
        Refusal: there is no such file or folder, it is no table, or lacks a column, the reader's included, or there is
            no image.
    """
    if not test.exists():
        raise Refusal(f"--test {test} does not exist")
    root = images or (test if test.is_dir() else test.parent)
    if not root.is_dir():
        raise Refusal(f"--images {root} is not a folder")
    if test.is_dir():
        files = _image_files(root)
        whole = any(path.name in names for path in files)
        frame = pd.DataFrame({"id": [path.name if whole else path.stem for path in files]}, dtype=object)
        frame["image"] = [str(path) for path in files]
    else:
        frame = _read_table(test, root, columns)
    if frame.empty:
        raise Refusal(f"there is no image in {test}")
    again = sorted(set(frame["id"][frame["id"].duplicated()]))
    notes = [f"{len(again)} ids of {test} come again and count once: {some(again)}"] if again else []
    table = Table(frame.drop_duplicates("id").reset_index(drop=True), "", (), root, None, test)
    found = TableItems.of(table, samples)
    own = found.table.frame
    each = zip(own["id"], own["unit" if "unit" in own else "id"], own["image"], range(len(own)), strict=True)
    return Inputs([Image(id, unit, root / name, number) for id, unit, name, number in each], found, notes)


def _read_table(path: Path, root: Path, columns: Mapping[str, str | None]) -> pd.DataFrame:
    """Id, image, unit and group as text, and all other columns, of a CSV as text too."""
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError, ImportError) as error:
        raise Refusal(f"{path} cannot be read as a table ({str(error).strip()})") from error
    missing = [columns[name] for name in ("id", "unit") if columns[name] not in (None, *frame)]
    if missing:
        raise Refusal(f"{path} has no column {', '.join(map(str, missing))}; its columns are {', '.join(frame)}")
    text = {name: text_column(frame[own]) for name, own in columns.items() if own in frame}
    if "image" not in text:
        files = _image_files(root)
        names = {file.stem: str(file) for file in files} | {file.name: str(file) for file in files}
        text["image"] = [names.get(id, id) for id in text["id"]]
    reserved = ["id", "image", "unit", "mask", "group", "weight", "fold"]
    return frame.drop(columns=reserved, errors="ignore").assign(**text)


def _image_files(root: Path) -> list[Path]:
    """Relative to the root."""
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)


class CarefulItems(Items):
    """`Items` where pictures of one pixel, enormous ones, and all that a reader can raise become a problem, too."""

    def __getitem__(self, place: int) -> Read:
        number = self.numbers[place]
        try:
            for path in self.first.files(number):
                height, width = size = stored_size(path)
                if size != (0, 0) and (min(size) < LEAST or height * width > LARGEST):
                    return Read(place, [], size, f"{path} has {height} x {width} pixels")
            return super().__getitem__(place)
        except Exception as error:  # readers raise many kinds, and none is worth a submission
            return Read(place, [], (0, 0), f"{self.first.items[number].id}: {type(error).__name__}: {error}")


def stored_size(path: Path) -> tuple[int, int]:
    """(height, width) by the head of a file, nothing decoded; (0, 0) where it cannot be told."""
    import tifffile
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the head alone is read: LARGEST decides
    try:
        with path.open("rb") as file:
            is_tiff = file.read(4) in TIFF_MAGIC
        if is_tiff:
            with tifffile.TiffFile(path) as tiff:
                sizes = dict(zip(tiff.series[0].axes, tiff.series[0].shape, strict=True))
            return sizes["Y"], sizes["X"]
        with Image.open(path) as picture:
            return picture.height, picture.width
    except Exception:  # as many kinds as there are ways to damage a file; reading will say what is wrong with it
        return 0, 0
