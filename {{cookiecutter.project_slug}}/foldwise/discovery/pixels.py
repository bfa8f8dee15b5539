"""What a sample of pictures and masks stores: channels and depth, orientation, mask values or colours."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data.decoding import ImageError, decode_image, decode_mask, noting, stored_size
from foldwise.data.images import JPEGS, to_mode
from foldwise.data.problems import some
from foldwise.data.run_lengths import decode_runs
from foldwise.data.scan import map_in_threads
from foldwise.errors import Refusal

PICTURES, MASKS, CODES = 200, 500, 40  # that are read
MOST_VALUES = 64  # of class masks
MOST_NUMBERS = 16  # gray values that are steps of brightness, not class numbers


@dataclass
class Pixels:
    """Settings that the pixels ask for, each evidence in a line."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many values, evenly chosen."""
    return [values[place] for place in np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).astype(int))]


def look_at_pictures(root: Path, paths: Sequence[str]) -> Pixels:
    found = Pixels()
    chosen = spread(paths, PICTURES)

    def read(path: str) -> tuple[tuple[Any, ...] | None, bool, str]:
        try:
            with noting() as notes:
                image = decode_image(root / path)
        except ImageError as error:
            return None, False, str(error)
        return (image.shape, str(image.dtype)), any(note.orientation != 1 for note in notes), ""

    results = [result for part in map_in_threads(read, chosen, "Reading pictures", 16, True) for result in part]
    shapes = [shape for shape, _, _ in results if shape is not None]
    bad = [problem for shape, _, problem in results if shape is None]
    if not shapes:
        raise Refusal(f"no picture of {len(chosen)} can be read; the first: {bad[0]}")
    channels, depths = Counter(shape[2] for shape, _ in shapes), Counter(dtype for _, dtype in shapes)
    height, width = ([shape[side] for shape, _ in shapes] for side in (0, 1))
    sizes = f"{min(height)} to {max(height)} pixels high and {min(width)} to {max(width)} wide"
    kinds = {"uint8": "8 bits", "uint16": "16 bits", "float32": "floats"}
    text = " or ".join(f"{number} channel{'s' * (number > 1)}" for number in sorted(channels))
    text += f" of {' or '.join(kinds[name] for name in sorted(depths))}; {sizes}"
    found.lines.append(("channels", f"{text}; {len(shapes):,} of {len(paths):,} pictures were read"))
    if len(channels) > 1 and max(channels) <= 4:
        found.settings["mode"] = "rgb"
        found.lines.append(("mode", "rgb, as the pictures differ in channels: grey becomes RGB, alpha is dropped"))
    turned = sum(tag for _, tag, _ in results)
    if turned:
        found.settings["exif"] = "apply"
        found.lines.append(
            ("exif", f"apply: {turned} of {len(shapes)} have an EXIF orientation, and are turned upright")
        )
    found.doubts += [f"{len(bad)} pictures of {len(chosen)} cannot be read; the first: {bad[0]}"] if bad else []
    return found


def look_at_masks(root: Path, paths: Sequence[str], names: Mapping[str, Sequence[Any]]) -> Pixels:
    """Find how masks store their classes.

    Args:
        names: class names of the folder by "names", and their colours as #rrggbb by "colors".
    """
    found, chosen = Pixels(), spread(paths, MASKS)
    colors = bool(names.get("colors")) or any(_has_colors(root / path) for path in spread(chosen, 8))
    read = _read_colors if colors else _read_numbers
    counts: Counter[int] = Counter()
    for part in map_in_threads(lambda path: read(root / path), chosen, "Reading masks", 16, True):
        for counted in part:
            counts.update(counted)
    total, read_all = sum(counts.values()), len(chosen) == len(paths)
    if any(path.lower().endswith(JPEGS) for path in chosen):
        counts = Counter({value: count for value, count in _main_colors(counts).items() if count > 0.001 * total})
    values, where = sorted(counts), f"{'all' if read_all else 'a sample of'} {len(chosen):,} masks"
    if colors:
        return _colors(found, values, where, names)
    if len(values) > MOST_VALUES and values[-1] > 255:
        found.doubts.append(
            f"{where} have {len(values):,} values up to {values[-1]:,}: do they number objects? Write masks with a "
            "number per class, and run this again"
        )
        return found
    shown = some(values, 12)
    given = list(names.get("names", ()))
    void = [value for value in values if value == 255] if len(values) > 2 else []
    real = [value for value in values if value not in void]
    if len(real) == 1:
        found.doubts.append(f"{where} have only the value {real[0]}: there are no two classes")
    steps = len(real) <= MOST_NUMBERS and real[-1] >= max(8, 4 * len(real))
    if (len(real) == 2 and real != [0, 1]) or steps:
        found.settings["mask_values"] = {v: n for n, v in enumerate(real)} | dict.fromkeys(void, 255)
        count = len(real)
    else:
        count = real[-1] + 1
    found.settings["classes"] = given if len(given) == count else _class_names(count)
    found.lines.append(("mask values", f"{shown} in {where}" + (", where 255 is ignored" if void else "")))
    if len(real) > 2 and not void and len(given) != count:
        found.doubts.append(
            f"the masks have the values {shown}: give the classes their names in classes; if {real[-1]} means void, "
            f"delete the last name and write ignore_index: {real[-1]}"
        )
    return found


