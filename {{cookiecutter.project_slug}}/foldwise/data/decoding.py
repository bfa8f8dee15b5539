"""Decode image files: TIFF by tifffile, JPEG and PNG by imagecodecs, others by OpenCV; other masks by Pillow (it keeps
palette indices). Images and masks are turned by their EXIF orientation, or not, see `orientation.oriented`.
"""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from foldwise.data import jpeg, png, tiff
from foldwise.data.formats import PIXELS, RAW, Unusable, check_pixels, describe_file
from foldwise.data.orientation import SIDEWAYS, is_ignored, read_orientation, turn
from foldwise.errors import Refusal

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # its decoders warn without the file's name


class ImageError(Refusal):
    """An image or mask file cannot be used; the message names it."""


class FileNote(NamedTuple):
    """What is worth a note of a file: its EXIF orientation (1: upright), the damage in a JPEG ("": none), the
    `data.mode` that its channels were converted by ("": none), and why it was left out of an item ("": it was not)."""

    path: Path
    orientation: int
    damage: str
    mode: str = ""
    left_out: str = ""
    item: str = ""


_notes: ContextVar[list[FileNote] | None] = ContextVar("_notes", default=None)


@contextmanager
def noting() -> Iterator[list[FileNote]]:
    """Collect the notes of files that are decoded within the block; damage is looked for only there."""
    notes: list[FileNote] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note_left_out(path: Path, problem: str, item: str) -> None:
    """Note a picture that an item's reader leaves out because of a problem; warn if nobody collects notes."""
    notes = _notes.get()
    if notes is None:
        warnings.warn(f"{problem}; it is left out of {item}", stacklevel=2)
    else:
        notes.append(FileNote(path, 1, "", left_out=problem, item=item))


_refused: ContextVar[Mapping[Path, str]] = ContextVar("_refused", default={})  # noqa: B039  # never changed


@contextmanager
def refusing(problems: Mapping[Path, str]) -> Iterator[None]:
    """Do not decode these image files within the block: raise an ImageError with the problem of each."""
    token = _refused.set(problems)
    try:
        yield
    finally:
        _refused.reset(token)


def decode_image(path: Path) -> np.ndarray:
    """Decode an image file to (H, W, C) uint8, uint16 or float32.

    Colours become RGB: palette, CMYK and YCbCr are converted, white-is-zero is inverted. Grey of 1, 2 and 4 bits is
    scaled to 0 to 255. Signed, 32-bit and double values become float32. An unusable file raises ImageError.
    """
    if problem := _refused.get().get(path):
        raise ImageError(f"{path} {problem}")
    data = _read_bytes(path)
    with _naming(path, data):
        image, orientation = tiff.decode(data) if data[:4] in tiff.MAGIC else (_decode(data), read_orientation(data))
    image = _turn(path, data, image, orientation)
    if image.dtype == bool:
        return image.astype(np.uint8) * 255
    return image if image.dtype in (np.uint8, np.uint16, np.float32) else image.astype(np.float32)


def decode_mask(path: Path, data: bytes | None = None) -> np.ndarray:
    """Decode a mask file, or its `data`, exactly as stored: (H, W), or (H, W, C) if it has channels; refuses JPEGs."""
    data = _read_bytes(path) if data is None else data
    with _naming(path, data):
        if data[:4] in tiff.MAGIC:
            mask, orientation = tiff.decode(data, mask=True)
            mask = mask[:, :, 0] if mask.shape[2] == 1 else mask
        else:
            mask, orientation = _decode_stored(data), read_orientation(data)
    return _turn(path, data, mask, orientation)


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror})") from error
    if not data or path.suffix.lower() in RAW:
        raise ImageError(f"{path} {describe_file(path, data)}")
    return data


@contextmanager
def _naming(path: Path, data: bytes) -> Iterator[None]:
    """Turn every error of a decoder into an ImageError with the file's name."""
    try:
        yield
    except Unusable as error:
        raise ImageError(f"{path} {error}") from error
    except Exception as error:  # decoders raise many types
        kind, text = describe_file(path, data), str(error)
        if kind.startswith("cannot") and text and "BytesIO" not in text and not isinstance(error, UnicodeError):
            kind = f"cannot be decoded ({text})"
        raise ImageError(f"{path} {kind}") from error


def _turn(path: Path, data: bytes, image: np.ndarray, orientation: int) -> np.ndarray:
    notes = _notes.get()
    if notes is not None:
        damage = jpeg.damage(data) if data[:2] == jpeg.START else ""
        notes += [FileNote(path, orientation, damage)] if damage or orientation != 1 else []
    return image if is_ignored() else turn(image, orientation)


def _decode(data: bytes) -> np.ndarray:
    # From bytes: imread fails on non-ASCII names on some systems, and never says why.
    if data[:2] == jpeg.START:
        return jpeg.decode(data)
    if data[:4] == png.START:
        return png.decode(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if "pixels" in error.err.lower():
            raise Unusable(f"has more than {PIXELS:,} pixels: cut it into tiles") from error
        raise Unusable(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ValueError("it is damaged or has an unknown format")
    if image.ndim == 2:
        return image[:, :, np.newaxis]
    order = [2, 1, 0, *range(3, image.shape[2])] if image.shape[2] >= 3 else list(range(image.shape[2]))
    return np.ascontiguousarray(image[:, :, order])


def _decode_stored(data: bytes) -> np.ndarray:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # `check_pixels` has our limit
    with Image.open(io.BytesIO(data)) as picture:
        if picture.format == "JPEG":
            raise Unusable("is a JPEG, which changes mask values; save masks as PNG")
        check_pixels(picture.height, picture.width)
        mask = np.array(picture)
    bits, colour = (data[24], data[25]) if data[:4] == png.START else (8, 0)
    return mask // (255 // (2**bits - 1)) if colour == 0 and bits in (2, 4) else mask  # Pillow scales to 255


def stored_size(path: Path) -> tuple[int, int]:
    """Read (height, width) from the header of an image file, turned by its orientation; (0, 0) if that fails."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # only the header is read
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start in tiff.MAGIC:
            height, width, orientation = tiff.stored_shape(path)
        else:
            with Image.open(path) as picture:
                height, width = picture.height, picture.width
            orientation = 1 if is_ignored() else read_orientation(path.read_bytes())
    except Exception:  # damaged files raise all kinds of errors; reading the file reports the problem
        return 0, 0
    return (width, height) if orientation in SIDEWAYS and not is_ignored() else (height, width)
