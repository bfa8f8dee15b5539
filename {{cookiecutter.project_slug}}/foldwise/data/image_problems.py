"""Problems of images and masks, from a scan of them; images that share a problem are one sentence."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from foldwise.data.problems import some


def image_problems(scan: pd.DataFrame, failures: Mapping[tuple[str, str], str], scale: float | None) -> list[str]:
    """Images that cannot be decoded, have other channels or another dtype than most, or float values beyond [0, 1].

    Args:
        scan: as of `scan_items`; NaN for images that could not be read.
        failures: why they could not, by (image, mask).
        scale: the declared value that means 1.0.
    """
    keys = dict.fromkeys(zip(scan["image"], scan["mask"], strict=True))
    problems = [failures[key] for key in keys if key in failures]
    read = scan[scan["dtype"].notna()].drop_duplicates("image")
    for column in ("channels", "dtype"):
        usual = read[column].mode().tolist()[:1]
        other = read[~read[column].isin(usual)]
        problems += [
            f"{_first(rows['image'].tolist())} has {column} {_name(value)}, most images have {_name(usual[0])}"
            + (" (mode: rgb or mode: gray makes them equal)" if column == "channels" else "")
            for value, rows in other.groupby(column, sort=False)
        ]
    if scale is None:
        beyond = read[(read["dtype"] == "float32") & ((read["maximum"] > 1) | (read["minimum"] < 0))]
        if len(beyond):
            problems.append(
                f"{_first(beyond['image'].tolist())} has values from {beyond['minimum'].min():.4g} to "
                f"{beyond['maximum'].max():.4g}: float images must be within 0 to 1, or data.scale must say which "
                "value means 1.0"
            )
    return problems


def mask_problems(scan: pd.DataFrame, classes: Sequence[str], ignore_index: int | None) -> list[str]:
    """Masks of another size than their image, with values of no class, or all of one value."""
    sizes: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    masks_of: dict[int, dict[str, int]] = defaultdict(dict)  # the pixels of each value in each mask
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
            f"with data.ignore_index={ignore_index} there is nothing to tell apart"
        )
    return problems


def _first(names: Sequence[str]) -> str:
    """The first name, and how many others share its problem."""
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1:,} more)"


def _name(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)
