"""Masks as run-length codes: "start length start length ...", starts counted from 1.

Pixels are counted down the columns, left to right, as on Kaggle; with `by_row` along the rows, top to bottom.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foldwise.data.decoding import ImageError

RUNS = re.compile(r"(\d{1,15} \d{1,15}( \d{1,15} \d{1,15})*)?", re.ASCII)


def encode_runs(mask: np.ndarray, by_row: bool = False) -> str:
    """Encode the true pixels of a mask (H, W)."""
    pixels = np.concatenate([[0], mask.ravel(order="C" if by_row else "F").astype(np.int8), [0]])
    starts, ends = (np.flatnonzero(np.diff(pixels) == change) for change in (1, -1))
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def decode_runs(code: str, size: Sequence[int], by_row: bool, image: Path) -> np.ndarray:
    """Decode to a mask (H, W) uint8; refuse a code with pixels outside."""
    height, width = size
    numbers = np.array(code.split(), np.int64)
    starts, ends = numbers[0::2] - 1, numbers[0::2] - 1 + numbers[1::2]
    if len(ends) and (starts.min() < 0 or ends.max() > height * width):
        raise ImageError(
            f"{image}: a run-length code leaves its {height} x {width} pixels (height x width); codes count from 1, in "
            "the size of the stored image"
        )
    mask = np.zeros(height * width, np.uint8)
    for start, end in zip(starts, ends, strict=True):
        mask[start:end] = 1
    return mask.reshape(height, width) if by_row else np.ascontiguousarray(mask.reshape(width, height).T)


def run_pixels(code: str) -> np.ndarray:
    """Pixel numbers of a code; none for a placeholder of an empty mask, such as -1."""
    numbers = np.array(code.split(), np.int64)
    starts, lengths = numbers[0 : len(numbers) // 2 * 2 : 2], numbers[1::2]
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
