"""Read and resize images and masks.

An image is (H, W, C) uint8, uint16 or float32 in RGB order. data/decoding.py handles the file formats.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from foldwise.data.decoding import ImageError, decode_image, decode_mask
from foldwise.data.orientation import is_ignored
from foldwise.data.problems import some
from foldwise.errors import Refusal

MODES = ("stored", "gray", "rgb")
FITS = ("stretch", "crop", "tiles")
JPEGS = (".jpg", ".jpeg", ".jpe", ".jfif")
# Share of the shorter side that a centre crop keeps, as in the evaluation of most published ImageNet weights (timm's
# crop_pct). On 153 photographs, a linear head on frozen features scored .955 with it and .940 without.
CROPPED = 0.875


def read_image(path: Path | str, mode: str = "stored") -> np.ndarray:
    """Read an image as (H, W, C); see `decode_image`.

    Args:
        mode: `stored` keeps the channels; `gray` converts to one, `rgb` to three (grey is repeated, alpha dropped).
    """
    path, cache = Path(path), _cache.get()
    if cache is None:
        return to_mode(decode_image(path), mode, path)
    key = path, is_ignored()
    if key not in cache:
        cache[key] = decode_image(path)
    return to_mode(cache[key], mode, path)


_cache: ContextVar[dict[tuple[Path, bool], np.ndarray] | None] = ContextVar("_cache", default=None)


@contextmanager
def cached_images() -> Iterator[None]:
    """Decode each file only once within the block, for several networks. Do not modify the images in place."""
    token = _cache.set({})
    try:
        yield
    finally:
        _cache.reset(token)


def read_mask(path: Path | str) -> np.ndarray:
    """Read a mask as (H, W) class indices, uint8 or uint16, exactly as stored.

    Palette images return indices, not colours; bilevel images return 0 and 1. JPEGs are refused.
    """
    path = Path(path)
    mask = decode_mask(path)
    if mask.ndim != 2:
        raise ImageError(f"{path}: a mask must have one channel with class indices, this one has {mask.shape[2]}")
    if mask.dtype == bool:
        return mask.astype(np.uint8)
    if mask.dtype in (np.uint8, np.uint16):
        return mask
    if not np.issubdtype(mask.dtype, np.integer) or mask.min() < 0 or mask.max() > 65535:
        raise ImageError(f"{path}: mask values must be integers from 0 to 65535 (its dtype is {mask.dtype})")
    return mask.astype(np.uint16)


def read_colors(path: Path, colors: Sequence[int]) -> np.ndarray:
    """Read a mask of colours as (H, W) int32 of 0xRRGGBB; in a JPEG, which changes them, the nearest of `colors`."""
    image = to_mode(decode_image(path), "rgb", path).astype(np.int32)
    if image.max(initial=0) > 255:
        raise ImageError(f"{path} has more than 8 bits, and data.mask_encoding=colors reads 8: leave it out")
    if path.suffix.lower() in JPEGS:
        known = np.array([[color >> 16, color >> 8 & 255, color & 255] for color in colors], np.int32)
        far = np.stack([np.square(image - color).sum(axis=2) for color in known])
        image = known[far.argmin(axis=0)].astype(np.int32)
    return image[:, :, 0] << 16 | image[:, :, 1] << 8 | image[:, :, 2]


def map_mask(mask: np.ndarray, values: Mapping[int, int], path: Path) -> np.ndarray:
    """Replace the stored values of a mask by their class numbers; refuse a value without one."""
    if mask.dtype == np.int32:  # colours, of which a table would be large
        keys = np.array(sorted(values))
        places = np.searchsorted(keys, mask).clip(max=len(keys) - 1)
        mapped = np.where(keys[places] == mask, np.array([values[key] for key in keys.tolist()])[places], -1)
    else:
        numbers = np.full(65536, -1, np.int32)
        numbers[list(values)] = list(values.values())
        mapped = numbers[mask]
    if mapped.min(initial=0) < 0:
        unknown = [f"#{value:06x}" if value > 65535 else str(value) for value in np.unique(mask[mapped < 0]).tolist()]
        raise ImageError(f"{path}: the values {some(unknown)} are not in data.mask_values")
    return mapped.astype(np.uint8 if max(values.values()) < 256 else np.uint16)


def resize(image: np.ndarray, size: int | Sequence[int]) -> np.ndarray:
    """Stretch an image (H, W, C) to `size`: area interpolation to shrink, bilinear to enlarge."""
    height, width = image_hw(size)
    # Shrink first: INTER_AREA does not average along one side while the other grows.
    image = _resize(image, min(height, image.shape[0]), min(width, image.shape[1]), cv2.INTER_AREA)
    return _resize(image, height, width, cv2.INTER_LINEAR)


def fit_image(image: np.ndarray, size: int | Sequence[int], fit: str) -> np.ndarray:
    """Resize an image (H, W, C) to the network's input size.

    Args:
        fit: "crop" keeps the aspect ratio: it scales so that `size` is CROPPED of the tighter side, then cuts out the
            centre. "stretch" and "tiles" (whose crops already have the size) ignore the aspect ratio.
    """
    height, width = image_hw(size)
    if fit != "crop" or image.shape[:2] == (height, width):
        return resize(image, size)
    scale = max(height / image.shape[0], width / image.shape[1]) / CROPPED
    covering = resize(image, (max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))))
    top, left = (covering.shape[0] - height) // 2, (covering.shape[1] - width) // 2
    return covering[top : top + height, left : left + width]


def resize_mask(mask: np.ndarray, size: int | Sequence[int]) -> np.ndarray:
    """Stretch a mask (H, W), or (H, W, C), by exact nearest pixel; INTER_NEAREST would shift it by up to a pixel."""
    height, width = image_hw(size)
    if mask.ndim == 3:
        return _resize(mask, height, width, cv2.INTER_NEAREST_EXACT)
    if mask.shape == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def image_hw(size: int | Sequence[int]) -> tuple[int, int]:
    """Parse an image_size: one number for a square, or [height, width]."""
    values = [size, size] if isinstance(size, int) else list(size)
    if len(values) != 2 or not all(isinstance(value, int) and value > 0 for value in values):
        raise Refusal(f"image_size is {size!r}; it must be a whole number above 0, or [height, width]")
    return values[0], values[1]


def is_image_size(value: Any) -> bool:
    try:
        image_hw(value)
    except (Refusal, TypeError):
        return False
    return True


def default_scale(dtype: np.dtype | str | type) -> float:
    dtype = np.dtype(dtype)
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


def to_unit(image: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Scale an image to [0, 1] float32; uint8 with the default scale of 255 stays uint8.

    Applied right after reading, because several albumentations are silently wrong on uint16.
    """
    scale = default_scale(image.dtype) if scale is None else float(scale)
    if image.dtype == np.uint8 and scale == 255:
        return image
    return image.astype(np.float32) / np.float32(scale)


def _resize(image: np.ndarray, height: int, width: int, interpolation: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    # INTER_AREA of OpenCV 5 takes at most four channels.
    parts = [image[:, :, start : start + 4] for start in range(0, image.shape[2], 4)]
    resized = [cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=interpolation) for part in parts]
    return np.concatenate([part.reshape(height, width, -1) for part in resized], axis=2)


def to_mode(image: np.ndarray, mode: str, path: Path) -> np.ndarray:
    """Convert the channels of an image (H, W, C) by `data.mode`; ImageError if it has more than four."""
    channels = image.shape[2]
    if mode == "stored" or channels == {"gray": 1, "rgb": 3}.get(mode):
        return image
    if mode not in MODES:
        raise Refusal(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if channels > 4:
        raise ImageError(f"{path} has {channels} channels, which cannot be converted to {mode}; use data.mode=stored")
    if mode == "rgb":
        return np.repeat(image[:, :, :1], 3, axis=2) if channels < 3 else np.ascontiguousarray(image[:, :, :3])
    if channels < 3:
        return np.ascontiguousarray(image[:, :, :1])
    return cv2.cvtColor(np.ascontiguousarray(image[:, :, :3]), cv2.COLOR_RGB2GRAY)[:, :, np.newaxis]
