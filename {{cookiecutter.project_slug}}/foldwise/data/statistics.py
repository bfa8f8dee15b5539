"""What is in the files of the items: sizes, channels, mean and std, pixels per class; each item is read once.

The record, `images.csv`, keeps a line for every item that was read, so that the next scan asks only for the sizes of
the files. A file that changes without changing its size is not noticed: delete the record then.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.audit.image_problems import image_problems, mask_problems
from foldwise.data.fields import Item
from foldwise.data.images import ImageError, default_scale, read_mask
from foldwise.data.problems import some
from foldwise.data.samples import Rows, Samples
from foldwise.data.table import Table, TableError
from foldwise.errors import Refusal
from foldwise.files import write_atomic

# Texts with spaces: sums and squares have one value a channel (of the stored values), values has `value:pixels` pairs
# of a mask, so that the record does not depend on the classes. `others` is JSON: the same of further image fields.
RECORD = [
    "image", "bytes", "mask", "mask_bytes", "reader", "height", "width", "area", "channels", "dtype",
    "minimum", "maximum", "sums", "squares", "mask_height", "mask_width", "values", "others",
]  # fmt: skip
KEY = ["image", "bytes", "mask", "mask_bytes", "reader"]
TEXT = {"image", "bytes", "mask", "reader", "dtype", "sums", "squares", "values", "others"}

BLOCK = 1 << 20  # pixels that are converted to float64 at a time
CHUNK = 1000  # items that are handed to the threads at a time; an interruption waits for them

# The least std, in [0, 1] units: a channel that never changes would otherwise divide by zero.
SMALLEST_STD = 1 / 255


@dataclass(frozen=True)
class Scanned:
    """What is read of a table: its items through their reader, and their masks.

    `table` has one row an item; its masks are the targets of the main output.
    """

    table: Table
    rows: Rows
    items: Sequence[Item]
    samples: Samples

    @property
    def reader(self) -> str:
        """What the measurements depend on beside the files: the reader's class, its arguments, and its source."""
        kind = type(self.samples)
        source = "" if kind.__module__.startswith("foldwise.") else inspect.getsource(inspect.getmodule(kind) or kind)
        text = json.dumps([kind.__qualname__, vars(self.samples), source], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def images(self) -> list[str]:
        """The names of the image fields, the main one first."""
        return [name for name, field in self.samples.fields.items() if field.kind == "image"]


def scan_items(
    scanned: Scanned, scale: float | None, ignore_index: int | None, record: Path, progress: bool = False
) -> pd.DataFrame:
    """Read every item that is not in the record yet, and check them all.

    Args:
        scale: the declared value that means 1.0; float images beyond 1 need it.
        ignore_index: the mask value that is neither trained nor scored.
        record: the `images.csv` to read and to bring up to date.
        progress: show a progress bar.

    Returns:
        One row an item, with the columns RECORD, of its first image field; for masks also `pixels`, an int64 (C,)
        array each.

    Raises:
        TableError: lists every file that is missing or cannot be decoded, images that have other channels or another
            dtype than most, every mask of another size than its image, and every mask with values outside the classes.
    """
    table = scanned.table
    wanted = _file_sizes(scanned)
    known = _read_record(record)
    todo = wanted.drop_duplicates(KEY).merge(known[KEY], on=KEY, how="left", indicator=True)
    todo = todo[todo["_merge"] == "left_only"]
    failures: dict[tuple[str, str], str] = {}
    if len(todo):
        known = _scan_into_record(todo, scanned, known, record, progress, failures)
    scan = wanted[KEY].merge(known, on=KEY, how="left", validate="many_to_one")
    problems = image_problems(scan, failures, scale)
    if "mask" in table.frame:
        problems += mask_problems(scan, table.classes, ignore_index)
    if problems:
        raise TableError(table.path, problems)
    if "mask" in table.frame:
        scan["pixels"] = [class_pixels(values, len(table.classes)) for values in scan["values"]]
    return scan


def compute_statistics(
    scan: pd.DataFrame, scanned: Scanned, folds: Mapping[str, int], scale: float | None
) -> dict[str, Any]:
    """What training needs to know of the items, as plain values for `statistics.json`.

    Returns:
        images: by field, channels, dtype, scale, and mean and std per channel over all pixels in [0, 1] units (std at
        least 1/255); items: how many; class_counts: for each fold, as text, the items per class (soft targets add up),
        or for masks the pixels per class.
    """
    table = scanned.table
    counts = np.stack(scan["pixels"].tolist()) if table.target is None else table.target.astype(np.float64)
    fold = np.array([folds[name] for name in table.ids])
    others = [json.loads(text) for text in scan["others"]]
    images = {}
    for number, name in enumerate(scanned.images):
        images[name] = _moments(scan if not number else pd.DataFrame([each[name] for each in others]), scale)
    return {
        "images": images,
        "items": len(table),
        "class_counts": {
            str(number): [plain_number(value) for value in counts[fold == number].sum(axis=0)]
            for number in np.unique(fold)
        },
    }


def _moments(scan: pd.DataFrame, scale: float | None) -> dict[str, Any]:
    dtype = str(scan["dtype"].iat[0])
    scale = default_scale(dtype) if scale is None else float(scale)
    pixels = float(scan["area"].astype(float).sum())
    sums = np.array([text.split() for text in scan["sums"]], dtype=np.float64).sum(axis=0)
    squares = np.array([text.split() for text in scan["squares"]], dtype=np.float64).sum(axis=0)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0)) / scale
    return {
        "channels": int(scan["channels"].iat[0]),
        "dtype": dtype,
        "scale": scale,
        "mean": [float(value) for value in mean / scale],
        "std": [max(float(value), SMALLEST_STD) for value in std],
    }


