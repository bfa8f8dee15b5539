"""Random crops of images and masks that oversample rare classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from foldwise.data.fields import MASKS, Field
from foldwise.data.samples import Sample
from foldwise.errors import Refusal

# Share of crops that contain a random pixel of a class drawn uniformly from those in the image. nnU-Net does so for a
# third of its crops (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
PLACED = 0.5


def crop_sample(
    sample: Sample, fields: Mapping[str, Field], size: Sequence[int], ignore_index: int, seed: int
) -> Sample:
    """Cut the same random crop of `size` (height, width) out of all spatial fields; the first mask places it.

    An image smaller than the crop is mirrored at its border, as in tiled prediction, and its masks
    are filled with `ignore_index`. Refuses stacks and fields of different sizes.
    """
    spatial = {name: sample[name] for name, kind in fields.items() if kind.spatial}
    masks = [name for name, kind in fields.items() if kind.kind in MASKS]
    stacks = [name for name, value in spatial.items() if isinstance(value, list)]
    if stacks:
        raise Refusal(f"data.fit=tiles cannot crop stacks: {', '.join(stacks)}")
    sizes = {name: value.shape[:2] for name, value in spatial.items()}
    if len(set(sizes.values())) > 1:
        differ = ", ".join(f"{name} is {shape}" for name, shape in sizes.items())
        raise Refusal(f"data.fit=tiles needs fields of the same size: {differ}")
    # Independent of the augmentation, which uses the same seed.
    rng = np.random.default_rng([seed, 1])
    shape = next(iter(sizes.values()))
    top, left = _place(spatial[masks[0]], size, ignore_index, rng) if masks else _anywhere(shape, size, rng)
    missing = [(max(0, gap) // 2, max(0, gap) - max(0, gap) // 2) for gap in np.subtract(size, shape).tolist()]
    return sample | {
        name: _pad(array[top : top + size[0], left : left + size[1]], missing, ignore_index if name in masks else None)
        for name, array in spatial.items()
    }


def _pad(array: np.ndarray, missing: list[tuple[int, int]], fill: int | None) -> np.ndarray:
    if any(map(any, missing)):
        sides = (*missing, (0, 0))[: array.ndim]
        if fill is None:
            array = np.pad(array, sides, mode="symmetric")
        else:
            dtype = np.promote_types(array.dtype, np.min_scalar_type(fill))
            array = np.pad(array.astype(dtype), sides, constant_values=fill)
    return np.ascontiguousarray(array)


def _anywhere(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> list[int]:
    return [int(rng.integers(max(0, have - side) + 1)) for have, side in zip(shape, size, strict=True)]


def _place(mask: np.ndarray, size: Sequence[int], ignore_index: int, rng: np.random.Generator) -> list[int]:
    """Choose the top left corner of a crop; 0 along a side shorter than the crop."""
    shape = mask.shape[:2]
    last = [max(0, have - side) for have, side in zip(shape, size, strict=True)]
    if rng.random() < PLACED:
        if mask.ndim == 3:  # a mask per class
            inside = (mask >= 0.5) & (mask != ignore_index)
            counts = inside.sum(axis=(0, 1))
        else:
            counts = np.bincount(mask.ravel(), minlength=ignore_index + 1)
            counts[ignore_index] = 0
        if counts.any():
            drawn = rng.choice(np.flatnonzero(counts))
            pixels = np.flatnonzero(inside[:, :, drawn] if mask.ndim == 3 else mask == drawn)
            pixel = np.unravel_index(pixels[rng.integers(len(pixels))], shape)
            # Anywhere in the crop: if it were always centred, the network would learn that.
            return [
                int(np.clip(at - rng.integers(side), 0, end)) for at, side, end in zip(pixel, size, last, strict=True)
            ]
    return _anywhere(shape, size, rng)
