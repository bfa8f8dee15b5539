"""What is to be predicted: a table or a folder of images, as they are when the notebook is run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from foldwise.data.fields import Item
from foldwise.data.problems import some
from foldwise.data.samples import Rows, Samples, item_table
from foldwise.data.table import Table, text_column
from foldwise.errors import Refusal

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


class Inputs(NamedTuple):
    """What is predicted: ids, each once, a file of each (which may be missing), and the units they belong to.

    `table` has the rows that the `items` are made of, `numbers` are the places of what is predicted among these;
    `notes` are for the user.
    """

    ids: list[str]
    paths: list[Path]
    units: list[str] | None
    notes: list[str]
    table: Table
    items: Sequence[Item]
    numbers: list[int]


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
        found = _image_files(root)
        whole = any(path.name in names for path in found)
        frame = pd.DataFrame({"id": [path.name if whole else path.stem for path in found]}, dtype=object)
        return _to_items(frame, found, root, test, samples)
    frame = _read(test)
    id_column, image_column, unit_column = columns["id"], columns["image"], columns["unit"]
    missing = [name for name in (id_column, unit_column) if name is not None and name not in frame]
    if missing:
        raise Refusal(f"{test} has no column {', '.join(missing)}; its columns are {', '.join(frame)}")
    text = {name: text_column(frame[own]) for name, own in columns.items() if own in frame}
    ids = text["id"].tolist()
    if image_column in frame:
        paths = [root / name for name in text.pop("image")]
    else:
        files = _image_files(root)
        by_name = {path.stem: path for path in files} | {path.name: path for path in files}
        paths = [by_name.get(id, root / id) for id in ids]
    kept = frame.drop(columns=["id", "image", "unit", "mask", "group", "weight", "fold"], errors="ignore")
    return _to_items(kept.assign(**text), paths, root, test, samples)


def _to_items(frame: pd.DataFrame, paths: list[Path], root: Path, test: Path, samples: Samples) -> Inputs:
    """The items of rows (id, unit where there are units, other columns); a row's id counts once."""
    if frame.empty:
        raise Refusal(f"there is no image in {test}")
    frame = frame.assign(
        image=[path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in paths]
    )
    again = sorted(set(frame["id"][frame["id"].duplicated()]))
    notes = [f"{len(again)} ids of {test} come again and count once: {some(again)}"] if again else []
    frame = frame.drop_duplicates("id").reset_index(drop=True)
    table = Table(frame, "", (), root, None, test)
    rows = Rows(table, samples)
    items = samples.items(rows)
    own = item_table(table, items)
    units = own.frame["unit"].tolist() if "unit" in own.frame else None
    files = [root / own.frame["image"].iat[number] for number in range(len(own))]
    return Inputs(own.ids, files, units, notes, table, items, list(range(len(own))))


def _read(path: Path) -> pd.DataFrame:
    """All columns, of a CSV as text."""
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError, ImportError) as error:
        raise Refusal(f"{path} cannot be read as a table ({str(error).strip()})") from error


def _image_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
