"""Random crops of images with masks, placed so that rare classes are seen more often than they occur."""

from collections.abc import Mapping, Sequence

import numpy as np

from foldwise.data.fields import Field
from foldwise.data.samples import Sample
from foldwise.errors import Refusal

# The share of crops that are placed on a pixel of a class drawn among those in the image, the rarest as likely as the
# most common. nnU-Net places a third of its crops so (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
PLACED = 0.5


def crop_sample(
    sample: Sample, fields: Mapping[str, Field], size: Sequence[int], ignore_index: int, seed: int
) -> Sample:
    """Cut one random crop of `size` (height, width) out of all spatial fields together, the same for the same seed.

    The first mask places the crop. Where an image is smaller than the crop, it is mirrored at its border, as in tiled
    prediction, and masks (uint8 or uint16) get `ignore_index` there.

    Raises:
        Refusal: a stack, or fields of different sizes.
    """
    spatial = {name: sample[name] for name, kind in fields.items() if kind.spatial}
    masks = [name for name, kind in fields.items() if kind.kind == "mask"]
    stacks = [name for name, value in spatial.items() if isinstance(value, list)]
    if stacks:
        raise Refusal(f"data.fit=tiles cuts crops out of single images: {', '.join(stacks)} are stacks")
    sizes = {name: value.shape[:2] for name, value in spatial.items()}
    if len(set(sizes.values())) > 1:
        differ = ", ".join(f"{name} is {shape}" for name, shape in sizes.items())
        raise Refusal(f"data.fit=tiles cuts crops out of images of one size: {differ}")
    # A stream of its own: the augmentation that follows draws from the same seed.
    rng = np.random.default_rng([seed, 1])
    shape = next(iter(sizes.values()))
    top, left = _place(spatial[masks[0]], size, ignore_index, rng) if masks else _anywhere(shape, size, rng)
    missing = [(max(0, gap) // 2, max(0, gap) - max(0, gap) // 2) for gap in np.subtract(size, shape).tolist()]
    return sample | {
        name: _pad(array[top : top + size[0], left : left + size[1]], missing, ignore_index if name in masks else None)
        for name, array in spatial.items()
    }


def _pad(array: np.ndarray, missing: list[tuple[int, int]], fill: int | None) -> np.ndarray:
    """A crop with what it is short of: mirrored, or filled."""
    if any(map(any, missing)):
        if fill is None:
            array = np.pad(array, (*missing, (0, 0))[: array.ndim], mode="symmetric")
        else:
            dtype = np.promote_types(array.dtype, np.min_scalar_type(fill))
            array = np.pad(array.astype(dtype), missing, constant_values=fill)
    return np.ascontiguousarray(array)


def _anywhere(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> list[int]:
    return [int(rng.integers(max(0, have - side) + 1)) for have, side in zip(shape, size, strict=True)]


def _place(mask: np.ndarray, size: Sequence[int], ignore_index: int, rng: np.random.Generator) -> list[int]:
    """The top left corner of a crop, 0 along a side that is shorter than it."""
    last = [max(0, have - side) for have, side in zip(mask.shape, size, strict=True)]
    if rng.random() < PLACED:
        counts = np.bincount(mask.ravel(), minlength=ignore_index + 1)
        counts[ignore_index] = 0
        if counts.any():
            places = np.flatnonzero(mask == rng.choice(np.flatnonzero(counts)))
            pixel = np.unravel_index(places[rng.integers(len(places))], mask.shape)
            # The pixel may lie anywhere in the crop: always in the middle, a network would learn to expect it there.
            return [
                int(np.clip(at - rng.integers(side), 0, end)) for at, side, end in zip(pixel, size, last, strict=True)
            ]
    return _anywhere(mask.shape, size, rng)
