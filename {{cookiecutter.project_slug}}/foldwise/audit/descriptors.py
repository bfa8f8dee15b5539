"""Image descriptors: a thumbnail to compare pixels, and a vector to find similar images.

A describer makes the vectors: `PixelDescriber` from pixels, `foldwise.audit.embeddings` from a network.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from foldwise.data.images import resize, to_unit
from foldwise.data.samples import TableItems
from foldwise.data.scan import box_hashes, map_in_threads, reader_key
from foldwise.errors import Refusal
from foldwise.files import write_atomic

THUMBNAIL = 48
BATCH = 64


class Describer(Protocol):
    """Makes vectors of uint8 RGB images (B, size, size, 3); everything that can change them is in `key`."""

    key: str
    size: int
    learned: bool

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """float32 (B, D)."""
        ...


class PixelDescriber:
    """Describes images by oriented gradients (HOG, Dalal and Triggs 2005), grey levels and colour."""

    key, size, learned = "pixels", 128, False

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """float32 (B, 150): 8 directions in 4 x 4 cells, 4 x 4 grey levels without mean, mean and std of L, a, b."""
        return np.stack([self._describe(picture) for picture in pictures])

    def _describe(self, picture: np.ndarray) -> np.ndarray:
        small = resize(picture, 32)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        direction = (np.arctan2(down, across) % np.pi / np.pi * 8).astype(int) % 8
        row, column = np.indices(grey.shape) // 8
        edges = np.bincount(((row * 4 + column) * 8 + direction).ravel(), np.hypot(across, down).ravel(), 128)
        edges = np.sqrt(edges / max(edges.sum(), 1e-6))  # contrast removed; the root keeps one edge from dominating
        coarse = cv2.resize(grey, (4, 4), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        colour = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32)
        parts = [edges, coarse - coarse.mean(), colour.mean(axis=0), colour.std(axis=0)]
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True)
class Descriptors:
    thumbnails: np.ndarray  # grey uint8 (N, 48, 48)
    vectors: np.ndarray  # float32 (N, D)
    learned: bool  # a network made the vectors


def describe_images(
    tables: Sequence[TableItems], data: Mapping[str, Any], describe: Describer, progress: bool = False
) -> Descriptors:
    """Describe the images of all items in the order of the tables, which must share reader and data root.

    Descriptors are cached in `embeddings-<hash>.npz`, also when interrupted.
    """
    root, scale = tables[0].table.root, data["scale"]
    key = f"{describe.key} {describe.size} {reader_key(tables[0].samples, tables[0].table.exif)} {scale}"
    record = Path(data["prepared"]) / f"embeddings-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    images = [
        (name, box, items, number)
        for items in tables
        for number, (name, box) in enumerate(zip(items.table.frame["image"], box_hashes(items), strict=True))
    ]
    source_of = {name + box: (items, number) for name, box, items, number in images}
    sizes = {name + box: (root / name).stat().st_size for name, box, *_ in images}
    known = _read_record(record)
    todo = [name for name, size in sizes.items() if name not in known or known[name][0] != size]

    def picture_of(name: str) -> tuple[str, np.ndarray]:
        items, number = source_of[name]
        return name, to_picture(items.picture(number), scale, describe.size)

    try:
        for batch in map_in_threads(picture_of, todo, "Comparing images", BATCH, progress):
            vectors = describe(np.stack([picture for _, picture in batch]))
            for (name, picture), vector in zip(batch, vectors, strict=True):
                thumbnail = cv2.resize(picture, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
                known[name] = (sizes[name], cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY), vector.astype(np.float32))
    finally:
        if todo and known:
            _write_record(record, known)
    thumbnails, vectors = (np.stack([known[name + box][part] for name, box, *_ in images]) for part in (1, 2))
    return Descriptors(thumbnails, vectors, describe.learned)


def to_picture(image: np.ndarray, scale: float | None, size: int) -> np.ndarray:
    """Convert an image (H, W, C) to uint8 RGB (size, size, 3): grey, or its first three channels.

    Anything but 8 bit is stretched to its 1st to 99th percentile: 12-bit data stored in 16 bits would be almost black.
    """
    image = resize(to_unit(image, scale), size)
    image = np.repeat(image[:, :, :1], 3, axis=2) if image.shape[2] < 3 else image[:, :, :3]
    if image.dtype == np.uint8:
        return image
    low, high = np.percentile(image, [1, 99])
    return (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).round().astype(np.uint8)


Row = tuple[int, np.ndarray, np.ndarray]  # bytes of the file, thumbnail, vector


def _read_record(record: Path) -> dict[str, Row]:
    if not record.exists():
        return {}
    try:
        with np.load(record, allow_pickle=False) as file:
            rows = zip(file["bytes"].tolist(), file["thumbnails"], file["vectors"], strict=True)
            return dict(zip(file["images"].tolist(), rows, strict=True))
    except Exception as error:  # zipfile, zlib and numpy raise many types
        raise Refusal(f"{record} cannot be read ({error}); delete it and run the same command again") from error


def _write_record(record: Path, known: dict[str, Row]) -> None:
    sizes, thumbnails, vectors = zip(*known.values(), strict=True)
    with write_atomic(record) as temporary:
        np.savez(
            temporary,
            images=np.array(list(known)),
            bytes=np.array(sizes),
            thumbnails=np.stack(thumbnails),
            vectors=np.stack(vectors),
        )
