"""Find problems of images and masks in a scan; one message per problem, not per image."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from foldwise.data.orientation import SIDEWAYS
from foldwise.data.problems import some


def file_problems(scan: pd.DataFrame, failures: Mapping[tuple[str, str], tuple[str, str]]) -> list[str]:
    """List files that cannot be read, given (file, problem) by (image, mask); files with one problem together."""
    files_of: dict[str, dict[str, None]] = defaultdict(dict)
    for key in dict.fromkeys(zip(scan["image"], scan["mask"], strict=True)):
        if key in failures:
            file, problem = failures[key]
            files_of[problem][file] = None
    return [_first(list(files)) + problem for problem, files in files_of.items()]


def image_problems(scan: pd.DataFrame, scale: float | None) -> list[str]:
    """List images that differ from most in channels or dtype, or have floats outside [0, 1].

    Those that could not be read have NaN.
    """
    problems: list[str] = []
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


def size_problems(scan: pd.DataFrame, exif: str | None) -> list[str]:
    """List masks with another size than their image."""
    sizes: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    read = scan[scan["dtype"].notna() & (scan["mask_height"] != 0)]  # 0: a missing mask
    for row in read.drop_duplicates(["image", "mask"]).itertuples():
        if (row.mask_height, row.mask_width) != (row.height, row.width):
            key = row.mask_height, row.mask_width, row.height, row.width, _lies_sideways(row)
            sizes[key].append(f"{row.mask} of {row.image}")
    return [
        f"{_first(pairs)} is {size[0]:.0f} x {size[1]:.0f} (height x width), the image {size[2]:.0f} x {size[3]:.0f}"
        + (TURNED[exif] if size[4] and size[:2] == size[3:1:-1] else "")
        for size, pairs in sizes.items()
    ]


def number_problems(
    scan: pd.DataFrame,
    classes: Sequence[str],
    ignore_index: int | None,
    mask_values: Mapping[int, int] | None = None,
    exif: str | None = None,
) -> list[str]:
    """List masks of class numbers with another size than their image or values outside the classes; refuse masks of
    one value only."""
    mapping = {value: value for value in [*range(len(classes)), ignore_index]} if mask_values is None else mask_values
    masks_of: dict[int, dict[str, int]] = defaultdict(dict)  # value -> {mask: pixels}
    existing = scan["dtype"].notna() & (scan["mask"] != "")
    for row in scan[existing].drop_duplicates(["image", "mask"]).itertuples():
        for pair in row.values.split():
            value, pixels = map(int, pair.split(":"))
            masks_of[value][row.mask] = pixels
    problems = size_problems(scan, exif)
    unknown = sorted(masks_of.keys() - mapping.keys())
    cure = propose_mask_values(set(masks_of), len(classes), ignore_index) if mask_values is None else ""
    for value in unknown if mask_values is None else []:
        name, pixels = next(iter(masks_of[value].items()))
        more = len(masks_of[value]) - 1
        problems.append(
            f"value {value} in {pixels:,} pixels of {name!r}"
            + (f" and in {more:,} more masks ({sum(masks_of[value].values()):,} pixels)" if more else "")
            + f" is neither a class (0 to {len(classes) - 1}: {some(classes, 20)}) nor data.ignore_index "
            f"({ignore_index}): set data.ignore_index={value} if it means void, or add a name to data.classes"
        )
    for value in unknown if mask_values is not None else []:
        problems.append(f"value {value} in {_first(list(masks_of[value]))} is not in data.mask_values: add its class")
    for value, number in ({} if mask_values is None else mask_values).items():
        if number >= len(classes) and number != ignore_index:
            problems.append(
                f"data.mask_values: {value} becomes {number}, which is neither a class (0 to {len(classes) - 1}) nor "
                f"data.ignore_index ({ignore_index})"
            )
    single = not problems and len({mapping[value] for value in masks_of} - {ignore_index}) < 2
    if single:
        problems.append(
            f"all masks together have only the values {sorted(masks_of)}: "
            f"with data.ignore_index={ignore_index} there are no two classes to learn"
        )
    return [*problems, cure] if cure and (unknown or single) else problems


TURNED = {
    "apply": ", turned by its EXIF orientation: with data.exif=ignore both have the same size",
    "ignore": ", and its EXIF orientation says to turn it: with data.exif=apply both have the same size",
    None: ", turned by its EXIF orientation",
}


def _lies_sideways(row: Any) -> bool:
    return any(number in SIDEWAYS for file, number in json.loads(row.turned).items() if file != row.mask)


def exif_problems(scan: pd.DataFrame) -> list[str]:
    """Refuse images and masks with an EXIF orientation while `data.exif` is null; propose a value, with its reason."""
    rows = scan[scan["dtype"].notna() & ~scan["turned"].isin(["{}"])].drop_duplicates(["image", "mask"])
    if rows.empty:
        return []
    turned = {file: number for text in rows["turned"] for file, number in json.loads(text).items()}
    sideways = [row for row in rows.itertuples() if _lies_sideways(row) and row.mask and row.height != row.width]
    upright = sum((row.mask_height, row.mask_width) == (row.height, row.width) for row in sideways)
    stored = sum((row.mask_width, row.mask_height) == (row.height, row.width) for row in sideways)
    named = some([f"{file} ({number})" for file, number in turned.items()], 3)
    advice = "exif: apply  to turn them upright, as viewers do, or  exif: ignore  to keep the pixels as stored"
    if stored > upright:
        advice = f"exif: ignore  (of {len(sideways):,} masks, {stored:,} have the size of the image as stored)"
    elif upright:
        advice = f"exif: apply  (of {len(sideways):,} masks, {upright:,} have the size of the image turned upright)"
    return [
        f"{len(turned):,} files have an EXIF orientation, such as {named}: write under the data settings "
        f"(configs/data):  {advice}"
    ]


def damage_notes(scan: pd.DataFrame) -> list[str]:
    """Note JPEGs that are damaged inside, with libjpeg's words."""
    texts = scan["damage"][scan["damage"].notna()]
    return describe_damage({file: what for text in texts for file, what in json.loads(text).items()})


def describe_damage(damage: Mapping[str, str]) -> list[str]:
    """Name damaged JPEGs by file; part of each is lost."""
    if not damage:
        return []
    named = some([f"{file} ({what})" for file, what in damage.items()], 20)
    return [
        f"{len(damage):,} JPEGs are damaged inside; part of each picture is lost, grey or of wrong colours: {named}"
    ]


def mask_notes(
    scan: pd.DataFrame, classes: int, ignore_index: int | None, mask_values: Mapping[int, int] | None
) -> list[str]:
    """Note that some masks may store class 1 as 255, which counts as `ignore_index` with two classes."""
    if mask_values is not None or classes != 2 or ignore_index != 255:
        return []
    values_of = [{int(pair.split(":")[0]) for pair in values.split()} for values in scan["values"]]
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


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1:,} more)"


def _name(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)