def images_hash(scan: pd.DataFrame) -> str:
    """The name of these files by path and size, masks too: 16 hexadecimal digits of SHA-256."""
    lines = sorted(set(scan[["image", "bytes", "mask", "mask_bytes"]].astype(str).agg(",".join, axis=1)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def constant_channels(image: Mapping[str, Any]) -> list[int]:
    """The channels of an image field that hardly ever change, whose std was raised to the least one."""
    return [number for number, std in enumerate(image["std"]) if std <= SMALLEST_STD]


def plain_number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _file_sizes(scanned: Scanned) -> pd.DataFrame:
    table, has_masks = scanned.table, "mask" in scanned.table.frame
    size_of: dict[Path, int] = {}
    missing: list[str] = []

    def size(path: Path) -> int:
        if path not in size_of:
            try:
                size_of[path] = path.stat().st_size
            except OSError:
                size_of[path] = -1
                missing.append(_relative(path, table.root))
        return size_of[path]

    lines: list[dict[str, Any]] = []
    for number, item in enumerate(scanned.items):
        files = list(dict.fromkeys(scanned.samples.files(scanned.rows, item)))
        lines.append(
            {
                "image": ";".join(_relative(path, table.root) for path in files),
                "bytes": ";".join(str(size(path)) for path in files),
                "mask": table.frame["mask"].iat[number] if has_masks else "",
                "mask_bytes": size(table.mask_path(number)) if has_masks else 0,
                "reader": scanned.reader if not number else lines[0]["reader"],
                "number": number,
            }
        )
    if missing:
        raise TableError(table.path, [f"{len(missing)} files that the reader opens do not exist: {some(missing)}"])
    return pd.DataFrame(lines).astype(dict.fromkeys(("image", "bytes", "mask", "reader"), object))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _read_record(record: Path) -> pd.DataFrame:
    if record.exists():
        try:
            known = pd.read_csv(record, dtype=dict.fromkeys(TEXT, object), keep_default_na=False, encoding="utf-8")
        except ValueError as error:  # pandas' own are, and UnicodeDecodeError
            raise Refusal(f"{record} cannot be read ({error}); delete it and make it again") from error
        if known.columns.tolist() == RECORD:  # else it is of another version, and everything is read again
            return known
    return pd.DataFrame({name: pd.Series(dtype=object if name in TEXT else float) for name in RECORD})


def _scan_into_record(
    todo: pd.DataFrame,
    scanned: Scanned,
    known: pd.DataFrame,
    record: Path,
    progress: bool,
    failures: dict[tuple[str, str], str],
) -> pd.DataFrame:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rows: list[dict[str, Any]] = []
    state = scanned.samples.fit(scanned.rows, scanned.items)

    def read(key: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return {name: key[name] for name in KEY} | _measure(scanned, key["number"], state)
        except ImageError as error:
            failures[key["image"], key["mask"]] = str(error)
            return None

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    keys = todo.to_dict("records")
    try:
        with Progress(*columns, disable=not progress) as bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            task = bar.add_task("Reading images", total=len(keys))
            for start in range(0, len(keys), CHUNK):
                for row in pool.map(read, keys[start : start + CHUNK]):
                    if row is not None:
                        rows.append(row)
                    bar.advance(task)
    finally:  # what was read is kept when a long scan is interrupted
        if rows:
            new = pd.DataFrame(rows, columns=RECORD)
            known = new if known.empty else pd.concat([known, new], ignore_index=True)
            # A changed file has a new line; its old one is dropped.
            known = known.drop_duplicates(["image", "mask", "reader"], keep="last", ignore_index=True)
            with write_atomic(record) as temporary:
                known.to_csv(temporary, index=False)
    return known


def _measure(scanned: Scanned, number: int, state: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an item, read as prediction reads it."""
    sample = scanned.samples.read(scanned.rows, scanned.items[number], state, None)
    where = ", ".join(map(str, scanned.samples.files(scanned.rows, scanned.items[number])[:1]))
    figures = {name: _image_figures(sample[name], where) for name in scanned.images}
    first = next(iter(figures.values()), _image_figures(np.zeros((1, 1, 1), np.uint8), where))
    others = dict(list(figures.items())[1:])
    row = first | {"mask_height": 0, "mask_width": 0, "values": "", "others": json.dumps(others)}
    if "mask" in scanned.table.frame:
        mask = read_mask(scanned.table.mask_path(number))
        counts = np.bincount(mask.ravel())
        row |= {
            "mask_height": mask.shape[0], "mask_width": mask.shape[1],
            "values": " ".join(f"{value}:{counts[value]}" for value in np.flatnonzero(counts)),
        }  # fmt: skip
    return row


def _image_figures(image: Any, where: str) -> dict[str, Any]:
    """Of an image (H, W, C), or of a stack."""
    pictures = image if isinstance(image, list) else [image] if image.ndim == 3 else list(image)
    height, width, channels = pictures[0].shape
    if any(picture.shape[2] != channels for picture in pictures):
        raise ImageError(f"{where}: the pictures of a stack have different numbers of channels")
    sums, squares = np.zeros(channels), np.zeros(channels)
    for picture in pictures:
        flat = picture.reshape(-1, channels)
        for start in range(0, len(flat), BLOCK):
            for channel in range(channels):
                # float64 holds sums of whole numbers exactly up to 2^53.
                values = flat[start : start + BLOCK, channel].astype(np.float64)
                sums[channel] += values.sum()
                squares[channel] += np.square(values, out=values).sum()  # BLAS would start threads in each thread
    if not np.isfinite(squares).all():
        raise ImageError(f"{where} has values that are not finite")
    return {
        "height": height, "width": width, "area": sum(picture.shape[0] * picture.shape[1] for picture in pictures),
        "channels": channels, "dtype": str(pictures[0].dtype),
        "minimum": float(min(picture.min() for picture in pictures)),
        "maximum": float(max(picture.max() for picture in pictures)),
        "sums": " ".join(map(_text, sums)), "squares": " ".join(map(_text, squares)),
    }  # fmt: skip


def _text(value: float) -> str:
    return repr(plain_number(value))


def class_pixels(values: str, classes: int) -> np.ndarray:
    """(C,) int64 pixels of each class, of `value:pixels` pairs."""
    pixels = np.zeros(classes, np.int64)
    for pair in values.split():
        value, count = pair.split(":")
        if int(value) < classes:
            pixels[int(value)] = int(count)
    return pixels
