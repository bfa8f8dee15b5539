"""Cut an object out of its picture, by columns of the table.

samples:
  crop:
    box: [x0, y0, x1, y1]      # columns, in pixels; an empty cell: no box, and the whole picture is read
    shares: false              # true: the columns are shares of the picture's width and height
    margin: 0.1                # added on each side, as a share of the box's sides
    square: true               # extend the shorter side, within the picture
    jitter: 0.05               # in training, each edge moves by up to this share of the side

Several boxes of a picture, such as those of two detectors, have names, and in training come by chance:

    box: {body: [x0, y0, x1, y1], fin: [fx0, fy0, fx1, fy1]}      # prediction reads the first that is there
    mix: {body: 0.6, fin: 0.3, whole: 0.1}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foldwise.data.images import ImageError
from foldwise.data.problems import TableError, some
from foldwise.errors import Refusal
from foldwise.files import is_number, read_json

if TYPE_CHECKING:
    from foldwise.data.samples import Rows, TableItems

WHOLE = "whole"  # the name of the whole picture in `mix`
# Columns of the tables that tools/crop.py writes, and what their origin says.
BOX, SCORE, SCORE_MAP, FOLD, MADE_BY = ("x0", "y0", "x1", "y1"), "box_score", "score_map", "fold", "tools/crop.py"


@dataclass(frozen=True)
class Crop:
    """How a picture is cut; see the module for the settings."""

    box: Sequence[str] | Mapping[str, Sequence[str]]
    shares: bool = False
    margin: float = 0.0
    square: bool = False
    jitter: float = 0.0
    mix: Mapping[str, float] | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Crop":
        known = [each.name for each in fields(cls)]
        named = isinstance(settings, Mapping)
        unknown = sorted(set(settings) - set(known)) if named else []
        if not named or unknown or not settings.get("box"):
            what = f"has {', '.join(unknown)}" if unknown else "has no box" if named else f"is {settings!r}"
            raise Refusal(f"samples.crop {what}; it takes {', '.join(known)}, such as box: [x0, y0, x1, y1]")
        crop = cls(**settings)
        problems = crop._problems()
        if problems:
            raise Refusal("\n".join(problems))
        return crop

    def _problems(self) -> list[str]:
        problems = [
            f"samples.crop.box {name} is {columns}: name four columns, of the left, top, right and bottom edge"
            for name, columns in self.boxes.items()
            if isinstance(columns, str) or not isinstance(columns, Sequence) or len(columns) != 4
        ]
        problems += [
            f"samples.crop.{key} is {value!r}; it must be true or false"
            for key, value in {"shares": self.shares, "square": self.square}.items()
            if not isinstance(value, bool)
        ]
        problems += [
            f"samples.crop.{key} is {value!r}; it must be a number from 0 to 1"
            for key, value in {"margin": self.margin, "jitter": self.jitter}.items()
            if not (is_number(value) and 0 <= value <= 1)
        ]
        names = [*self.boxes, WHOLE]
        chances = list(self.mix.values()) if isinstance(self.mix, Mapping) else []
        if self.mix is not None and not (
            set(self.mix if chances else ()) <= set(names)
            and all(is_number(x) and x >= 0 for x in chances)
            and any(chances)
        ):
            problems.append(f"samples.crop.mix must give chances for {', '.join(names)}, one of them above 0")
        return problems

    @cached_property
    def boxes(self) -> dict[str, Sequence[str]]:
        return dict(self.box) if isinstance(self.box, Mapping) else {"box": self.box}

    @cached_property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for columns in self.boxes.values() for column in columns))

    def check(self, rows: "Rows") -> None:
        """Refuse incomplete boxes, boxes without area, and shares for pixels, all at once."""
        problems = []
        for name, columns in self.boxes.items():
            values = np.stack([rows.numbers(column) for column in columns], axis=1)
            empty = np.isnan(values)
            kinds = {
                "has some of its four edges": empty.any(axis=1) & ~empty.all(axis=1),
                "has no area (left, top, right, bottom)": (values[:, 0] >= values[:, 2])
                | (values[:, 1] >= values[:, 3]),
            }
            for what, bad in kinds.items():
                ids = [str(rows["id"][row]) for row in np.flatnonzero(bad)]
                problems += [f"the {name} {', '.join(columns)} {what}: ids {some(ids)}"] if ids else []
            known = values[~empty.any(axis=1)]
            if len(known) and self.shares and known.max() > 1.5:
                problems.append(f"{', '.join(columns)} go up to {known.max():g}, so they are no shares: shares: false")
            if len(known) and not self.shares and known.max() <= 1.5:
                problems.append(f"{', '.join(columns)} are within 0 to 1, so they seem to be shares: shares: true")
        if problems:
            raise TableError(rows.source, problems)

    def cut(self, image: np.ndarray, rows: "Rows", row: int, rng: np.random.Generator | None) -> np.ndarray:
        """Cut an image (H, W, C) by a box of its row; without a box it stays whole."""
        window = self.window(image.shape[:2], rows, row, rng)
        if window is None:
            return image
        left, top, right, bottom = window
        return np.ascontiguousarray(image[top:bottom, left:right])

    def window(
        self, size: Sequence[int], rows: "Rows", row: int, rng: np.random.Generator | None
    ) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom pixel of what is cut out of a picture of (height, width); None: all of it."""
        found = {name: np.array([rows.numbers(c)[row] for c in columns]) for name, columns in self.boxes.items()}
        found = {name: box for name, box in found.items() if not np.isnan(box).any()}
        box = next(iter(found.values()), None)
        if rng is not None and self.mix is not None:
            chances = np.array([self.mix.get(name, 0.0) for name in (*found, WHOLE)])
            if chances.any():
                box = [*found.values(), None][rng.choice(len(chances), p=chances / chances.sum())]
        if box is None:
            return None
        height, width = size
        if self.shares:
            box = box * [width, height, width, height]
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            edges = ", ".join(f"{edge:g}" for edge in box)
            path = rows.path(row)
            raise ImageError(f"{path}: the box {edges} lies outside of the picture of {width} x {height} pixels")
        sides = np.array([box[2] - box[0], box[3] - box[1]])
        if rng is not None and self.jitter:
            box = box + rng.uniform(-self.jitter, self.jitter, 4) * np.tile(sides, 2)
        box = box + self.margin * np.array([-sides[0], -sides[1], sides[0], sides[1]])
        if self.square:
            half = max(box[2] - box[0], box[3] - box[1]) / 2
            middle = (box[:2] + box[2:]) / 2
            box = np.concatenate([middle - half, middle + half])
        (left, right), (top, bottom) = (
            _within(box[at], box[at + 2], side, self.square) for at, side in enumerate((width, height))
        )
        return left, top, right, bottom