def _colors(found: Pixels, values: list[int], where: str, names: Mapping[str, Sequence[Any]]) -> Pixels:
    named = dict(zip(names.get("colors", ()), names.get("names", ()), strict=False))
    texts = [f"#{value:06x}" for value in values]
    if named:
        unknown = [text for text in texts if text not in named]
        texts, classes = [*named], [str(name) for name in named.values()]
        found.doubts += [f"{where} have colours without a name: {some(unknown)}"] if unknown else []
    else:
        classes = _class_names(len(texts))
    if len(texts) > MOST_VALUES or len(texts) < 2:
        found.doubts.append(
            f"{where} have {len(texts):,} colours: masks need one for each class; edges may be smoothed"
        )
        return found
    found.settings |= {
        "mask_encoding": "colors",
        "mask_values": {text: number for number, text in enumerate(texts)},
        "classes": classes,
    }
    found.lines.append(("mask colours", f"{some(texts, 12)} in {where}"))
    return found


def _class_names(count: int) -> list[str]:
    return ["background", "object"] if count == 2 else [f"class_{number}" for number in range(count)]


def _has_colors(path: Path) -> bool:
    return path.suffix.lower() in JPEGS or decode_mask(path).ndim == 3


def _read_numbers(path: Path) -> dict[int, int]:
    values, counts = np.unique(decode_mask(path), return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _read_colors(path: Path) -> dict[int, int]:
    image = to_mode(decode_image(path), "rgb", path).astype(np.int32)
    values, counts = np.unique(image[:, :, 0] << 16 | image[:, :, 1] << 8 | image[:, :, 2], return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _main_colors(counts: Counter[int]) -> Counter[int]:
    """Merge colours of JPEGs into the nearest corner of the colour cube: black, white, red, ..."""
    merged: Counter[int] = Counter()
    for value, count in counts.items():
        merged[sum(255 << shift for shift in (16, 8, 0) if value >> shift & 255 > 127)] += count
    return merged


def order_of_runs(root: Path, rows: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    """Find whether codes run down the columns or along the rows: (encoding, evidence, doubt).

    In the right order outlines are short: neighbouring pixels of a mask are alike in both directions.

    Args:
        rows: pictures and codes.
    """
    outlines = {"rle": 0, "rle_by_row": 0}
    for image, code in spread(rows, CODES):
        size = stored_size(root / image)
        for name in outlines:
            try:
                mask = decode_runs(code, size, name == "rle_by_row", root / image)
            except ImageError as error:
                return "rle", "", str(error)
            outlines[name] += int((np.diff(mask, axis=0) != 0).sum() + (np.diff(mask, axis=1) != 0).sum())
    best, other = sorted(outlines, key=lambda name: outlines[name])
    if outlines[best] < 0.8 * outlines[other]:
        way = "down the columns" if best == "rle" else "along the rows"
        return (
            best,
            f"{way}: outlines {outlines[other] / max(1, outlines[best]):.1f} times as long in the other order",
            "",
        )
    doubt = (
        "whether run-length codes run down the columns (rle, as on Kaggle) or along the rows cannot be seen in square "
        "pictures; if the masks of prepared/samples.png lie wrong write mask_encoding: rle_by_row"
    )
    return "rle", "down the columns, as on Kaggle", doubt
