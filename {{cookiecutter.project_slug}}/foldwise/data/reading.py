"""Read an item: check and scale its arrays, and fit them to the network's image size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data.fields import Field, Item
from foldwise.data.images import ImageError, fit_image, resize, resize_mask, to_unit
from foldwise.data.orientation import oriented
from foldwise.data.samples import Rows, Sample, Samples
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.tasks import find_task


@dataclass(frozen=True)
class Reader:
    """Reads the items of a table by index.

    Attributes:
        state: returned by `samples.fit`.
        scales: the stored value that means 1.0, by image field; None or absent: by dtype.
        targets: item tables by the target field they provide; empty in prediction. Fields that `samples` declares are
            read by `samples` instead.
    """

    samples: Samples
    rows: Rows
    items: Sequence[Item]
    state: Mapping[str, Any]
    scales: Mapping[str, float | None] = field(default_factory=dict)
    targets: Mapping[str, Table] = field(default_factory=dict)

    @cached_property  # used for every sample
    def fields(self) -> dict[str, Field]:
        declared = self.samples.fields
        fields = {name: kind for name, kind in declared.items() if self.rows.targets or not kind.train_only}
        targets = target_fields(self.targets)
        return fields | {name: kind for name, kind in targets.items() if name not in declared}

    def files(self, index: int) -> list[Path]:
        return self.samples.files(self.rows, self.items[index])

    def read(self, index: int, rng: np.random.Generator | None = None) -> Sample:
        """Read an item at its stored size, images as float32 in [0, 1] or uint8; refuses undeclared arrays."""
        item, fields = self.items[index], self.fields
        try:
            with oriented(self.rows.exif):
                sample = self.samples.read(self.rows, item, self.state, rng)
            for name, table in self.targets.items():
                if name not in sample and name not in self.samples.fields:
                    sample[name] = self._target(table, index, sample)
        except ImageError as error:
            raise ImageError(f"{error} (id {item.id!r})") from error
        wrong = [name for name in fields if name not in sample] + [name for name in sample if name not in fields]
        if wrong:
            raise Refusal(
                f"{type(self.samples).__name__}.read returns {', '.join(sample)}, but its fields are "
                f"{', '.join(fields)}; the difference is {', '.join(wrong)}"
            )
        return {name: self._checked(name, kind, sample[name], item.id) for name, kind in fields.items()}

    def _target(self, table: Table, index: int, sample: Sample) -> np.ndarray:
        """Targets (C,) or a mask (H, W); a missing mask has the size of the first image."""
        if table.target is not None:
            return table.target[index]
        if table.missing is None or table.known[index]:
            return channels_last(table.read_mask(index))
        first = next(sample[name] for name, kind in self.samples.fields.items() if kind.spatial)
        image = first[0] if isinstance(first, list | tuple) or first.ndim == 4 else first
        return np.full(image.shape[:2], table.missing, np.uint16)

    def _checked(self, name: str, kind: Field, value: Any, id: str) -> Any:
        if not kind.spatial:
            dtype, allowed = (np.float32, "iubf") if kind.kind == "values" else (np.int64, "iub")
            array = np.asarray(value)
            if array.dtype.kind not in allowed:
                raise self._refusal(name, f"is {array.dtype}, not {dtype.__name__}")
            if kind.ragged and not array.ndim:
                raise self._refusal(name, "is ragged, so it must have a first axis")
            return array.astype(dtype, copy=False)
        if isinstance(value, list | tuple) and not value:
            raise self._refusal(name, f"of id {id!r} is an empty stack")
        if isinstance(value, list | tuple) or value.ndim == (3 if kind.kind == "mask" else 4):
            return [self._checked_image(name, kind, image) for image in value]
        if kind.ragged:
            raise self._refusal(name, "is ragged, so it must be a list of images")
        return self._checked_image(name, kind, value)

    def _checked_image(self, name: str, kind: Field, image: np.ndarray) -> np.ndarray:
        if image.ndim != (2 if kind.kind == "mask" else 3):
            shape = "(H, W)" if kind.kind == "mask" else "(H, W, C)"
            raise self._refusal(name, f"has the shape {image.shape}, not {shape}")
        allowed = {"mask": ("uint8", "uint16"), "masks": ("uint8", "uint16", "float32")}.get(kind.kind)
        if allowed and image.dtype not in allowed:
            raise self._refusal(name, f"is {image.dtype}, not {' or '.join(allowed)}")
        if kind.kind == "image":
            return to_unit(image, self.scales.get(name))
        return image.astype(np.float32, copy=False) if kind.kind == "map" else image

    def _refusal(self, name: str, problem: str) -> Refusal:
        return Refusal(f"{type(self.samples).__name__}.read: {name} {problem}")


def target_fields(tables: Mapping[str, Table]) -> dict[str, Field]:
    return {name: find_task(table.task).field for name, table in tables.items()}


def channels_last(mask: np.ndarray) -> np.ndarray:
    """Move the classes of masks (C, H, W) last, as in a sample; a mask (H, W) stays."""
    return np.moveaxis(mask, 0, -1) if mask.ndim == 3 else mask


def fit_sample(
    sample: Sample, fields: Mapping[str, Field], size: Sequence[int] | None, fit: str
) -> dict[str, np.ndarray]:
    """Resize the spatial fields to `size` (None keeps theirs) and move channels first.

    Images, maps and masks per class become (C, H, W), masks (H, W) int64; stacks have N in front.
    """
    return {name: _fit_field(sample[name], kind, size, fit) for name, kind in fields.items()}


def _fit_field(value: Any, kind: Field, size: Sequence[int] | None, fit: str) -> np.ndarray:
    if not kind.spatial:
        return value
    if isinstance(value, list):
        return np.stack([_fit_field(image, kind, size, fit) for image in value])
    if kind.kind == "mask":
        return (value if size is None else resize_mask(value, size)).astype(np.int64)
    if size is not None and kind.kind == "masks":
        value = resize_mask(value, size)
    elif size is not None:
        value = fit_image(value, size, fit) if kind.kind == "image" else resize(value, size)
    return np.ascontiguousarray(value.transpose(2, 0, 1))
