"""Masks per class, as files or run-length codes: overlapping ones, and numbers from 0 to 1."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.decoding import ImageError, decode_mask, stored_size
from foldwise.data.images import default_scale, map_mask
from foldwise.data.mask_problems import number_problems, parse_pairs, size_problems, value_pairs
from foldwise.data.masks import SEPARATOR, StoredMasks
from foldwise.data.problems import some
from foldwise.data.run_lengths import decode_runs

ENCODINGS = ("files", "rle", "rle_by_row")
MOST_VALUES = 8  # of a mask per class; more are numbers, or edges that were smoothed
FAINT = 1 / 254  # the largest number of all soft masks if their scale is 255 or 257 times too large


@dataclass(frozen=True)
class ClassMasks(StoredMasks):
    """A mask per class, which may overlap: 0 is background, another value the class, an empty cell an empty mask.

    A column per class holds files or run-length codes. A single column holds files with a channel per class, or with
    one channel of class numbers. With `values`, stored values become 0, 1 or the ignore index.
    """

    kind = "overlapping"

    def setting_problem(self) -> str:
        if self.encoding not in ENCODINGS:
            return f"data.mask_encoding is {self.encoding!r}; it must be one of {', '.join(ENCODINGS)}"
        if self.scale is not None:
            return "data.mask_scale is for data.masks=soft"
        return ""

    def read(self, cells: Sequence[str], root: Path, image: Path) -> np.ndarray:
        return self._convert(self._stored(cells, root, image), root / cells[0])

    def _stored(self, cells: Sequence[str], root: Path, image: Path) -> np.ndarray:
        """Stored values, (C, H, W), or (1, H, W) class numbers."""
        if self.encoding != "files":
            size = _image_size(image)
            return np.stack([decode_runs(cell, size, self.encoding == "rle_by_row", image) for cell in cells])
        if len(cells) == 1 and cells[0]:
            return self._one_file(root / cells[0])
        masks = {cell: _one_channel(root / cell) for cell in cells if cell}
        sizes = {cell: mask.shape for cell, mask in masks.items()}
        if len(set(sizes.values())) > 1:
            each = ", ".join(f"{cell} {shape[0]} x {shape[1]}" for cell, shape in sizes.items())
            raise ImageError(f"{image}: its masks differ in size (height x width): {each}")
        empty = np.zeros(next(iter(sizes.values()), None) or _image_size(image), np.uint8)
        layers = np.stack([masks.get(cell, empty) for cell in cells])
        return layers if len(cells) > 1 else np.repeat(layers, len(self.classes), axis=0)

    def _one_file(self, path: Path) -> np.ndarray:
        mask = decode_mask(path)
        layers = np.moveaxis(mask, -1, 0) if mask.ndim == 3 else mask[None]
        if len(layers) not in (1, len(self.classes)):
            raise ImageError(
                f"{path} has {len(layers)} channels, but there are {len(self.classes)} classes: it needs a channel per "
                "class, or one channel of class numbers"
            )
        return layers

    def _convert(self, stored: np.ndarray, path: Path) -> np.ndarray:
        if len(stored) < len(self.classes):  # class numbers
            numbers = stored[0] if self.values is None else map_mask(stored[0], self.values, path)
            layers = (numbers == np.arange(len(self.classes))[:, None, None]).astype(np.uint8)
            return np.where(numbers == self.ignore_index, np.uint8(self.ignore_index), layers)
        return (stored > 0).astype(np.uint8) if self.values is None else map_mask(stored, self.values, path)

    def figures(self, cells: Sequence[str], root: Path, image: Path) -> dict[str, Any]:
        stored = self._stored(cells, root, image)
        return {
            "mask_height": stored.shape[1],
            "mask_width": stored.shape[2],
            "values": SEPARATOR.join(self._layer_figures(layer) for layer in stored),
        }

    def _layer_figures(self, layer: np.ndarray) -> str:
        if layer.dtype.kind not in "bu":
            raise ImageError(f"a mask is {layer.dtype}; it must have whole numbers from 0 to 65535")
        return value_pairs(layer)

    def pixels(self, values: str) -> np.ndarray:
        layers = values.split(SEPARATOR)
        if len(layers) < len(self.classes):
            return super().pixels(values)
        marked = [
            sum(
                count
                for value, count in parse_pairs(layer)
                if (bool(value) if self.values is None else self.values[value] == 1)
            )
            for layer in layers
        ]
        return np.array(marked, np.int64)

    def problems(self, scan: pd.DataFrame, exif: str | None = None) -> list[str]:
        read = scan[scan["dtype"].notna()].drop_duplicates(["image", "mask"])
        numbered = ~read["values"].str.contains(SEPARATOR) & (len(self.classes) > 1)
        if numbered.any():
            return number_problems(read[numbered], self.classes, self.ignore_index, self.values, exif)
        problems = size_problems(read, exif)
        found: dict[int, str] = {}  # value -> first mask
        for row in read.itertuples():
            for layer in row.values.split(SEPARATOR):
                for value, _ in parse_pairs(layer):
                    found.setdefault(value, row.mask)
        problems += self._value_problems(found)
        if not problems and len(read) and not sum(self.pixels(values).sum() for values in read["values"]):
            problems.append("no mask has a pixel of a class: there is nothing to learn")
        return problems

    def _value_problems(self, found: Mapping[int, str]) -> list[str]:
        if self.values is not None:
            problems = [
                f"value {value} in {name} is not in data.mask_values: add it"
                for value, name in found.items()
                if value not in self.values
            ]
            wrong = {value: number for value, number in self.values.items() if number not in (0, 1, self.ignore_index)}
            return problems + [
                f"data.mask_values: {value} becomes {number}, which is neither 0, 1 nor data.ignore_index "
                f"({self.ignore_index})"
                for value, number in wrong.items()
            ]
        others = sorted(found.keys() - {0})
        if len(others) < 2:
            return []
        shown = [0, *others[: MOST_VALUES - 2], others[-1]] if len(others) > MOST_VALUES else [0, *others]
        example = ", ".join(f"{value}: {int(value != 0)}" for value in shown)
        advice = "for numbers such as shares set data.masks=soft; " if len(others) > MOST_VALUES else ""
        return [
            f"the masks have the values {some([0, *others], 10)}; without data.mask_values they must have 0 and one "
            f"other value: {advice}write which is the class and which is ignored, such as mask_values: {{{example}}}, "
            f"or {others[-1]}: {self.ignore_index} to ignore it"
        ]


@dataclass(frozen=True)
class SoftMasks(ClassMasks):
    """Numbers from 0 to 1 per class and pixel: stored values divided by `scale` (None: 255, 65535, or 1 for floats).

    NaN is ignored.
    """

    kind = "soft"

    def setting_problem(self) -> str:
        if self.encoding != "files" or self.values is not None:
            return "data.masks=soft needs files of numbers: leave out data.mask_encoding and data.mask_values"
        if self.scale is not None and not self.scale > 0:
            return f"data.mask_scale is {self.scale!r}; it must be a number above 0"
        return ""

    def _one_file(self, path: Path) -> np.ndarray:
        layers = super()._one_file(path)
        if len(layers) < len(self.classes):
            raise ImageError(f"{path} has one channel, but there are {len(self.classes)} classes")
        return layers

    def _convert(self, stored: np.ndarray, path: Path) -> np.ndarray:
        scaled = stored.astype(np.float32) / np.float32(
            default_scale(stored.dtype) if self.scale is None else self.scale
        )
        return np.where(np.isnan(scaled), np.float32(self.ignore_index), scaled)

    def _layer_figures(self, layer: np.ndarray) -> str:
        """Minimum, maximum and sum of the stored values, and their default scale."""
        known = layer[~np.isnan(layer)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        return f"{low}:{high}:{float(known.sum(dtype=np.float64))}:{default_scale(layer.dtype)}"

    def _parse(self, values: str) -> np.ndarray:
        """Minimum, maximum and sum (C, 3) of the numbers from 0 to 1."""
        figures = np.array([layer.split(":") for layer in values.split(SEPARATOR)], np.float64)
        return figures[:, :3] / (figures[:, 3:] if self.scale is None else self.scale)

    def pixels(self, values: str) -> np.ndarray:
        """Sum of the numbers of each class."""
        return self._parse(values)[:, 2]

    def problems(self, scan: pd.DataFrame, exif: str | None = None) -> list[str]:
        read = scan[scan["dtype"].notna()].drop_duplicates(["image", "mask"])
        problems = size_problems(read, exif)
        outside = [
            f"{row.mask} has values from {low:.4g} to {high:.4g}"
            for row in read.itertuples()
            for low, high, _ in self._parse(row.values)
            if low < 0 or high > 1
        ]
        if outside:
            more = f" (and {len(outside) - 1:,} more)" if len(outside) > 1 else ""
            problems.append(f"{outside[0]}{more} after data.mask_scale; they must be within 0 to 1")
        largest = max((high for values in read["values"] for _, high, _ in self._parse(values)), default=0.0)
        if 0 < largest < FAINT:
            problems.append(
                f"no mask has a value above {largest:.2g}, where 1 is expected: set data.mask_scale to the stored "
                "value that stands for 1.0, such as 1 or 255"
            )
        return problems


def encode_layers(layers: np.ndarray) -> bytes:
    """Encode a mask per class (C, H, W) uint8 or uint16 as an image file: PNG for one class, otherwise TIFF."""
    import cv2
    import tifffile

    if len(layers) == 1:
        return cv2.imencode(".png", layers[0])[1].tobytes()
    file = io.BytesIO()
    tifffile.imwrite(file, layers, photometric="minisblack", compression="zlib", metadata={"axes": "CYX"})
    return file.getvalue()


def _one_channel(path: Path) -> np.ndarray:
    mask = decode_mask(path)
    if mask.ndim != 2:
        raise ImageError(f"{path}: the mask of a class must have one channel, this one has {mask.shape[2]}")
    return mask


def _image_size(image: Path) -> tuple[int, int]:
    size = stored_size(image)
    if size == (0, 0):
        raise ImageError(f"{image}: its size cannot be read, which an empty mask or a run-length code needs")
    return size
