"""A reader for items of several pictures and metadata, all by names of columns; no code of your own.

samples:
  _target_: foldwise.data.units.Units
  mode: ${data.mode}
  unit: patient              # rows with the same value are one item
  order: frame               # a numeric column to sort its pictures by
  frames: 16                 # pictures to read of each; null: all
  augment: unit              # draw augmentation once for all pictures of an item; picture: for each
  view: side                 # a column that says what a picture shows, with pool: slots
  views: [left, right]
  numbers: [age, height]     # metadata
  categories: [sex, site]
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from foldwise.data.decoding import note_left_out
from foldwise.data.fields import Field, Item
from foldwise.data.images import ImageError, read_image
from foldwise.data.problems import TableError, some
from foldwise.data.samples import Rows, Sample, Samples, TableItems, group_items
from foldwise.errors import Refusal

AUGMENT = ("unit", "picture")
CODES = 64  # codes of a category; code 0 is "other": rare, unknown or empty


class Units(Samples):
    """Reads pictures and metadata of an item.

    Fields: `image`, a stack if there is a `unit`; `slot` (codes), the index in `views` of each picture; `numbers`
    (values), for each column its standardised value, 0 if empty, and 1 if empty else 0; `categories` (codes).

    Args:
        unit, order, frames, view, views: see the module. With `frames`, the sorted pictures are
            cut into that many equal segments: training reads a random picture of each, prediction the middle one.
        augment: "unit": random augmentation is drawn once for all pictures of an item; "picture": for each.
        numbers, categories: of an item with several pictures, the mean and the value of the first picture.
        rare: a value in fewer training items counts as "other".

    A picture that cannot be read is left out and listed, as long as the item has another one.
    """

    sets = 1  # of `frames` pictures, see `with_sets`

    def __init__(
        self,
        mode: str = "stored",
        unit: str | None = None,
        order: str | None = None,
        frames: int | None = None,
        view: str | None = None,
        views: Sequence[str] = (),
        augment: str = "unit",
        numbers: Sequence[str] = (),
        categories: Sequence[str] = (),
        rare: int = 5,
        crop: Mapping[str, Any] | None = None,
        channels: Sequence[str] = (),
    ) -> None:
        super().__init__(mode, crop, channels)
        needless = {"order": order, "frames": frames, "view": view}
        if unit is None and any(needless.values()):
            given = ", ".join(f"samples.{name}" for name, value in needless.items() if value)
            raise Refusal(f"{given} without samples.unit: name the column whose equal values are one item")
        if (view is None) != (not views):
            raise Refusal("samples.view and samples.views belong together: the column, and the list of its values")
        lists = {"views": views, "numbers": numbers, "categories": categories}
        texts = [
            f"samples.{name} is {value!r}: write [{value}]" for name, value in lists.items() if isinstance(value, str)
        ]
        if texts:
            raise Refusal("\n".join(texts))
        if frames is not None and not (type(frames) is int and frames >= 1):
            raise Refusal(f"samples.frames is {frames!r}; it must be a whole number from 1, or null for all")
        if augment not in AUGMENT:
            raise Refusal(f"samples.augment is {augment!r}; it must be one of {', '.join(AUGMENT)}")
        self.unit, self.order, self.frames, self.view, self.views = unit, order, frames, view, list(views)
        self.numbers, self.categories, self.rare = list(numbers), list(categories), rare
        columns = (unit, order, view, *numbers, *categories, *self.columns)
        self.columns = [name for name in dict.fromkeys(columns) if name is not None]
        self.fields = {"image": Field("image", ragged=unit is not None, separate=augment == "picture")}
        self.fields |= {"slot": Field("codes", ragged=True)} if view else {}
        self.fields |= {"numbers": Field("values")} if numbers else {}
        self.fields |= {"categories": Field("codes")} if categories else {}

    def with_sets(self, sets: int) -> Self:
        """A reader of so many times `frames` pictures: every `sets`-th is evenly spaced too (tta=frames)."""
        other = copy.copy(self)
        other.sets = sets
        return other

    def items(self, rows: Rows) -> list[Item]:
        return super().items(rows) if self.unit is None else group_items(rows, self.unit, self.order)

    def fit(self, rows: Rows, items: Sequence[Item]) -> dict[str, Any]:
        """Mean and std of the numbers, and the frequent values of the categories, over the items."""
        state: dict[str, Any] = {"numbers": {}, "categories": {}}
        for column in self.numbers:
            values = np.array([_mean(rows.numbers(column)[list(item.rows)]) for item in items])
            known = values[~np.isnan(values)]
            if not len(known):
                raise Refusal(f"{rows.source}: the column {column!r} is empty in the training items")
            state["numbers"][column] = [float(known.mean()), max(float(known.std()), 1e-6)]
        for column in self.categories:
            counts = Counter(_text(rows[column][item.rows[0]]) for item in items)
            frequent = [(-count, name) for name, count in counts.items() if count >= self.rare and name]
            state["categories"][column] = [name for _, name in sorted(frequent)[: CODES - 1]]
        return state

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        images, chosen = self._read_images(rows, self.choose(item, rng), item, rng)
        return {"image": images if self.unit else images[0]} | self.read_columns(rows, item, chosen, state)

    def choose(self, item: Item, rng: np.random.Generator | None) -> list[int]:
        """Choose the rows whose pictures are read."""
        return list(item.rows) if self.frames is None else choose_frames(item.rows, self.frames * self.sets, rng)

    def read_columns(self, rows: Rows, item: Item, chosen: Sequence[int], state: Mapping[str, Any]) -> Sample:
        """Read what is beside the pictures of the rows `chosen`."""
        sample: Sample = {}
        if self.view:
            sample["slot"] = [self._slot(rows, row) for row in chosen]
        if self.numbers:
            values = [_mean(rows.numbers(column)[list(item.rows)]) for column in self.numbers]
            scales = [state["numbers"][column] for column in self.numbers]
            known = [0.0 if np.isnan(x) else (x - mean) / std for x, (mean, std) in zip(values, scales, strict=True)]
            sample["numbers"] = [*known, *(float(np.isnan(value)) for value in values)]
        if self.categories:
            names = [(_text(rows[column][item.rows[0]]), state["categories"][column]) for column in self.categories]
            sample["categories"] = [1 + known.index(name) if name in known else 0 for name, known in names]
        return sample

    def _read_images(
        self, rows: Rows, chosen: Sequence[int], item: Item, rng: np.random.Generator | None
    ) -> tuple[list[np.ndarray], list[int]]:
        """Read the pictures of rows; also the rows, without those left out. If all are, the item's next one."""
        images: list[np.ndarray] = []
        read: list[int] = []
        errors: dict[int, ImageError] = {}
        for number, row in enumerate([*chosen, *(row for row in item.rows if row not in chosen)]):
            if number >= len(chosen) and images:
                break
            try:
                images.append(self.read_image(rows, row, rng))
                read.append(row)
            except ImageError as error:
                errors[row] = error
        if not images:
            raise next(iter(errors.values()))
        for row, problem in errors.items():
            note_left_out(rows.path(row), str(problem), item.id)
        lacking = self.sets - len(images)  # no set may be empty
        return images + images[-1:] * lacking, read + read[-1:] * lacking

    def _slot(self, rows: Rows, row: int) -> int:
        name = _text(rows[str(self.view)][row])
        if name not in self.views:
            raise Refusal(
                f"{rows.source}: {self.view} of id {rows['id'][row]!r} is {name!r}; samples.views has "
                f"{', '.join(self.views)}"
            )
        return self.views.index(name)


