"""PNG files."""

import numpy as np

from foldwise.data.formats import check_pixels

START = b"\x89PNG"
GREY = 0  # colour type
KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def decode(data: bytes) -> np.ndarray:
    """Decode a PNG to (H, W, C) uint8 or uint16: RGB for a palette, the alpha channel last; grey of few bits is scaled.

    Raises:
        Unusable: it has too many pixels.
        ValueError, RuntimeError: the data cannot be decoded.
    """
    from imagecodecs import png_decode

    if data[12:16] == b"IHDR":
        check_pixels(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"))
    image = np.asarray(png_decode(_pixel_chunks(data)))
    image = image.reshape(*image.shape[:2], -1)
    return image[:, :, :1] if data[25] == GREY else image  # a grey value that counts as transparent adds a channel


def _pixel_chunks(data: bytes) -> bytes:
    """Leave out the chunks that pixels do not depend on: of colour profiles, libpng prints warnings without a name."""
    parts, position = [data[:8]], 8
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] in KEPT:
            parts.append(data[position:end])
        position = end
    return b"".join(parts)
