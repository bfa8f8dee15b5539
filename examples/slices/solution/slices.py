"""2.5D: a slice with its neighbours in the channels, found by columns or by the names of the files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data import samples
from foldwise.data.fields import Item
from foldwise.data.images import read_image
from foldwise.data.samples import Rows, Sample


class Slices(samples.Samples):
    """Slices t-1, t and t+1 of a series; at its ends the slice itself stands for what is not there.

    Args:
        reach: slices on each side.
    """

    columns: Sequence[str] = ("series", "number")

    def __init__(self, mode: str = "stored", reach: int = 1) -> None:
        super().__init__(mode)
        self.reach = reach

    def places(self, rows: Rows) -> dict[tuple[str, int], int]:
        """The row of each (series, number)."""
        numbers = rows.numbers("number").astype(int)
        return {
            (str(series), int(number)): row
            for row, (series, number) in enumerate(zip(rows["series"], numbers, strict=True))
        }

    def items(self, rows: Rows) -> list[Item]:
        row_of = self.places(rows)
        found = []
        for (series, number), row in row_of.items():
            steps = (step for step in range(-self.reach, self.reach + 1) if step)
            others = tuple(row_of.get((series, number + step), row) for step in steps)
            found.append((row, Item(rows["id"][row], (row, *others))))
        return [item for _, item in sorted(found)]

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        own, *others = (read_image(path, self.mode) for path in self.files(rows, item))
        stack = [*others[: self.reach], own, *others[self.reach :]]
        return {"image": np.concatenate(stack, axis=2)}


class SlicesByName(Slices):
    """As `Slices`, for files such as p12_007.png: series p12, slice 7."""

    columns = ()

    def places(self, rows: Rows) -> dict[tuple[str, int], int]:
        found = {}
        for row, name in enumerate(rows["image"]):
            match = re.fullmatch(r"(.+)_(\d+)", Path(name).stem)
            if match is None:
                raise ValueError(f"{name} has no number of a slice, as in p12_007.png")
            found[match[1], int(match[2])] = row
        return found
