"""Random crops of pictures with masks, placed so that rare classes are seen more often than they occur."""

from collections.abc import Sequence

import numpy as np

# The share of crops that are placed on a pixel of a class drawn among those in the picture, the rarest as likely as the
# most common. nnU-Net places a third of its crops so (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
PLACED = 0.5


def random_crop(
    image: np.ndarray, mask: np.ndarray, size: Sequence[int], ignore_index: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A crop of `size` at the resolution of the picture, the same for the same seed.

    Args:
        image: (H, W, C); where it is smaller than the crop, it is mirrored at its border, as in tiled prediction.
        mask: (H, W) uint8 or uint16; what is mirrored gets `ignore_index`.
        size: (height, width).
    """
    # Of its own: the augmentation that follows draws from the same seed.
    rng = np.random.default_rng([seed, 1])
    top, left = _place(mask, size, ignore_index, rng)
    image = image[top : top + size[0], left : left + size[1]]
    mask = mask[top : top + size[0], left : left + size[1]]
    missing = [(gap // 2, gap - gap // 2) for gap in (side - have for side, have in zip(size, mask.shape, strict=True))]
    if mask.shape != tuple(size):
        image = np.pad(image, (*missing, (0, 0)), mode="symmetric")
        dtype = np.promote_types(mask.dtype, np.min_scalar_type(ignore_index))
        mask = np.pad(mask.astype(dtype), missing, constant_values=ignore_index)
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def _place(mask: np.ndarray, size: Sequence[int], ignore_index: int, rng: np.random.Generator) -> list[int]:
    """The top left corner of a crop, 0 along a side that is shorter than it."""
    last = [max(0, have - side) for have, side in zip(mask.shape, size, strict=True)]
    if rng.random() < PLACED:
        counts = np.bincount(mask.ravel(), minlength=ignore_index + 1)
        counts[ignore_index] = 0
        if counts.any():
            place = np.flatnonzero(mask == rng.choice(np.flatnonzero(counts)))
            pixel = np.unravel_index(place[rng.integers(len(place))], mask.shape)
            # The pixel may lie anywhere in the crop: always in the middle, a network would learn to expect it there.
            return [
                int(np.clip(at - rng.integers(side), 0, end)) for at, side, end in zip(pixel, size, last, strict=True)
            ]
    return [int(rng.integers(end + 1)) for end in last]
