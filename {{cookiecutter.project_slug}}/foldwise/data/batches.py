"""From samples to a batch: stacked, ragged fields padded, small fields packed for the transfer.

To transfer a tensor takes a worker longer than to copy the few numbers in it: the values and the codes of all fields
travel as one tensor each (benchmarks/waist.py of the template).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from foldwise.data.fields import Field
from foldwise.errors import Refusal

Layout = tuple[tuple[str, tuple[int, ...]], ...]  # the fields of a packed tensor in their order, and their shapes


class Packed(NamedTuple):
    """A packed sample, or a batch of them with B in front; `unpack` gives the batch."""

    tensors: dict[str, Tensor]  # spatial and ragged fields
    values: Tensor  # (numbers of all fields of values,) float32
    codes: Tensor  # the same of codes, int64
    layouts: tuple[Layout, Layout]


def pack_sample(sample: Mapping[str, np.ndarray], fields: Mapping[str, Field]) -> Packed:
    """A sample with its small fields in one array of each dtype."""
    tensors: dict[str, Tensor] = {}
    small: dict[str, dict[str, Any]] = {"values": {}, "codes": {}}
    for name, value in sample.items():
        if name not in fields:  # a number that foldwise adds, such as the sample's weight
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
            tensors[f"{name}_valid"] = torch.stack([torch.arange(length) < len(tensor) for tensor in column])
            column = [
                torch.cat([tensor, tensor.new_zeros((length - len(tensor), *tensor.shape[1:]))]) for tensor in column
            ]
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
    for name, shape in first.items():
        ragged = name in fields and fields[name].ragged
        for other in others:
            if other[name][ragged:] != shape[ragged:]:
                may = "only the first axis of a ragged field may vary"
                rule = may if ragged else "a field with ragged=True may vary in its first axis"
                raise Refusal(f"{name} has the shapes {shape} and {other[name]} in two samples of a batch: {rule}")


def _shapes(sample: Packed) -> dict[str, tuple[int, ...]]:
    tensors = {name: tuple(value.shape) for name, value in sample.tensors.items()}
    return tensors | {name: shape for layout in sample.layouts for name, shape in layout}


def start_worker(_: int) -> None:
    """Keep OpenCV to one thread, as torch does it by itself: it would start a thread a core in every worker."""
    import cv2

    cv2.setNumThreads(0)
