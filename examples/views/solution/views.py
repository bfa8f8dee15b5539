"""Several pictures of one thing, as many as there are: pooled to one answer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foldwise.data import samples
from foldwise.data.fields import Field, Item
from foldwise.data.images import read_image
from foldwise.data.samples import Rows, Sample, group_items


class Samples(samples.Samples):
    """All pictures of a `thing`, which is what is predicted."""

    columns = ("thing",)
    fields = {"image": Field("image", ragged=True)}

    def items(self, rows: Rows) -> list[Item]:
        return group_items(rows, "thing")

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        return {"image": [read_image(path, self.mode) for path in self.files(rows, item)]}
