"""What is in the image files: sizes, channels, mean and std, pixels per class; each file is read once.

The record, `images.csv`, keeps a line for every image that was read, so that the next scan asks only for the
sizes of the files. A file that changes without changing its size is not noticed: delete the record then.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.image_problems import image_problems, mask_problems
from foldwise.data.images import ImageError, default_scale, read_image, read_mask
from foldwise.data.table import Table, TableError
from foldwise.errors import Refusal
from foldwise.files import write_atomic

# Blank-separated texts: sums and squares have one value a channel (of the stored values), values has
# `value:pixels` pairs of a mask, so that the record does not depend on the classes.
RECORD = [
    "image", "bytes", "mask", "mask_bytes", "mode", "height", "width", "channels", "dtype",
    "minimum", "maximum", "sums", "squares", "mask_height", "mask_width", "values",
]  # fmt: skip
KEY = ["image", "bytes", "mask", "mask_bytes", "mode"]

BLOCK = 1 << 20  # pixels that are converted to float64 at a time
CHUNK = 1000  # images that are handed to the threads at a time; an interruption waits for them

# The least std, in [0, 1] units: a channel that never changes would otherwise divide by zero.
SMALLEST_STD = 1 / 255


def scan_images(
    table: Table, mode: str, scale: float | None, ignore_index: int | None, record: Path, progress: bool = False
) -> pd.DataFrame:
    """Read every image and mask of the table that is not in the record yet, and check them all.

    Args:
        table: with the classes, if its task is segmentation.
        mode: how images are read, see `read_image`.
        scale: the declared value that means 1.0; float images beyond 1 need it.
        ignore_index: the mask value that is neither trained nor scored.
        record: the `images.csv` to read and to bring up to date.
        progress: show a progress bar.

    Returns:
        One row a table row, with the columns RECORD; for segmentation also `pixels`, an int64 (C,) array each.

    Raises:
        TableError: lists every image that cannot be decoded or has other channels or another dtype than most,
            every mask of another size than its image, and every mask with values outside the classes.
    """
    wanted = _file_sizes(table, mode)
    known = _read_record(record)
    todo = wanted.drop_duplicates().merge(known[KEY], on=KEY, how="left", indicator=True)
    todo = todo[todo["_merge"] == "left_only"][KEY]
    failures: dict[tuple[str, str], str] = {}
    if len(todo):
        known = _scan_into_record(todo, table.root, mode, known, record, progress, failures)
    scan = wanted.merge(known, on=KEY, how="left", validate="many_to_one")
    problems = image_problems(scan, failures, scale)
    if table.task == "segmentation" and "mask" in table.frame:
        problems += mask_problems(scan, table.classes, ignore_index)
    if problems:
        raise TableError(table.path, problems)
    if table.task == "segmentation" and "mask" in table.frame:
        scan["pixels"] = [_class_pixels(values, len(table.classes)) for values in scan["values"]]
    return scan


def compute_statistics(
    scan: pd.DataFrame, table: Table, folds: Mapping[str, int], scale: float | None
) -> dict[str, Any]:
    """What training needs to know of the images, as plain values for `statistics.json`.

    Returns:
        channels, dtype, scale; mean and std per channel over all pixels in [0, 1] units (std at least 1/255);
        images; class_counts: for each fold, as text, the images per class (soft targets add up), or for
        segmentation the pixels per class.
    """
    dtype = str(scan["dtype"].iat[0])
    scale = default_scale(dtype) if scale is None else float(scale)
    pixels = float((scan["height"].astype(float) * scan["width"]).sum())
    sums = np.array([text.split() for text in scan["sums"]], dtype=np.float64).sum(axis=0)
    squares = np.array([text.split() for text in scan["squares"]], dtype=np.float64).sum(axis=0)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0)) / scale
    counts = np.stack(scan["pixels"].tolist()) if table.target is None else table.target.astype(np.float64)
    fold = np.array([folds[name] for name in table.ids])
    return {
        "channels": int(scan["channels"].iat[0]),
        "dtype": dtype,
        "scale": scale,
        "mean": [float(value) for value in mean / scale],
        "std": [max(float(value), SMALLEST_STD) for value in std],
        "images": len(table),
        "class_counts": {
            str(number): [_plain(value) for value in counts[fold == number].sum(axis=0)] for number in np.unique(fold)
        },
    }


def images_hash(scan: pd.DataFrame) -> str:
    """The name of these images by path and size, masks too: 16 hexadecimal digits of SHA-256."""
    lines = sorted(set(scan[["image", "bytes", "mask", "mask_bytes"]].astype(str).agg(",".join, axis=1)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def constant_channels(statistics: Mapping[str, Any]) -> list[int]:
    """The channels that hardly ever change, whose std was raised to the least one."""
    return [number for number, std in enumerate(statistics["std"]) if std <= SMALLEST_STD]


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _file_sizes(table: Table, mode: str) -> pd.DataFrame:
    has_masks = "mask" in table.frame
    return pd.DataFrame(
        {
            "image": table.frame["image"].astype(object),
            "bytes": [(table.root / name).stat().st_size for name in table.frame["image"]],
            "mask": table.frame["mask"].astype(object) if has_masks else "",
            "mask_bytes": [(table.root / name).stat().st_size for name in table.frame["mask"]] if has_masks else 0,
            "mode": mode,
        }
    )


def _read_record(record: Path) -> pd.DataFrame:
    text = {"image", "mask", "mode", "dtype", "sums", "squares", "values"}
    if record.exists():
        try:
            known = pd.read_csv(record, dtype=dict.fromkeys(text, object), keep_default_na=False, encoding="utf-8")
        except ValueError as error:  # pandas' own are, and UnicodeDecodeError
            raise Refusal(f"{record} cannot be read ({error}); delete it and make it again") from error
        if known.columns.tolist() == RECORD:  # else it is of another version, and everything is read again
            return known
    return pd.DataFrame({name: pd.Series(dtype=object if name in text else float) for name in RECORD})


def _scan_into_record(
    todo: pd.DataFrame,
    root: Path,
    mode: str,
    known: pd.DataFrame,
    record: Path,
    progress: bool,
    failures: dict[tuple[str, str], str],
) -> pd.DataFrame:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rows: list[dict[str, Any]] = []

    def read(key: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return key | _measure(root, key["image"], key["mask"], mode)
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
            known = known.drop_duplicates(["image", "mask", "mode"], keep="last", ignore_index=True)
            with write_atomic(record) as temporary:
                known.to_csv(temporary, index=False)
    return known


def _measure(root: Path, image_name: str, mask_name: str, mode: str) -> dict[str, Any]:
    image = read_image(root / image_name, mode)
    height, width, channels = image.shape
    flat = image.reshape(-1, channels)
    sums, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(flat), BLOCK):
        for channel in range(channels):
            # float64 holds sums of whole numbers exactly up to 2^53.
            values = flat[start : start + BLOCK, channel].astype(np.float64)
            sums[channel] += values.sum()
            squares[channel] += np.square(values, out=values).sum()  # BLAS would start threads in each thread
    if not np.isfinite(squares).all():
        raise ImageError(f"{root / image_name} has values that are not finite")
    row = {
        "height": height, "width": width, "channels": channels, "dtype": str(image.dtype),
        "minimum": float(image.min()), "maximum": float(image.max()),
        "sums": " ".join(map(_text, sums)), "squares": " ".join(map(_text, squares)),
        "mask_height": 0, "mask_width": 0, "values": "",
    }  # fmt: skip
    if mask_name:
        mask = read_mask(root / mask_name)
        counts = np.bincount(mask.ravel())
        row |= {
            "mask_height": mask.shape[0], "mask_width": mask.shape[1],
            "values": " ".join(f"{value}:{counts[value]}" for value in np.flatnonzero(counts)),
        }  # fmt: skip
    return row


def _text(value: float) -> str:
    return repr(_plain(value))


def _class_pixels(values: str, classes: int) -> np.ndarray:
    pixels = np.zeros(classes, np.int64)
    for pair in values.split():
        value, count = pair.split(":")
        if int(value) < classes:
            pixels[int(value)] = int(count)
    return pixels