class Neighbours(Samples):
    """Reads a picture with those before and after it in the channels: t-1, t, t+1 (2.5D), for masks too.

    At the ends of a unit, the picture itself takes the place of a missing one.

    Args:
        unit, order: columns of the series and of the number in it.
        reach: pictures on each side.
    """

    def __init__(self, mode: str = "stored", unit: str = "unit", order: str = "order", reach: int = 1) -> None:
        super().__init__(mode)
        if type(reach) is not int or reach < 0:
            raise Refusal(f"samples.reach is {reach!r}; it must be a whole number from 0")
        self.unit, self.order, self.reach = unit, order, reach
        self.columns = [unit, order]

    def positions(self, rows: Rows) -> dict[tuple[str, int], int]:
        """The row of each (series, number)."""
        values = rows.numbers(self.order)
        bad = [f"{rows['id'][row]} has {values[row]}" for row in np.flatnonzero(values != np.round(values))]
        if bad:
            raise Refusal(f"{rows.source}: column {self.order!r} must have a whole number in each row: {some(bad)}")
        numbers = values.astype(int).tolist()
        return {key: row for row, key in enumerate(zip(map(str, rows[self.unit]), numbers, strict=True))}

    def items(self, rows: Rows) -> list[Item]:
        row_of = self.positions(rows)
        steps = [step for step in range(-self.reach, self.reach + 1) if step]
        found = [
            (row, *(row_of.get((series, number + step), row) for step in steps))
            for (series, number), row in row_of.items()
        ]
        if len(found) < len(rows):
            raise Refusal(f"{rows.source}: {len(rows) - len(found)} rows repeat a series and a number in it")
        return [Item(rows["id"][numbers[0]], numbers) for numbers in sorted(found)]

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        own, *others = (read_image(path, self.mode) for path in self.files(rows, item))
        return {"image": np.concatenate([*others[: self.reach], own, *others[self.reach :]], axis=2)}


def check_answers(items: TableItems) -> None:
    """Refuse items of `Units` whose rows have different targets."""
    target = items.source.target
    if not isinstance(items.samples, Units) or target is None:
        return
    answers = {item.id: target[list(item.rows)] for item in items.items}
    mixed = [id for id, rows in answers.items() if not np.array_equal(rows, rows[[0] * len(rows)], equal_nan=True)]
    if mixed:
        text = f"{len(mixed)} items have rows with different targets: {some(mixed)}; an item has one answer"
        raise TableError(items.source.path, [text])


def choose_frames(rows: Sequence[int], count: int, rng: np.random.Generator | None) -> list[int]:
    """Choose a row of each of `count` equal segments: a random one, or without `rng` the middle one; may repeat."""
    edges = np.linspace(0, len(rows), count + 1)
    shares = np.full(count, 0.5) if rng is None else rng.random(count)
    numbers = np.minimum(edges[:-1] + shares * np.diff(edges), len(rows) - 1).astype(int)
    return [rows[number] for number in numbers]


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)
