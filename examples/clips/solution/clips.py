"""A clip: frames in their order, of which training takes random ones, pooled by attention."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foldwise.data import samples
from foldwise.data.fields import Item
from foldwise.data.images import read_image
from foldwise.data.samples import Rows, Sample, group_items


class Samples(samples.Samples):
    """Frames of a `clip`, by their `number`: one of each equal segment, a random one in training, else the middle.

    Args:
        frames: segments.
    """

    columns = ("clip", "number")

    def __init__(self, mode: str = "stored", frames: int = 4) -> None:
        super().__init__(mode)
        self.frames = frames

    def items(self, rows: Rows) -> list[Item]:
        return group_items(rows, "clip", order="number")

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        edges = np.linspace(0, len(item.rows), self.frames + 1)
        shares = np.full(self.frames, 0.5) if rng is None else rng.random(self.frames)
        chosen = np.minimum(edges[:-1] + shares * np.diff(edges), len(item.rows) - 1).astype(int)
        files = self.files(rows, item)
        return {"image": [read_image(files[frame], self.mode) for frame in chosen]}
