"""Decode image files: TIFF by tifffile, other images by OpenCV, other masks by Pillow (it keeps palette indices).

EXIF orientation is ignored, so that an image and its mask cannot end up rotated against each other.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from foldwise.errors import Refusal

if TYPE_CHECKING:
    from PIL import Image

TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
PIXELS = 1 << 30  # of one image; OpenCV's own limit


class ImageError(Refusal):
    """An image or mask file cannot be used; the message names it."""


def decode_image(path: Path) -> np.ndarray:
    """Decode an image file to (H, W, C) uint8, uint16 or float32.

    Colours become RGB: palette, CMYK and YCbCr are converted, white-is-zero is inverted. Grey of 1, 2 and 4 bits is
    scaled to 0 to 255. Signed, 32-bit and double values become float32. An unusable file raises ImageError.
    """
    data = _read_bytes(path)
    image = _decode_tiff(path, data, False) if data[:4] in TIFF_MAGIC else _decode(path, data)
    if image.dtype == bool:
        return image.astype(np.uint8) * 255
    return image if image.dtype in (np.uint8, np.uint16, np.float32) else image.astype(np.float32)


def decode_mask(path: Path) -> np.ndarray:
    """Decode a mask file exactly as stored: (H, W), or (H, W, C) if it has colours; refuses JPEGs."""
    data = _read_bytes(path)
    if data[:4] in TIFF_MAGIC:
        mask = _decode_tiff(path, data, True)
        return mask[:, :, 0] if mask.shape[2] == 1 else mask
    try:
        with _open(io.BytesIO(data)) as picture:
            if picture.format == "JPEG":
                raise ImageError(f"{path} is a JPEG, which changes mask values; save masks as PNG")
            _check_pixels(path, picture.width * picture.height)
            mask = np.array(picture)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise many types
        raise ImageError(f"{path} cannot be decoded ({error})") from error
    bits, colour = (data[24], data[25]) if data[:4] == b"\x89PNG" else (8, 0)
    return mask // (255 // (2**bits - 1)) if colour == 0 and bits in (2, 4) else mask  # Pillow scales to 255


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror})") from error
    if not data:
        raise ImageError(f"{path} is empty")
    return data


def _check_pixels(path: Path, pixels: int) -> None:
    if pixels > PIXELS:
        raise ImageError(f"{path} has {pixels:,} pixels, more than {PIXELS:,}: cut it into tiles")


def _decode(path: Path, data: bytes) -> np.ndarray:
    # From bytes: imread fails on non-ASCII names on some systems, and never says why.
    if data[:2] == b"\xff\xd8" and not jpeg_is_whole(data):
        raise ImageError(f"{path} is truncated: the end of the JPEG is missing")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if "pixels" in error.err.lower():
            raise ImageError(f"{path} has more than {PIXELS:,} pixels: cut it into tiles") from error
        raise ImageError(f"{path} cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageError(f"{path} cannot be decoded: it is damaged or has an unknown format")
    if image.ndim == 2:
        return image[:, :, np.newaxis]
    if data[:4] == b"\x89PNG" and data[25] == 4:  # grey + alpha, which OpenCV expands to BGRA
        return np.ascontiguousarray(image[:, :, 2:])
    order = [2, 1, 0, *range(3, image.shape[2])] if image.shape[2] >= 3 else list(range(image.shape[2]))
    return np.ascontiguousarray(image[:, :, order])


def jpeg_is_whole(data: bytes) -> bool:
    """Follow a JPEG's markers to its end (ITU T.81, annex B); OpenCV fills a missing part with grey, without an error.
    Data after the end is fine, such as the video of a motion photo."""
    position = 2
    while True:
        position = data.find(b"\xff", position)
        while 0 <= position < len(data) - 1 and data[position + 1] == 0xFF:  # fill bytes
            position += 1
        if not 0 <= position < len(data) - 1:
            return False
        marker = data[position + 1]
        position += 2
        if marker == 0xD9:
            return True
        if marker == 0 or marker == 1 or 0xD0 <= marker <= 0xD8:  # stuffed data, or a marker without a segment
            continue
        if position + 2 > len(data):
            return False
        position += int.from_bytes(data[position : position + 2], "big")


def _decode_tiff(path: Path, data: bytes, mask: bool) -> np.ndarray:
    """Decode a TIFF's first series to (H, W, C); channels may be samples, planes or pages."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            series, page = tiff.series[0], tiff.series[0].keyframe
            _check_pixels(path, page.imagelength * page.imagewidth)
            axes, image = series.axes, series.asarray()
            colours, bits = page.photometric, page.bitspersample
            palette = page.colormap if colours == 3 else None
            jpeg = page.compression in (6, 7)
    except ImageError:
        raise
    except Exception as error:  # tifffile and its codecs raise many types
        raise ImageError(f"{path} cannot be decoded ({error})") from error
    image = _channels_last(path, image, axes)
    if mask:
        return image
    if colours == 3 and palette is not None:
        shift = 8 if palette.max() > 255 else 0  # some writers store 8-bit values in the 16-bit palette
        return (palette >> shift).T.astype(np.uint8)[image[:, :, 0]]
    if colours in (0, 1):  # grey: 0 white-is-zero, 1 black-is-zero
        if bits in (2, 4):
            image = image * (255 // (2**bits - 1))
        if colours == 1 or image.dtype.kind not in "bu":
            return image
        return ~image if bits in (1, 2, 4, 8, 16) else (2**bits - 1) - image
    if colours == 2 or colours == 4 or (colours == 6 and jpeg):  # JPEG decoders already return RGB
        return image
    if colours == 5 and image.shape[2] == 4 and image.dtype.kind == "u":  # CMYK, as Pillow converts it
        white = int(np.iinfo(image.dtype).max)
        light = white - image.astype(np.uint32)
        return (light[:, :, :3] * light[:, :, 3:] / white).round().astype(image.dtype)
    if colours == 6 and image.dtype == np.uint8:
        return _by_pillow(path, data)
    name = getattr(colours, "name", colours)
    raise ImageError(f"{path} stores its colours as {name}, which is not supported: convert it to RGB")


def _by_pillow(path: Path, data: bytes) -> np.ndarray:
    """Decode a YCbCr TIFF to (H, W, 3); libtiff handles subsampled chroma."""
    try:
        with _open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise many types
        raise ImageError(f"{path} cannot be decoded ({error})") from error


def _open(file: Path | io.BytesIO) -> "Image.Image":
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # `_check_pixels` has our limit
    return Image.open(file)


def _channels_last(path: Path, image: np.ndarray, axes: str) -> np.ndarray:
    """Reorder to (H, W, C) by axis names: Y, X, and a third axis (samples S, channels C, or pages) as channels.

    If the first axis is unnamed (Q) and the last one is the shortest, the array was written as (H, W, C).
    """
    keep = [axis for axis, length in enumerate(image.shape) if length > 1 or axes[axis] in "YX"]
    image, axes = image.reshape([image.shape[axis] for axis in keep]), "".join(axes[axis] for axis in keep)
    if image.ndim == 2:
        return image[:, :, np.newaxis]
    if image.ndim != 3:
        raise ImageError(f"{path} has the axes {axes} {image.shape}; expected height, width and channels")
    if axes.startswith("YX") or (axes[0] == "Q" and image.shape[2] < min(image.shape[:2])):
        return image
    return np.ascontiguousarray(np.moveaxis(image, 0, -1))


def stored_size(path: Path) -> tuple[int, int]:
    """Read (height, width) from the header of an image file; (0, 0) if that fails."""
    import tifffile

    try:
        with path.open("rb") as file:
            is_tiff = file.read(4) in TIFF_MAGIC
        if is_tiff:
            with tifffile.TiffFile(path) as tiff:
                sizes = dict(zip(tiff.series[0].axes, tiff.series[0].shape, strict=True))
            return sizes["Y"], sizes["X"]
        with _open(path) as picture:
            return picture.height, picture.width
    except Exception:  # damaged files raise all kinds of errors; reading the file reports the problem
        return 0, 0