def origin_path(table: Path) -> Path:
    """The JSON file beside a table of boxes that says which run found them."""
    return table.with_suffix(".json")


def read_origin(table: Path) -> dict[str, Any] | None:
    """What that file says; None if the boxes are not those of tools/crop.py."""
    path = origin_path(table)
    origin = read_json(path) if path.is_file() else None
    return origin if isinstance(origin, dict) and origin.get("created_by") == MADE_BY else None


def check_boxes(items: "TableItems", fold: str | None) -> None:
    """Refuse masks beside cropped pictures, pictures that folds could split, and found boxes and maps in other folds.

    Args:
        fold: `data.columns.fold`.
    """
    table, samples = items.source, items.samples
    if (samples.crop is not None or samples.channels) and read_origin(table.path) and fold != FOLD:
        raise Refusal(
            f"the boxes of {table.path} come from models that had not seen the fold of their picture. In other folds "
            f"they would leak labels: set data.columns.fold={FOLD}"
        )
    if samples.crop is None:
        return
    if "mask" in table.frame:
        raise Refusal("samples.crop cuts pictures and not their masks: train masks on whole pictures")
    holder = next((name for name in ("fold", "group") if name in table.frame), "id")
    shared = table.frame[holder].groupby(table.frame["image"]).nunique()
    split = shared.index[shared > 1].tolist()
    if split and holder == "fold":
        raise Refusal(f"{len(split)} pictures have boxes in several folds of the column: {some(split)}")
    if split:
        raise Refusal(
            f"{len(split)} pictures have several boxes, and folds could split them: {some(split)}. Name a column in "
            "data.columns.group that holds the rows of a picture together, such as the column of the images"
        )


def _within(start: float, stop: float, side: int, move: bool) -> tuple[int, int]:
    """Round an interval to pixels within 0 to `side`, one at least; with `move` it keeps its length if it can."""
    if move:
        shift = max(0.0, -start) - max(0.0, stop - side) if stop - start <= side else 0.0
        start, stop = start + shift, stop + shift
    first = int(np.clip(np.floor(start + 1e-6), 0, side - 1))
    return first, int(np.clip(np.ceil(stop - 1e-6), first + 1, side))
