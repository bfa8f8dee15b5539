"""Pictures that a hidden test may have and no training set had."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np


def plant(folder: Path) -> list[Path]:
    """Write bad pictures into a new folder; one of them is not written at all."""
    import tifffile

    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    png = cv2.imencode(".png", noise)[1].tobytes()
    for name, data in {
        "empty.png": b"",
        "corrupt.png": png[: len(png) // 2],
        "no_picture.jpg": b"<html>404</html>",
        "one_pixel.png": cv2.imencode(".png", noise[:1, :1])[1].tobytes(),
        "enormous.png": _black_png(20_000),
    }.items():
        (folder / name).write_bytes(data)
    tifffile.imwrite(folder / "channels.tif", np.zeros((32, 32, 7), np.uint8), photometric="minisblack")
    return [*sorted(folder.iterdir()), folder / "missing.png"]


def _black_png(side: int) -> bytes:
    """A PNG of one bit a pixel: 50 KB that are 400 million pixels."""
    packer = zlib.compressobj()
    row = bytes(1 + -(-side // 8))  # a filter byte, then the bits
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
