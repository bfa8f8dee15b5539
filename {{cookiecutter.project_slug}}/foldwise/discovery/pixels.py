"""What a sample of pictures and masks stores: channels and depth, orientation, mask values or colours."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data.decoding import ImageError, decode_image, decode_mask, noting, stored_size
from foldwise.data.images import JPEGS, to_mode
from foldwise.data.problems import some
from foldwise.data.run_lengths import decode_runs
from foldwise.data.scan import map_in_threads
from foldwise.discovery.findings import Findings
from foldwise.errors import Refusal

PICTURES, MASKS, CODES = 200, 500, 40  # that are read
MOST_VALUES = 64  # of class masks
MOST_NUMBERS = 16  # gray values that are steps of brightness, not class numbers


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many values, evenly chosen."""
    return [values[place] for place in np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).astype(int))]


def inspect_pictures(found: Findings, paths: Sequence[str], masks: bool) -> None:
    """Find channels, depth and orientation; with masks, the sizes of these tell whether pictures are to be turned."""
    chosen = spread(paths, PICTURES)

    def read(path: str) -> tuple[int, int, int, str, bool] | str:
        try:
            with noting() as notes:
                image = decode_image(found.root / path)
        except ImageError as error:
            return str(error)
        return *image.shape, str(image.dtype), any(note.orientation != 1 for note in notes)

    results = [result for part in map_in_threads(read, chosen, "Reading pictures", 16, True) for result in part]
    bad = [result for result in results if isinstance(result, str)]
    if len(bad) == len(results):
        raise Refusal(f"no picture of {len(chosen)} can be read; the first: {bad[0]}")
    height, width, channels, depths, turned = zip(*(r for r in results if not isinstance(r, str)), strict=True)
    kinds = {"uint8": "8 bits", "uint16": "16 bits", "float32": "floats"}
    number, depth = (" or ".join(map(str, sorted(set(each)))) for each in (channels, [kinds[d] for d in depths]))
    found.say(
        "pixels",
        f"{number} channel{'s' * (number != '1')} of {depth}; {_range(height)} pixels high and {_range(width)} wide "
        f"({len(height):,} of {len(paths):,} pictures were read)",
    )
    if len(set(channels)) > 1 and max(channels) <= 4:
        found.settings["mode"] = "rgb"
        found.say("mode", "rgb, as the pictures differ in channels: grey becomes RGB, alpha is dropped")
    if any(turned) and not masks:
        found.settings["exif"] = "apply"
        found.say("exif", f"apply: {sum(turned)} of {len(turned)} have an EXIF orientation, and are turned upright")
    if any(turned) and masks:
        found.doubts.append("whether pictures are turned by their EXIF orientation: prepare.py proposes the line")
    if bad:
        found.doubts.append(f"what to do with pictures that cannot be read, {len(bad)} of {len(chosen)}: {bad[0]}")


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def inspect_masks(found: Findings, paths: Sequence[str], names: Mapping[str, Sequence[Any]]) -> None:
    """Find how masks store their classes.

    Args:
        names: class names of the folder by "names", and their colours as #rrggbb by "colors".
    """
    root, chosen = found.root, spread(paths, MASKS)
    colors = bool(names.get("colors")) or any(_has_colors(root / path) for path in spread(chosen, 8))
    counts: Counter[int] = Counter()
    for part in map_in_threads(lambda path: _count_values(root / path, colors), chosen, "Reading masks", 16, True):
        for counted in part:
            counts.update(counted)
    where = f"{'all' if len(chosen) == len(paths) else 'a sample of'} {len(chosen):,} masks"
    inexact = any(path.lower().endswith(JPEGS) for path in chosen)
    if inexact:
        counts = _main_colors(counts)
    values, given = sorted(counts), list(names.get("names", ()))
    if colors:
        return _colors(found, values, where, dict(zip(names.get("colors", ()), given, strict=False)), inexact)
    shown = some(values, 12)
    if len(values) > MOST_VALUES and len(given) != values[-1] + 1:
        found.doubts.append(
            f"what the {len(values):,} values up to {values[-1]:,} in {where} mean: smoothed edges, shares (masks: "
            "soft), numbers of objects? For classes write masks with a number for each"
        )
        return
    steps = len(values) <= MOST_NUMBERS and values[-1] >= max(8, 4 * len(values))
    void = [255] if values[-1] == 255 and len(values) > 2 and values[-2] < max(8, 4 * len(values)) else []
    real = [value for value in values if value not in void]
    if (len(real) == 2 and real != [0, 1]) or (steps and not void):
        found.settings["mask_values"] = {value: number for number, value in enumerate(real)}
        count = len(real)
    else:
        count = real[-1] + 1
    found.settings["classes"] = given if len(given) == count else _class_names(count)
    found.say("mask values", f"{shown} in {where}" + (", where 255 is ignored" if void else ""))
    if len(real) > 2 and len(given) != count:
        last = "" if void else f"; if {real[-1]} means void, delete the last name and write ignore_index: {real[-1]}"
        found.doubts.append(f"the names of the classes {shown}: write them in classes{last}")


