"""From samples to a batch: stacked, ragged fields padded, and small fields packed for the way to the device.

A worker hands over each tensor of a batch by itself, which takes longer than the few numbers in it: the values and the
codes of all fields travel as one tensor each (benchmarks/waist.py of the template).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from foldwise.data.fields import Field
from foldwise.errors import Refusal

Layout = tuple[tuple[str, tuple[int, ...]], ...]  # the fields of a packed tensor in their order, and their shapes


class Packed(NamedTuple):
    """A sample, or a batch of them with B in front, on its way; `unpack` gives the batch."""

    tensors: dict[str, Tensor]  # spatial and ragged fields
    values: Tensor  # (numbers of all fields of values,) float32
    codes: Tensor  # the same of codes, int64
    layouts: tuple[Layout, Layout]


def pack_sample(sample: Mapping[str, np.ndarray], fields: Mapping[str, Field]) -> Packed:
    """A sample with its small fields in one array of each dtype."""
    tensors = {
        name: torch.from_numpy(value)
        for name, value in sample.items()
        if name in fields and (fields[name].spatial or fields[name].ragged)
    }
    small: dict[str, dict[str, np.ndarray]] = {"values": {}, "codes": {}}
    for name, value in sample.items():
        if name not in tensors:
            # What is no field is a number that the machinery adds, such as the sample's weight.
            kind = fields[name].kind if name in fields else _kind(value)
            small[kind][name] = value
    values, values_layout = _flatten(small["values"], np.float32)
    codes, codes_layout = _flatten(small["codes"], np.int64)
    return Packed(tensors, values, codes, (values_layout, codes_layout))


def _flatten(small: Mapping[str, np.ndarray], dtype: type) -> tuple[Tensor, Layout]:
    arrays: dict[str, np.ndarray] = {name: np.asarray(value, dtype) for name, value in small.items()}
    flat = np.concatenate([np.zeros(0, dtype), *(array.ravel() for array in arrays.values())])
    return torch.from_numpy(flat), tuple((name, array.shape) for name, array in arrays.items())


def _kind(value: object) -> str:
    return "codes" if isinstance(value, int | np.integer) else "values"


def collate(samples: Sequence[Packed], fields: Mapping[str, Field]) -> Packed:
    """A batch of samples as `pack_sample` gives them.

    Raises:
        Refusal: arrays of a field differ in shape where they must not.
    """
    _check_shapes(samples, fields)
    tensors: dict[str, Tensor] = {}
    for name in samples[0].tensors:
        column = [sample.tensors[name] for sample in samples]
        if fields[name].ragged:
            length = max(len(tensor) for tensor in column)
            real = [torch.arange(length) < len(tensor) for tensor in column]
            tensors[f"{name}_valid"] = torch.stack(real)
            column = [_pad(tensor, length) for tensor in column]
        if fields[name].kind == "image" and len({tensor.dtype for tensor in column}) > 1:  # 8-bit images among others
            column = [unit_range(tensor) for tensor in column]
        tensors[name] = default_collate(column)  # in a worker it stacks into shared memory
    return Packed(
        tensors,
        default_collate([sample.values for sample in samples]),
        default_collate([sample.codes for sample in samples]),
        samples[0].layouts,
    )


def unit_range(image: Tensor) -> Tensor:
    """A uint8 image as float32 in [0, 1]; floats as they are."""
    return image if image.is_floating_point() else image.float() / 255


def unpack(batch: Packed) -> dict[str, Tensor]:
    """The batch by the names of its fields; small fields are views of what was packed."""
    result = dict(batch.tensors)
    for packed, layout in zip((batch.values, batch.codes), batch.layouts, strict=True):
        start = 0
        for name, shape in layout:
            stop = start + int(np.prod(shape, dtype=int))
            result[name] = packed[:, start:stop].reshape(len(packed), *shape)
            start = stop
    return result


def to_device(batch: Packed, device: torch.device) -> dict[str, Tensor]:
    """The batch on a device."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
    values, codes = (packed.to(device, non_blocking=True) for packed in (batch.values, batch.codes))
    return unpack(Packed(moved, values, codes, batch.layouts))


def _check_shapes(samples: Sequence[Packed], fields: Mapping[str, Field]) -> None:
    first, *others = map(_shapes, samples)
    for other in others:
        for name, shape in other.items():
            varies = name in fields and fields[name].ragged  # in its length
            if shape[varies:] != first[name][varies:]:
                rule = (
                    "only the first axis of a ragged field may vary"
                    if varies
                    else "a field with ragged=True may vary in its first axis"
                )
                raise Refusal(f"{name} has the shapes {first[name]} and {shape} in two samples of a batch: {rule}")


def _shapes(sample: Packed) -> dict[str, tuple[int, ...]]:
    tensors = {name: tuple(value.shape) for name, value in sample.tensors.items()}
    return tensors | {name: shape for layout in sample.layouts for name, shape in layout}


def start_worker(_: int) -> None:
    """For loaders: OpenCV would start a thread a core in every worker; torch has one there already."""
    import cv2

    cv2.setNumThreads(0)


def _pad(tensor: Tensor, length: int) -> Tensor:
    padding = tensor.new_zeros((length - len(tensor), *tensor.shape[1:]))
    return torch.cat([tensor, padding]) if len(padding) else tensor
