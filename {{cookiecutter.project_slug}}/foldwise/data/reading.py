"""From an item to the arrays that a network gets: read, scaled, cropped, augmented, fitted to a size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data.crops import random_crop
from foldwise.data.fields import Field, Item
from foldwise.data.images import ImageError, fit_image, read_mask, resize, resize_mask, to_unit
from foldwise.data.samples import Rows, Sample, Samples
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.tasks import find_task

Target = Callable[[int], np.ndarray]  # of an item, by its number


@dataclass(frozen=True)
class Reader:
    """Reads the items of a table, by number.

    Attributes:
        state: what `samples.fit` gave.
        scales: of each image field, the stored value that means 1.0; None or absent: by dtype.
        targets: of each target field, how to read it; empty in prediction.
        target_fields: what they are.
    """

    samples: Samples
    rows: Rows
    items: Sequence[Item]
    state: Mapping[str, Any]
    scales: Mapping[str, float | None] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    target_fields: Mapping[str, Field] = field(default_factory=dict)

    @cached_property  # asked for at each sample
    def fields(self) -> dict[str, Field]:
        """All fields of the samples that this reader gives."""
        own = {name: kind for name, kind in self.samples.fields.items() if self.rows.targets or not kind.train_only}
        return own | dict(self.target_fields)

    def files(self, index: int) -> list[Path]:
        return self.samples.files(self.rows, self.items[index])

    def read(self, index: int, rng: np.random.Generator | None = None) -> Sample:
        """The sample of an item at its stored size: images in [0, 1] as float32, or uint8.

        Raises:
            ImageError: a file cannot be used; the message has the item's id.
            Refusal: the reader gives other fields than it declares, or arrays of another kind.
        """
        item = self.items[index]
        try:
            sample = self.samples.read(self.rows, item, self.state, rng)
            for name, target in self.targets.items():
                if name not in sample:  # a reader may read its targets by itself
                    sample[name] = target(index)
        except ImageError as error:
            raise ImageError(f"{error} (id {item.id!r})") from error
        fields = self.fields
        wrong = [name for name in fields if name not in sample] + [name for name in sample if name not in fields]
        if wrong:
            raise Refusal(
                f"{type(self.samples).__name__}.read gives {', '.join(sample)} and its fields are "
                f"{', '.join(fields)}: what differs is {', '.join(wrong)}"
            )
        return {name: self._checked(name, kind, sample[name], item.id) for name, kind in fields.items()}

    def _checked(self, name: str, kind: Field, value: Any, id: str) -> Any:
        """The array of a field in the shape and dtype that its kind says."""
        if not kind.spatial:
            dtype = np.float32 if kind.kind == "values" else np.int64
            array = np.asarray(value)
            if array.dtype.kind not in ("iubf" if kind.kind == "values" else "iub"):
                raise Refusal(f"{type(self.samples).__name__}.read: {name} is {array.dtype} and not {dtype.__name__}")
            if kind.ragged and not array.ndim:
                raise Refusal(f"{type(self.samples).__name__}.read: {name} is ragged, so it must have a first axis")
            return array.astype(dtype, copy=False)
        if isinstance(value, list | tuple) and not value:
            raise Refusal(f"{type(self.samples).__name__}.read: {name} of id {id!r} is a stack without pictures")
        if isinstance(value, list | tuple) or value.ndim == (3 if kind.kind == "mask" else 4):
            return [self._picture(name, kind, picture) for picture in value]
        if kind.ragged:
            raise Refusal(f"{type(self.samples).__name__}.read: {name} is ragged, so it must be a list of pictures")
        return self._picture(name, kind, value)

    def _picture(self, name: str, kind: Field, picture: np.ndarray) -> np.ndarray:
        if picture.ndim != (2 if kind.kind == "mask" else 3):
            shape = "(H, W)" if kind.kind == "mask" else "(H, W, C)"
            raise Refusal(f"{type(self.samples).__name__}.read: {name} has the shape {picture.shape} and not {shape}")
        if kind.kind == "mask" and picture.dtype not in (np.uint8, np.uint16):
            raise Refusal(f"{type(self.samples).__name__}.read: {name} is {picture.dtype} and not uint8 or uint16")
        if kind.kind == "image":
            return to_unit(picture, self.scales.get(name))
        return picture.astype(np.float32, copy=False) if kind.kind == "map" else picture


def target_readers(tables: Mapping[str, Table]) -> tuple[dict[str, Target], dict[str, Field]]:
    """How the targets of outputs are read, and their fields, by the name of the target field.

    Args:
        tables: of items, by the target field of the output.
    """
    targets: dict[str, Target] = {}
    fields = {}
    for name, table in tables.items():
        fields[name] = find_task(table.task).field
        targets[name] = _MaskTarget(table) if table.target is None else _RowTarget(table.target)
    return targets, fields


@dataclass(frozen=True)
class _RowTarget:
    values: np.ndarray

    def __call__(self, index: int) -> np.ndarray:
        return self.values[index]


@dataclass(frozen=True)
class _MaskTarget:
    table: Table

    def __call__(self, index: int) -> np.ndarray:
        return read_mask(self.table.mask_path(index))


def crop_sample(
    sample: Sample, fields: Mapping[str, Field], size: Sequence[int], ignore_index: int, seed: int
) -> Sample:
    """A random crop of `size` of all spatial fields together, placed by the mask; see `random_crop`.

    Raises:
        Refusal: a stack, or fields of different sizes.
    """
    spatial = {name: sample[name] for name, kind in fields.items() if kind.spatial}
    stacks = [name for name, value in spatial.items() if isinstance(value, list)]
    sizes = {} if stacks else {name: value.shape[:2] for name, value in spatial.items()}
    if stacks or len(set(sizes.values())) > 1:
        raise Refusal(
            "data.fit=tiles cuts crops out of pictures of one size: "
            + (f"{', '.join(stacks)} are stacks" if stacks else ", ".join(f"{n} is {s}" for n, s in sizes.items()))
        )
    masks = [name for name, kind in fields.items() if kind.kind == "mask"]
    return sample | random_crop(spatial, masks, size, ignore_index, seed)


def fit_sample(
    sample: Sample, fields: Mapping[str, Field], size: Sequence[int] | None, fit: str
) -> dict[str, np.ndarray]:
    """The sample with its spatial fields at `size` (None: as they are) and in the order of a network.

    Images and maps become (C, H, W), masks (H, W) int64, stacks have N in front.
    """
    return {name: _fit_field(sample[name], kind, size, fit) for name, kind in fields.items()}


def _fit_field(value: Any, kind: Field, size: Sequence[int] | None, fit: str) -> np.ndarray:
    if not kind.spatial:
        return value
    if isinstance(value, list):
        return np.stack([_fit_field(picture, kind, size, fit) for picture in value])
    if kind.kind == "mask":
        return (value if size is None else resize_mask(value, size)).astype(np.int64)
    if size is not None:
        value = fit_image(value, size, fit) if kind.kind == "image" else resize(value, size)
    return np.ascontiguousarray(value.transpose(2, 0, 1))
