"""Find problems of images in a scan; one message per problem, not per image."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from foldwise.data.orientation import SIDEWAYS
from foldwise.data.problems import first_of, some

LEFT_OUT = "left out"  # in place of damage: of pictures that readers of several pictures leave out


def file_problems(scan: pd.DataFrame, failures: Mapping[tuple[str, str], tuple[str, str]]) -> list[str]:
    """List files that cannot be read, given (file, problem) by (image, mask); files with one problem together."""
    files_of: dict[str, dict[str, None]] = defaultdict(dict)
    for key in dict.fromkeys(zip(scan["image"], scan["mask"], strict=True)):
        if key in failures:
            file, problem = failures[key]
            files_of[problem][file] = None
    return [first_of(list(files)) + problem for problem, files in files_of.items()]


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
            f"{first_of(rows['image'].tolist())} has {column} {_name(value)}, most images have {_name(usual[0])}"
            + (" (data.mode=rgb or data.mode=gray makes them equal)" if column == "channels" else "")
            for value, rows in other.groupby(column, sort=False)
        ]
    if scale is None:
        outside = read[(read["dtype"] == "float32") & ((read["maximum"] > 1) | (read["minimum"] < 0))]
        if len(outside):
            problems.append(
                f"{first_of(outside['image'].tolist())} has values from {outside['minimum'].min():.4g} to "
                f"{outside['maximum'].max():.4g}; float images must be within 0 to 1: set data.scale to the value that "
                "means 1.0"
            )
    return problems


def lies_sideways(row: Any) -> bool:
    """Whether an image of a scan's row, not its mask, has an EXIF orientation that swaps height and width."""
    return any(number in SIDEWAYS for file, number in json.loads(row.turned).items() if file != row.mask)


def exif_problems(scan: pd.DataFrame) -> list[str]:
    """Refuse images and masks with an EXIF orientation while `data.exif` is null; propose a value, with its reason."""
    rows = scan[scan["dtype"].notna() & ~scan["turned"].isin(["{}"])].drop_duplicates(["image", "mask"])
    if rows.empty:
        return []
    turned = {file: number for text in rows["turned"] for file, number in json.loads(text).items()}
    sideways = [row for row in rows.itertuples() if lies_sideways(row) and row.mask and row.height != row.width]
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
    """Note JPEGs that are damaged inside, with libjpeg's words, and pictures that are left out of their items."""
    texts = scan["damage"][scan["damage"].notna()]
    found = {file: what for text in texts for file, what in json.loads(text).items()}
    left_out = [file for file, what in found.items() if what == LEFT_OUT]
    return describe_damage({file: what for file, what in found.items() if what != LEFT_OUT}) + describe_left_out(
        left_out
    )


def describe_left_out(names: Sequence[str]) -> list[str]:
    """Name the pictures that readers of several pictures leave out."""
    if not names:
        return []
    return [f"{len(names):,} pictures cannot be read and are left out of their items: {some(names)}"]


def describe_damage(damage: Mapping[str, str]) -> list[str]:
    """Name damaged JPEGs by file; part of each is lost."""
    if not damage:
        return []
    named = some([f"{file} ({what})" for file, what in damage.items()], 20)
    return [
        f"{len(damage):,} JPEGs are damaged inside; part of each picture is lost, grey or of wrong colours: {named}"
    ]


def _name(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)
