"""Fields, of which a sample is made, and items, of which it is a sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

FieldKind = Literal["image", "map", "mask", "values", "codes"]
SPATIAL = ("image", "map", "mask")


@dataclass(frozen=True)
class Field:
    """Kind of an array of a sample, by which it is augmented, mixed, cut into tiles, and moved to the device.

    Attributes:
        kind: "image" (pixels, normalised on the device), "map" (numbers a pixel), "mask" (class numbers a pixel),
            "values" (float32 of any shape) or "codes" (int64 of any shape). The first three are spatial: they are
            cropped, flipped and resized together, and reach the network as (..., H, W).
        ragged: the length of the first axis varies between samples. A batch is padded with zeros, and
            `batch[f"{key}_valid"]`, (B, N) bool, says what is real.
        train_only: a target, or what only the loss needs: absent in prediction, bundle and export.
    """

    kind: FieldKind
    ragged: bool = False
    train_only: bool = False

    @property
    def spatial(self) -> bool:
        return self.kind in SPATIAL


def seen_spatial(fields: Mapping[str, Field]) -> list[str]:
    """Names of the spatial fields that a network sees: those of views and tiles."""
    return [name for name, field in fields.items() if field.spatial and not field.train_only]


class Item(NamedTuple):
    """One thing to predict: one or more rows of the table. Its target, group, weight and fold are the first row's."""

    id: str
    rows: tuple[int, ...]
