"""Find problems of images and masks in a scan; one message per problem, not per image."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from foldwise.data.problems import some


def image_problems(scan: pd.DataFrame, failures: Mapping[tuple[str, str], str], scale: float | None) -> list[str]:
    """List images that cannot be decoded, differ from most in channels or dtype, or have floats outside [0, 1].

    `failures` are the errors of unreadable images by (image, mask); in `scan` these have NaN.
    """
    keys = dict.fromkeys(zip(scan["image"], scan["mask"], strict=True))
    problems = [failures[key] for key in keys if key in failures]
    read = scan[scan["dtype"].notna()].drop_duplicates("image")
    for column in ("channels", "dtype"):
        usual = read[column].mode().tolist()[:1]
        other = read[~read[column].isin(usual)]
        problems += [
            f"{_first(rows['image'].tolist())} has {column} {_name(value)}, most images have {_name(usual[0])}"
            + (" (data.mode=rgb or data.mode=gray makes them equal)" if column == "channels" else "")
            for value, rows in other.groupby(column, sort=False)
        ]
    if scale is None:
        outside = read[(read["dtype"] == "float32") & ((read["maximum"] > 1) | (read["minimum"] < 0))]
        if len(outside):
            problems.append(
                f"{_first(outside['image'].tolist())} has values from {outside['minimum'].min():.4g} to "
                f"{outside['maximum'].max():.4g}; float images must be within 0 to 1: set data.scale to the value that "
                "means 1.0"
            )
    return problems


def mask_problems(scan: pd.DataFrame, classes: Sequence[str], ignore_index: int | None) -> list[str]:
    """List masks with another size than their image or values outside the classes; refuse masks of one value only."""
    sizes: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    masks_of: dict[int, dict[str, int]] = defaultdict(dict)  # value -> {mask: pixels}
    for row in scan[scan["dtype"].notna()].drop_duplicates(["image", "mask"]).itertuples():
        if (row.mask_height, row.mask_width) != (row.height, row.width):
            sizes[row.mask_height, row.mask_width, row.height, row.width].append(f"{row.mask} of {row.image}")
        for pair in row.values.split():
            value, pixels = map(int, pair.split(":"))
            masks_of[value][row.mask] = pixels
    problems = [
        f"{_first(pairs)} is {size[0]:.0f} x {size[1]:.0f} (height x width), the image {size[2]:.0f} x {size[3]:.0f}"
        for size, pairs in sizes.items()
    ]
    unknown = sorted(value for value in masks_of if value >= len(classes) and value != ignore_index)
    for value in unknown:
        name, pixels = next(iter(masks_of[value].items()))
        more = len(masks_of[value]) - 1
        problems.append(
            f"value {value} in {pixels:,} pixels of {name!r}"
            + (f" and in {more:,} more masks ({sum(masks_of[value].values()):,} pixels)" if more else "")
            + f" is neither a class (0 to {len(classes) - 1}: {some(classes, 20)}) nor data.ignore_index "
            f"({ignore_index}): set data.ignore_index={value} if it means void, or add a name to data.classes"
        )
    if not problems and len(masks_of.keys() - {ignore_index}) < 2:
        problems.append(
            f"all masks together have only the values {sorted(masks_of)}: "
            f"with data.ignore_index={ignore_index} there are no two classes to learn"
        )
    return problems


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1:,} more)"


def _name(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)
