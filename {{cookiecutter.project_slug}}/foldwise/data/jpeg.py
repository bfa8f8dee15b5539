"""JPEG files: their pixels, their end, and damage inside."""

import numpy as np

from foldwise.data.formats import Unusable, check_pixels

START = b"\xff\xd8"
# Warnings of libjpeg; its other messages are limits of simplejpeg, such as CMYK with unusual subsampling.
DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")


def decode(data: bytes) -> np.ndarray:
    """Decode a JPEG to RGB or grey (H, W, C) uint8; CMYK is converted as OpenCV does. Prints nothing.

    Raises:
        Unusable: it is cut off, or has too many pixels.
        ValueError, RuntimeError: the data cannot be decoded.
    """
    from imagecodecs import jpeg8_decode

    check_pixels(*_size(data))
    if not is_whole(data):
        raise Unusable("is truncated: the end of the JPEG is missing")
    image = np.asarray(jpeg8_decode(data))
    if image.ndim == 2:
        return image[:, :, np.newaxis]
    if image.shape[2] < 4:
        return image
    ink, black = image[:, :, :3].astype(np.int32), image[:, :, 3:].astype(np.int32)
    return (black - ((255 - ink) * black >> 8)).astype(np.uint8)


def _size(data: bytes) -> tuple[int, int]:
    """(height, width) of the first frame header, (0, 0) without one."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            sides = data[position + 5 : position + 7], data[position + 7 : position + 9]
            return int.from_bytes(sides[0], "big"), int.from_bytes(sides[1], "big")
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, 0


def is_whole(data: bytes) -> bool:
    """Follow a JPEG's markers to its end (ITU T.81, annex B); decoders fill a missing part with grey, without an error.
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


def damage(data: bytes) -> str:
    """Return libjpeg's warning of damaged data in a JPEG that can be decoded, "" without one.

    Part of the pixels is then wrong or grey. Without simplejpeg, as on a host of a bundle, nothing is reported.
    """
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return ""
    try:
        decode_jpeg(data, colorspace="GRAY", strict=True)  # brightness only: all data is parsed, in half the time
    except ValueError as error:
        if str(error).startswith(DAMAGE):
            return str(error).removeprefix("Corrupt JPEG data: ")
    return ""
