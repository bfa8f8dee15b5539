"""Find problems of masks in a scan; one message per problem, not per mask."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.image_problems import lies_sideways
from foldwise.data.problems import first_of, some

TURNED = {
    "apply": ", turned by its EXIF orientation: with data.exif=ignore both have the same size",
    "ignore": ", and its EXIF orientation says to turn it: with data.exif=apply both have the same size",
    None: ", turned by its EXIF orientation",
}


def size_problems(scan: pd.DataFrame, exif: str | None) -> list[str]:
    """List masks with another size than their image."""
    sizes: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    read = scan[scan["dtype"].notna() & (scan["mask_height"] != 0)]  # 0: a missing mask
    for row in read.drop_duplicates(["image", "mask"]).itertuples():
        if (row.mask_height, row.mask_width) != (row.height, row.width):
            key = row.mask_height, row.mask_width, row.height, row.width, lies_sideways(row)
            sizes[key].append(f"{row.mask} of {row.image}")
    return [
        f"{first_of(pairs)} is {size[0]:.0f} x {size[1]:.0f} (height x width), the image {size[2]:.0f} x {size[3]:.0f}"
        + (TURNED[exif] if size[4] and size[:2] == size[3:1:-1] else "")
        for size, pairs in sizes.items()
    ]


def number_problems(
    scan: pd.DataFrame,
    classes: Sequence[str],
    ignore_index: int | None,
    mask_values: Mapping[int, int] | None = None,
    exif: str | None = None,
    colors: bool = False,
) -> list[str]:
    """List masks of class numbers with another size than their image or values outside the classes; refuse masks of
    one value only."""
    mapping = {value: value for value in [*range(len(classes)), ignore_index]} if mask_values is None else mask_values
    masks_of: dict[int, dict[str, int]] = defaultdict(dict)  # value -> {mask: pixels}
    existing = scan["dtype"].notna() & (scan["mask"] != "")
    for row in scan[existing].drop_duplicates(["image", "mask"]).itertuples():
        for value, pixels in parse_pairs(row.values):
            masks_of[value][row.mask] = pixels

    def name(value: int) -> str:
        return f"#{value:06x}" if colors else str(value)

    problems = size_problems(scan, exif)
    unknown = sorted(masks_of.keys() - mapping.keys())
    cure = propose_mask_values(set(masks_of), len(classes), ignore_index) if mask_values is None else ""
    for value in unknown if mask_values is None else []:
        file, pixels = next(iter(masks_of[value].items()))
        more = len(masks_of[value]) - 1
        problems.append(
            f"value {value} in {pixels:,} pixels of {file!r}"
            + (f" and in {more:,} more masks ({sum(masks_of[value].values()):,} pixels)" if more else "")
            + f" is neither a class (0 to {len(classes) - 1}: {some(classes, 20)}) nor data.ignore_index "
            f"({ignore_index}): set data.ignore_index={value} if it means void, or add a name to data.classes"
        )
    for value in unknown if mask_values is not None else []:
        problems.append(
            f"value {name(value)} in {first_of(list(masks_of[value]))} is not in data.mask_values: add its class"
        )
    for value, number in ({} if mask_values is None else mask_values).items():
        if number >= len(classes) and number != ignore_index:
            problems.append(
                f"data.mask_values: {name(value)} becomes {number}, which is neither a class (0 to {len(classes) - 1}) "
                f"nor data.ignore_index ({ignore_index})"
            )
    single = not problems and len({mapping[value] for value in masks_of} - {ignore_index}) < 2
    if single:
        problems.append(
            f"all masks together have only the values {sorted(masks_of)}: "
            f"with data.ignore_index={ignore_index} there are no two classes to learn"
        )
    return [*problems, cure] if cure and (unknown or single) else problems


def mask_notes(
    scan: pd.DataFrame, classes: int, ignore_index: int | None, mask_values: Mapping[int, int] | None
) -> list[str]:
    """Note that some masks may store class 1 as 255, which counts as `ignore_index` with two classes."""
    if mask_values is not None or classes != 2 or ignore_index != 255:
        return []
    values_of = [{value for value, _ in parse_pairs(values)} for values in scan["values"]]
    count = sum(values == {0, 255} for values in values_of)
    cure = propose_mask_values(set().union(*values_of), classes, ignore_index)
    return [f"{count} masks have only the values 0 and 255, and 255 is ignored; {cure}"] if count and cure else []


def propose_mask_values(values: set[int], classes: int, ignore_index: int | None) -> str:
    """Say which `data.mask_values` would turn the stored values into `classes` class numbers, in order; "" if none."""
    for void in ([ignore_index] if ignore_index in values else [], []):
        known = sorted(values.difference(void))
        if len(known) == classes and known != list(range(classes)):
            mapping = dict(zip(known, range(classes), strict=True)) | {value: value for value in void}
            return _proposal(mapping, "if these are the classes in their order")
    if values == {0, 1, 255} and classes == 2:
        return _proposal({0: 0, 1: 1, 255: 1}, "if 255 is class 1 as well, in the masks of 0 and 255")
    return ""


def _proposal(mapping: Mapping[int, int], condition: str) -> str:
    text = ", ".join(f"{value}: {number}" for value, number in mapping.items())
    return f"{condition}, write this under the data settings (configs/data):  mask_values: {{{text}}}"


def value_pairs(mask: np.ndarray) -> str:
    """Count the pixels of each stored value, as "value:pixels value:pixels ..."."""
    if mask.max(initial=0) > 65535:  # colours
        values, counts = np.unique(mask, return_counts=True)
    else:
        counts = np.bincount(mask.ravel())
        values = np.arange(len(counts))
    return " ".join(f"{value}:{count}" for value, count in zip(values.tolist(), counts.tolist(), strict=True) if count)


def parse_pairs(text: str) -> list[tuple[int, int]]:
    return [(int(value), int(count)) for value, count in (pair.split(":") for pair in text.split())]
