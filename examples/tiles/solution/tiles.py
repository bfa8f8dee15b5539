"""Multiple-instance learning: a large picture is a bag of its tiles, of which few may matter."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foldwise.data import samples
from foldwise.data.fields import Field, Item
from foldwise.data.images import read_image
from foldwise.data.samples import Rows, Sample


class Samples(samples.Samples):
    """The tiles of a picture that have the most contrast, at its own resolution.

    Args:
        side: of a tile, in pixels.
        most: tiles of a picture; in training a random half of them.
    """

    fields = {"image": Field("image", ragged=True)}

    def __init__(self, mode: str = "stored", side: int = 32, most: int = 16) -> None:
        super().__init__(mode)
        self.side, self.most = side, most

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        picture = read_image(rows.path(item.rows[0]), self.mode)
        gaps = [-length % self.side for length in picture.shape[:2]]
        picture = np.pad(picture, ((0, gaps[0]), (0, gaps[1]), (0, 0)), mode="edge")
        height, width, channels = picture.shape
        cut = picture.reshape(height // self.side, self.side, width // self.side, self.side, channels)
        tiles = cut.transpose(0, 2, 1, 3, 4).reshape(-1, self.side, self.side, channels)
        best = np.argsort(-tiles.reshape(len(tiles), -1).std(axis=1), kind="stable")[: self.most]
        if rng is not None:
            best = rng.permutation(best)[: max(1, len(best) // 2)]
        return {"image": [tiles[tile] for tile in best]}
