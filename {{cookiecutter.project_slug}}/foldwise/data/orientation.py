"""EXIF orientation: how a camera was held, and whether pictures are turned by it (`data.exif`)."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

EXIF = ("apply", "ignore")
TAG = 0x0112
# By the first two bytes of a file: the mark before its EXIF block, the bytes between, and where the search ends, as
# cameras write it first in a JPEG.
BLOCKS = {
    b"\xff\xd8": (b"Exif\0\0", 0, 1 << 18),
    b"\x89P": (b"eXIf", 0, None),
    b"RI": (b"EXIF", 4, None),
}
# By orientation, 1 to 8: how stored pixels become upright (EXIF 2.3, 4.6.4).
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}
INVERSE = {6: 8, 8: 6}  # the others are their own
SIDEWAYS = (5, 6, 7, 8)  # height and width change places

_ignored: ContextVar[bool] = ContextVar("_ignored", default=False)


@contextmanager
def oriented(exif: str | None) -> Iterator[None]:
    """Read files within the block by `data.exif`: "ignore" keeps the pixels as stored, else they are turned upright."""
    token = _ignored.set(exif == "ignore")
    try:
        yield
    finally:
        _ignored.reset(token)


def is_ignored() -> bool:
    return _ignored.get()


def read_orientation(data: bytes) -> int:
    """Find the EXIF orientation, 1 (upright) to 8, in the bytes of a JPEG, PNG or WebP file; 1 without one."""
    mark, skipped, end = BLOCKS.get(data[:2], (b"", 0, 0))
    found = data.find(mark, 2, end)
    if not mark or found < 0:
        return 1
    start = found + len(mark) + skipped
    start += 6 if data[start : start + 6] == b"Exif\0\0" else 0
    order = "<" if data[start : start + 2] == b"II" else ">"
    try:  # a TIFF header, and a list of tags of 12 bytes each
        first = start + struct.unpack_from(f"{order}I", data, start + 4)[0]
        for number in range(struct.unpack_from(f"{order}H", data, first)[0]):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", data, first + 2 + 12 * number)
            if tag == TAG and kind == 3:
                return valid(value)
    except struct.error:  # damaged metadata does not make a picture unreadable
        pass
    return 1


def valid(value: object) -> int:
    return value if isinstance(value, int) and value in TURNS else 1


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, ...) upright."""
    return np.ascontiguousarray(TURNS[orientation](image)) if orientation in TURNS else image
