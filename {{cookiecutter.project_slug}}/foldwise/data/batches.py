"""Collate samples to batches: stack fields, pad ragged ones, pack small ones for the transfer.

A worker needs longer to transfer a small tensor than to copy its numbers. So the values of all fields are packed into
one tensor, and the codes into another (benchmarks/waist.py of the template).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from foldwise.data.fields import Field
from foldwise.errors import Refusal

Layout = tuple[tuple[str, tuple[int, ...]], ...]  # (field, shape) in the order of a packed tensor


class Packed(NamedTuple):
    """A packed sample, or a batch of them with B in front; see `unpack`."""

    tensors: dict[str, Tensor]  # spatial and ragged fields
    values: Tensor  # all values fields, concatenated, float32
    codes: Tensor  # all codes fields, concatenated, int64
    layouts: tuple[Layout, Layout]  # of values and codes


def pack_sample(sample: Mapping[str, np.ndarray], fields: Mapping[str, Field]) -> Packed:
    """Pack the small fields of a sample into one tensor per dtype."""
    tensors: dict[str, Tensor] = {}
    small: dict[str, dict[str, Any]] = {"values": {}, "codes": {}}
    for name, value in sample.items():
        if name not in fields:  # added by the dataset: weight and row
            small["codes" if isinstance(value, int | np.integer) else "values"][name] = value
        elif fields[name].spatial or fields[name].ragged:
            tensors[name] = torch.from_numpy(value)
        else:
            small[fields[name].kind][name] = value
    values, values_layout = _flatten(small["values"], np.float32)
    codes, codes_layout = _flatten(small["codes"], np.int64)
    return Packed(tensors, values, codes, (values_layout, codes_layout))


def _flatten(small: Mapping[str, Any], dtype: type) -> tuple[Tensor, Layout]:
    arrays: dict[str, np.ndarray] = {name: np.asarray(value, dtype) for name, value in small.items()}
    flat = np.concatenate([np.zeros(0, dtype), *(array.ravel() for array in arrays.values())])
    return torch.from_numpy(flat), tuple((name, array.shape) for name, array in arrays.items())


def collate(samples: Sequence[Packed], fields: Mapping[str, Field]) -> Packed:
    """Collate packed samples; refuses arrays of a field that differ in shape (ragged: beyond the first axis)."""
    _check_shapes(samples, fields)
    tensors: dict[str, Tensor] = {}
    for name in samples[0].tensors:
        column = [sample.tensors[name] for sample in samples]
        if fields[name].ragged:
            length = max(len(tensor) for tensor in column)
            tensors[f"{name}_valid"] = torch.stack([torch.arange(length) < len(tensor) for tensor in column])
            column = [
                torch.cat([tensor, tensor.new_zeros((length - len(tensor), *tensor.shape[1:]))]) for tensor in column
            ]
        if fields[name].kind == "image" and len({tensor.dtype for tensor in column}) > 1:  # 8-bit and float images
            column = [unit_range(tensor) for tensor in column]
        tensors[name] = default_collate(column)  # stacks into shared memory in a worker
    return Packed(
        tensors,
        default_collate([sample.values for sample in samples]),
        default_collate([sample.codes for sample in samples]),
        samples[0].layouts,
    )


def unit_range(image: Tensor) -> Tensor:
    """Scale a uint8 image to float32 in [0, 1]; return float images unchanged."""
    return image if image.is_floating_point() else image.float() / 255


def unpack(batch: Packed) -> dict[str, Tensor]:
    """Return the tensors by field name; small fields are views of the packed tensors."""
    result = dict(batch.tensors)
    for packed, layout in zip((batch.values, batch.codes), batch.layouts, strict=True):
        start = 0
        for name, shape in layout:
            stop = start + int(np.prod(shape, dtype=int))
            result[name] = packed[:, start:stop].reshape(len(packed), *shape)
            start = stop
    return result


def to_device(batch: Packed, device: torch.device) -> dict[str, Tensor]:
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
    values, codes = (packed.to(device, non_blocking=True) for packed in (batch.values, batch.codes))
    return unpack(Packed(moved, values, codes, batch.layouts))


def _check_shapes(samples: Sequence[Packed], fields: Mapping[str, Field]) -> None:
    first, *others = map(_shapes, samples)
    for name, shape in first.items():
        ragged = name in fields and fields[name].ragged
        for other in others:
            if other[name][ragged:] != shape[ragged:]:
                ragged_rule = "only the first axis of a ragged field may vary"
                rule = ragged_rule if ragged else "a field with ragged=True may vary in its first axis"
                raise Refusal(f"{name} has the shapes {shape} and {other[name]} in two samples of a batch: {rule}")


def _shapes(sample: Packed) -> dict[str, tuple[int, ...]]:
    tensors = {name: tuple(value.shape) for name, value in sample.tensors.items()}
    return tensors | {name: shape for layout in sample.layouts for name, shape in layout}


def start_worker(_: int) -> None:
    """Limit OpenCV to one thread in a loader worker (torch limits itself); by default it uses every core."""
    import cv2

    cv2.setNumThreads(0)
