"""Read every item once and record its image size, sums per channel and pixels per mask value.

The record, `images.csv`, has a line per item; the next scan only compares file sizes with it. Delete the record if a
file changed but kept its size.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.code.alias import opened_code
from foldwise.code.definitions import Definitions
from foldwise.code.source import PACKAGE
from foldwise.data.decoding import noting
from foldwise.data.image_problems import LEFT_OUT, exif_problems, file_problems, image_problems
from foldwise.data.images import ImageError
from foldwise.data.orientation import oriented
from foldwise.data.problems import TableError, some
from foldwise.data.samples import Samples, TableItems
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.files import write_csv
from foldwise.progress import progress_bar, silent, stepping

# `sums` and `squares` are space-separated, one number per channel of the stored values. `values` is the
# `StoredMasks.figures` of a mask, which do not depend on the classes. `others` is JSON with the other image fields.
# `turned` and `damage` are JSON too: the EXIF orientation, if it is not 1, and the damage of each file.
RECORD = [
    "image", "bytes", "mask", "mask_bytes", "reader", "height", "width", "area", "channels", "dtype",
    "minimum", "maximum", "sums", "squares", "mask_height", "mask_width", "values", "others",
    "turned", "damage",
]  # fmt: skip
KEY = ["image", "bytes", "mask", "mask_bytes", "reader"]
TEXT = {"image", "bytes", "mask", "reader", "dtype", "sums", "squares", "values", "others", "turned", "damage"}

BLOCK = 1 << 20  # pixels converted to float64 at a time
CHUNK = 256  # items per batch of the threads; Ctrl-C waits for them


def scan_items(
    items: TableItems, data: Mapping[str, Any], name: str = "images", table: Table | None = None, progress: bool = False
) -> pd.DataFrame:
    """Read every item that is not in the record yet, then check all items.

    Args:
        name: of the record in `data.prepared`, without suffix.
        table: item table with the masks of another output; None: `items.table`.

    Returns:
        The columns RECORD, one row per item, for its first image field; with masks also `pixels`, int64 (C,) per row.
    """
    table = items.table if table is None else table
    record = Path(data["prepared"]) / f"{name}.csv"
    current, known = _file_sizes(items, table), _read_record(record)
    todo = current.drop_duplicates(KEY).merge(known[KEY], on=KEY, how="left", indicator=True)
    todo = todo[todo["_merge"] == "left_only"]
    known, failures = _extend_record(record, known, todo, items, table, progress)
    scan = current[KEY].merge(known, on=KEY, how="left", validate="many_to_one")
    problems = file_problems(scan, failures) + image_problems(scan, data["scale"])
    problems += exif_problems(scan) if table.exif is None else []
    if "mask" in table.frame:
        problems += table.masks.problems(scan, table.exif)
    if problems:
        raise TableError(table.path, problems)
    if "mask" in table.frame:
        scan["pixels"] = [table.masks.pixels(values) for values in scan["values"]]
    return scan


def reader_key(samples: Samples, exif: str | None = None) -> str:
    """Hash the reader's class, arguments and code: measurements depend on them as well as on the files, and on whether
    these are turned."""
    kind = type(samples)
    package, _, module = kind.__module__.partition(".")
    source: Any = None  # of foldwise: fixed
    if code := opened_code(package):
        source = Definitions(code, [f"{PACKAGE}.{module}.{kind.__qualname__}"]).hashes()
    elif package != "foldwise":
        source = inspect.getsource(inspect.getmodule(kind) or kind)
    turned = ["ignore"] if exif == "ignore" else []
    text = json.dumps([kind.__qualname__, vars(samples), source, *turned], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def image_fields(samples: Samples) -> list[str]:
    return [name for name, field in samples.fields.items() if field.kind == "image"]


def images_hash(scan: pd.DataFrame) -> str:
    """Hash the files' paths and sizes, masks included: 16 hex digits of SHA-256."""
    lines = sorted(set(scan[["image", "bytes", "mask", "mask_bytes"]].astype(str).agg(",".join, axis=1)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def map_in_threads(
    function: Callable[[Any], Any], values: Sequence[Any], text: str, chunk: int, progress: bool
) -> Iterator[list[Any]]:
    """Apply a function in threads; yield the results in chunks."""
    if not values:
        return
    bar = progress_bar(text) if progress else nullcontext(silent)
    with bar as show, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        step = stepping(show, text, len(values))
        for start in range(0, len(values), chunk):
            results = list(pool.map(function, values[start : start + chunk]))
            yield results
            step(len(results))


def _file_sizes(items: TableItems, table: Table) -> pd.DataFrame:
    """Return the KEY columns and the index `number` of each item."""
    files_of = [list(dict.fromkeys(items.samples.files(items.rows, item))) for item in items.items]
    has_masks = "mask" in table.frame
    key = reader_key(items.samples, table.exif) + (table.masks.reading if has_masks else "")
    masks = [table.mask_files(row) for row in range(len(table))] if has_masks else []
    sizes = {path: file_size(path) for path in dict.fromkeys([*chain(*files_of), *chain(*masks)])}
    name_of = {path: _relative(path, table.root) for path in sizes}
    missing = [name_of[path] for path, size in sizes.items() if size < 0]
    if missing:
        raise TableError(table.path, [f"{len(missing)} files that the reader opens do not exist: {some(missing)}"])
    return pd.DataFrame(
        {
            "image": [";".join(name_of[path] for path in files) for files in files_of],
            "bytes": [";".join(str(sizes[path]) for path in files) for files in files_of],
            "mask": [table.mask_name(row) for row in range(len(table))] if has_masks else "",
            "mask_bytes": [sum(sizes[path] for path in files) for files in masks] if has_masks else 0,
            "reader": [key + box for box in box_hashes(items)],
            "number": range(len(files_of)),
        }
    ).astype(dict.fromkeys(("image", "bytes", "mask", "reader"), object))


def box_hashes(items: TableItems) -> list[str]:
    """The boxes that each item's pictures are cut by, hashed; several rows may share a picture."""
    crop = items.samples.crop
    if crop is None:
        return [""] * len(items.items)
    texts = [str([[items.rows[column][row] for column in crop.columns] for row in item.rows]) for item in items.items]
    return [hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts]


def file_size(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _read_record(record: Path) -> pd.DataFrame:
    if record.exists():
        try:
            known = pd.read_csv(record, dtype=dict.fromkeys(TEXT, object), keep_default_na=False, encoding="utf-8")
        except ValueError as error:  # includes pandas' errors and UnicodeDecodeError
            raise Refusal(f"{record} cannot be read ({error}); delete it and run the same command again") from error
        if known.columns.tolist() == RECORD:  # else another version wrote it: read everything again
            return known
    return pd.DataFrame({name: pd.Series(dtype=object if name in TEXT else float) for name in RECORD})


def _extend_record(
    record: Path,
    known: pd.DataFrame,
    todo: pd.DataFrame,
    items: TableItems,
    table: Table,
    progress: bool,
) -> tuple[pd.DataFrame, dict[tuple[str, str], tuple[str, str]]]:
    """Read the missing items; return the extended record, and (file, problem) by (image, mask)."""
    rows: list[dict[str, Any]] = []
    failures: dict[tuple[str, str], tuple[str, str]] = {}
    state = items.state if len(todo) else {}

    def measure(key: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return {name: key[name] for name in KEY} | _measure(items, table, key["number"], state)
        except ImageError as error:
            files = [*items.samples.files(items.rows, items.items[key["number"]])]
            files += table.mask_files(key["number"]) if "mask" in table.frame else []
            file = next((str(file) for file in files if str(error).startswith(f"{file} ")), "")
            failures[key["image"], key["mask"]] = file, str(error)[len(file) :]
            return None

    try:
        for found in map_in_threads(measure, todo.to_dict("records"), "Reading images", CHUNK, progress):
            rows += [row for row in found if row is not None]
    finally:  # keep what was read if the scan is interrupted
        if rows:
            new = pd.DataFrame(rows, columns=RECORD)
            known = new if known.empty else pd.concat([known, new], ignore_index=True)
            # Drop the old line of a changed file.
            known = known.drop_duplicates(["image", "mask", "reader"], keep="last", ignore_index=True)
            write_csv(record, known)
    return known, failures


def _measure(items: TableItems, table: Table, number: int, state: Mapping[str, Any]) -> dict[str, Any]:
    with oriented(table.exif), noting() as notes:
        row = _figures(items, table, number, state)
    turned = {_relative(note.path, table.root): note.orientation for note in notes if note.orientation != 1}
    damage = {_relative(note.path, table.root): note.damage for note in notes if note.damage}
    damage |= {_relative(note.path, table.root): LEFT_OUT for note in notes if note.left_out}
    return row | {"turned": json.dumps(turned), "damage": json.dumps(damage)}


def _figures(items: TableItems, table: Table, number: int, state: Mapping[str, Any]) -> dict[str, Any]:
    sample = items.samples.read(items.rows, items.items[number], state, None)
    where = ", ".join(map(str, items.samples.files(items.rows, items.items[number])[:1]))
    figures = [(name, _image_figures(sample[name], where)) for name in image_fields(items.samples)]
    first = figures[0][1] if figures else _image_figures(np.zeros((1, 1, 1), np.uint8), where)
    row = first | {"mask_height": 0, "mask_width": 0, "values": "", "others": json.dumps(dict(figures[1:]))}
    if "mask" in table.frame and table.known[number]:
        row |= table.masks.figures(table.mask_cells(number), table.root, table.image_path(number))
    return row


def _image_figures(image: Any, where: str) -> dict[str, Any]:
    stack = image if isinstance(image, list) else [image] if image.ndim == 3 else list(image)
    height, width, channels = stack[0].shape
    if any(each.shape[2] != channels for each in stack):
        raise ImageError(f"{where}: the images of a stack have different numbers of channels")
    sums, squares = np.zeros(channels), np.zeros(channels)
    for each in stack:
        flat = each.reshape(-1, channels)
        for start in range(0, len(flat), BLOCK):
            for channel in range(channels):
                # float64 sums of integers are exact up to 2^53.
                values = flat[start : start + BLOCK, channel].astype(np.float64)
                sums[channel] += values.sum()
                # not np.dot: BLAS would start its own threads in each thread
                squares[channel] += np.square(values, out=values).sum()
    if not np.isfinite(squares).all():
        raise ImageError(f"{where} has NaN or infinite values")
    return {
        "height": height, "width": width, "area": sum(each.shape[0] * each.shape[1] for each in stack),
        "channels": channels, "dtype": str(stack[0].dtype),
        "minimum": float(min(each.min() for each in stack)), "maximum": float(max(each.max() for each in stack)),
        "sums": " ".join(map(_text, sums)), "squares": " ".join(map(_text, squares)),
    }  # fmt: skip


def _text(value: float) -> str:
    return repr(int(value) if value.is_integer() else float(value))
