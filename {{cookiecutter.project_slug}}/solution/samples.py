"""How an item of the table is read. `samples._target_` in configs/train.yaml names the class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data import samples
from foldwise.data.fields import Field, Item
from foldwise.data.images import read_image
from foldwise.data.samples import Rows, Sample


class Samples(samples.Samples):
    """One picture an item.

    Training, validation, prediction, prepare.py and a bundle all read through this class.
    """

    # Columns of the table that `read` needs beside the picture's, such as ("age", "sex"); read them as rows["age"].
    columns: Sequence[str] = ()
    # What `read` gives. Other kinds: "values" (numbers), "codes" (whole numbers), "mask" and "map" (a value a pixel).
    fields: Mapping[str, Field] = {"image": Field("image")}

    def items(self, rows: Rows) -> list[Item]:
        """What is predicted: each row. Several rows make one item with group_items(rows, "patient")."""
        return [Item(id, (row,)) for row, id in enumerate(rows["id"])]

    def files(self, rows: Rows, item: Item) -> list[Path]:
        """Every file that `read` opens."""
        return [rows.path(row) for row in item.rows]

    def fit(self, rows: Rows, items: Sequence[Item]) -> dict[str, Any]:
        """What reading must know of the training items, such as the mean of a column; saved with the model."""
        return {}

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        """The arrays of an item; augmentation, resizing and normalisation follow.

        Args:
            state: what `fit` gave.
            rng: for what is drawn in training; None in validation and prediction.
        """
        return {"image": read_image(rows.path(item.rows[0]), self.mode)}
