"""TIFF files by what they say of themselves: axes, interpretation of colours, orientation."""

import io
import logging
from pathlib import Path

import numpy as np

from foldwise.data.formats import Unusable, check_pixels
from foldwise.data.orientation import INVERSE, TAG, turn, valid

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs without the file's name


def decode(data: bytes, mask: bool = False) -> tuple[np.ndarray, int]:
    """Decode a TIFF's first series to (H, W, C), and its orientation; channels may be samples, planes or pages.

    Args:
        mask: keep stored values, such as palette indices.

    Raises:
        Unusable: its axes or colours are not supported.
        Exception: of many types, for a damaged file.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        check_pixels(page.imagelength, page.imagewidth)
        axes, image = series.axes, series.asarray()
        colours, bits = page.photometric, page.bitspersample
        palette = page.colormap if colours == 3 else None
        is_jpeg = page.compression in (6, 7)
        orientation = valid(page.tags.valueof(TAG))
    if image.shape != series.shape or not image.size:
        raise Unusable("cannot be decoded: it is damaged")
    image = _channels_last(image, axes)
    if mask:
        return image, orientation
    if colours == 6 and not is_jpeg and image.dtype == np.uint8:
        return turn(_by_pillow(data), INVERSE.get(orientation, orientation)), orientation  # Pillow turns it
    if colours == 3 and palette is not None:
        shift = 8 if palette.max() > 255 else 0  # some writers store 8-bit values in the 16-bit palette
        return (palette >> shift).T.astype(np.uint8)[image[:, :, 0]], orientation
    return _to_rgb(image, colours, bits, is_jpeg), orientation


def _to_rgb(image: np.ndarray, colours: int, bits: int, is_jpeg: bool) -> np.ndarray:
    """Convert by TIFF's photometric interpretation `colours`."""
    if colours in (0, 1):  # grey: 0 white-is-zero, 1 black-is-zero
        if bits in (2, 4):
            image = image * (255 // (2**bits - 1))
        if colours == 1 or image.dtype.kind not in "bu":
            return image
        return ~image if bits in (1, 2, 4, 8, 16) else (2**bits - 1) - image
    if colours == 2 or colours == 4 or (colours == 6 and is_jpeg):  # JPEG decoders already return RGB
        return image
    if colours == 5 and image.shape[2] == 4 and image.dtype.kind == "u":  # CMYK, as Pillow converts it
        white = int(np.iinfo(image.dtype).max)
        light = white - image.astype(np.uint32)
        return (light[:, :, :3] * light[:, :, 3:] / white).round().astype(image.dtype)
    name = getattr(colours, "name", colours)
    raise Unusable(f"stores its colours as {name}, which is not supported: convert it to RGB")


def _by_pillow(data: bytes) -> np.ndarray:
    """Decode a YCbCr TIFF to (H, W, 3); libtiff handles subsampled chroma."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture.convert("RGB"))


def _channels_last(image: np.ndarray, axes: str) -> np.ndarray:
    """Reorder to (H, W, C) by axis names: Y, X, and a third axis (samples S, channels C, or pages) as channels.

    If the first axis is unnamed (Q) and the last one is the shortest, the array was written as (H, W, C).
    """
    keep = [axis for axis, length in enumerate(image.shape) if length > 1 or axes[axis] in "YX"]
    image, axes = image.reshape([image.shape[axis] for axis in keep]), "".join(axes[axis] for axis in keep)
    if image.ndim == 2:
        return image[:, :, np.newaxis]
    if image.ndim != 3:
        raise Unusable(f"has the axes {axes} {image.shape}; expected height, width and channels")
    if axes.startswith("YX") or (axes[0] == "Q" and image.shape[2] < min(image.shape[:2])):
        return image
    return np.ascontiguousarray(np.moveaxis(image, 0, -1))


def stored_shape(path: Path) -> tuple[int, int, int]:
    """Read (height, width, orientation) from the header."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        sizes = dict(zip(tiff.series[0].axes, tiff.series[0].shape, strict=True))
        return sizes["Y"], sizes["X"], valid(tiff.pages.first.tags.valueof(TAG))
