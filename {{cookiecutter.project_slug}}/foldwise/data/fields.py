"""Items (what is predicted) and fields (the arrays of an item's sample)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

FieldKind = Literal["image", "map", "mask", "masks", "values", "codes"]
SPATIAL = ("image", "map", "mask", "masks")
MASKS = ("mask", "masks")  # nearest pixel, `data.ignore_index` outside of the image


@dataclass(frozen=True)
class Field:
    """Kind of an array in a sample: decides how it is augmented, batched, mixed and tiled.

    Attributes:
        kind: "image" (normalised on the device), "map" (numbers per pixel), "mask" (class indices per pixel),
            "masks" (one mask per class: 0, 1 or numbers between), "values" (float32 of any shape) or "codes" (int64 of
            any shape). The first four are spatial: cropped, flipped and resized together, and passed to the network as
            (..., H, W).
        ragged: the first axis varies in length between samples. Batches are padded with zeros;
            `batch[f"{key}_valid"]`, (B, N) bool, marks the real entries.
        train_only: a target or another input of the loss: absent in prediction and bundles.
        separate: augmentation is drawn for each image of a stack, not once for the sample.
    """

    kind: FieldKind
    ragged: bool = False
    train_only: bool = False
    separate: bool = False

    @property
    def spatial(self) -> bool:
        return self.kind in SPATIAL


def seen_spatial(fields: Mapping[str, Field]) -> list[str]:
    """Names of the spatial fields that the network uses; TTA and tiles apply to them."""
    return [name for name, field in fields.items() if field.spatial and not field.train_only]


class Item(NamedTuple):
    """One thing to predict: one or more rows of the table; target, group, weight and fold come from the first row."""

    id: str
    rows: tuple[int, ...]
