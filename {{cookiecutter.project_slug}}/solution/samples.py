"""How the table's rows are read. `samples._target_` in configs/train.yaml selects the class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data import samples
from foldwise.data.fields import Field, Item
from foldwise.data.samples import Rows, Sample


class Samples(samples.Samples):
    """Reads one image per row, in training, validation, prediction, prepare.py and bundles alike."""

    # Extra columns of the table that `read` uses, such as ("age", "sex"); get them with rows["age"].
    columns: Sequence[str] = ()
    # What `read` returns. Other kinds: "values" (float), "codes" (int), "mask" and "map" (one value per pixel).
    fields: Mapping[str, Field] = {"image": Field("image")}

    def items(self, rows: Rows) -> list[Item]:
        """List what is predicted: one item per row. To predict per patient: group_items(rows, "patient")."""
        return [Item(id, (row,)) for row, id in enumerate(rows["id"])]

    def files(self, rows: Rows, item: Item) -> list[Path]:
        """List every file that `read` opens."""
        return [path for row in item.rows for path in rows.files(row)]

    def fit(self, rows: Rows, items: Sequence[Item]) -> dict[str, Any]:
        """Learn from the training items, such as a column's mean. Saved with the model and passed to `read`."""
        return {}

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        """Read an item as a dict of arrays; augmentation, resizing and normalisation follow.

        Args:
            state: returned by `fit`.
            rng: for random choices in training; None in validation and prediction.
        """
        return {"image": self.read_image(rows, item.rows[0], rng)}