def _colors(found: Findings, values: list[int], where: str, named: Mapping[str, str], inexact: bool) -> None:
    texts = [f"#{value:06x}" for value in values]
    if len(texts) > MOST_VALUES or (inexact and not named and len(texts) > 2) or len(texts) < 2:
        found.doubts.append(
            f"which of {len(texts):,} colours in {where} are classes: write mask_encoding: colors, "
            "mask_values: {'#000000': 0, '#ff0000': 1} with yours, and classes"
        )
        return
    if unknown := [text for text in texts if text not in named] if named and not inexact else []:
        found.doubts.append(f"the classes of the colours {some(unknown)}: add them to mask_values and classes")
    if not named and len(texts) > 2:
        found.doubts.append("the names of the classes: write them in classes, in the order of mask_values")
    found.settings |= {
        "mask_encoding": "colors",
        "mask_values": {text: number for number, text in enumerate(named or texts)},
        "classes": list(named.values()) or _class_names(len(texts)),
    }
    found.say("mask colours", f"{some(texts, 12)} in {where}")


def _class_names(count: int) -> list[str]:
    return ["background", "object"] if count == 2 else [f"class_{number}" for number in range(count)]


def _has_colors(path: Path) -> bool:
    return path.suffix.lower() in JPEGS or decode_mask(path).ndim == 3


def _count_values(path: Path, colors: bool) -> Counter[int]:
    """Pixels by value, or by colour as 0xrrggbb."""
    cells = to_mode(decode_image(path), "rgb", path) @ np.array([1 << 16, 1 << 8, 1]) if colors else decode_mask(path)
    values, counts = np.unique(cells, return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _main_colors(counts: Counter[int]) -> Counter[int]:
    """Merge the inexact colours of JPEGs into black, white, red, ...; without those of less than a thousandth."""
    merged: Counter[int] = Counter()
    for value, count in counts.items():
        merged[sum(255 << shift for shift in (16, 8, 0) if value >> shift & 255 > 127)] += count
    return Counter({value: count for value, count in merged.items() if count * 1000 > counts.total()})


def order_of_runs(found: Findings, rows: Sequence[tuple[str, str]]) -> str:
    """Find whether codes run down the columns or along the rows: in the right order, outlines are short.

    Args:
        rows: pictures and codes.
    """
    outlines = {"rle": 0, "rle_by_row": 0}
    for image, code in spread(rows, CODES):
        size = stored_size(found.root / image)
        for name in outlines:
            mask = decode_runs(code, size, name == "rle_by_row", found.root / image)
            outlines[name] += int((np.diff(mask, axis=0) != 0).sum() + (np.diff(mask, axis=1) != 0).sum())
    best, other = sorted(outlines, key=lambda name: outlines[name])
    ways = {"rle": "down the columns", "rle_by_row": "along the rows"}
    if outlines[best] < 0.8 * outlines[other]:
        times = f"{outlines[other] / max(1, outlines[best]):.1f} times"
        found.say("run-length codes", f"{best}, {ways[best]}: outlines are {times} as long in the other order")
        return best
    question = "In which order do the run-length codes count the pixels?"
    sentence = (
        "whether run-length codes run down the columns (rle, as on Kaggle) or along the rows, which square pictures "
        "do not show: if the masks of prepared/samples.png lie wrong write mask_encoding: rle_by_row"
    )
    best = found.ask(question, list(outlines), sentence, "rle") or "rle"
    found.say("run-length codes", f"{best}, {ways[best]}: taken, as square pictures do not show it")
    return best
