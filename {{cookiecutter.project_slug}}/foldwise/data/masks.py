"""Masks as they are stored: a class number or a colour per pixel. Others are in `class_masks`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.images import map_mask, read_colors, read_mask
from foldwise.data.mask_problems import number_problems, parse_pairs, value_pairs
from foldwise.errors import Refusal

SEPARATOR = ";"  # between the cells of a row with several mask columns
IN_FILES = ("files", "colors")  # encodings whose cells are paths
COLOR = re.compile("#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class StoredMasks:
    """Masks with a class number per pixel, one file per image.

    Args:
        classes: their names.
        values: class number of each stored value, `data.mask_values`; None: masks store class numbers. Colours are
            0xRRGGBB.
        encoding: "files" or, for a colour per class, "colors"; others and `scale` are of the masks per class.
        ignore_index: marks pixels that are neither trained nor scored.
    """

    classes: tuple[str, ...] = ()
    values: Mapping[int, int] | None = None
    encoding: str = "files"
    scale: float | None = None
    ignore_index: int = 255

    kind = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", check_mask_values(self.values, self.encoding == "colors"))
        if problem := self.setting_problem():
            raise Refusal(problem)

    def setting_problem(self) -> str:
        if self.encoding == "colors" and self.values is None:
            return "data.mask_encoding=colors needs data.mask_values, such as {'#000000': 0, '#ff0000': 1}"
        if self.encoding not in IN_FILES or self.scale is not None:
            return "data.mask_encoding and data.mask_scale are for masks per class: set data.masks=overlapping or soft"
        return ""

    def read(self, cells: Sequence[str], root: Path, image: Path) -> np.ndarray:
        """Read a mask: class numbers (H, W); a mask per class (C, H, W), 0 and 1 or numbers from 0 to 1.

        Ignored pixels have the ignore index. `image` gives the size where the cells do not.
        """
        mask = self._numbers(root / cells[0])
        return mask if self.values is None else map_mask(mask, self.values, root / cells[0])

    def _numbers(self, path: Path) -> np.ndarray:
        return read_mask(path) if self.encoding == "files" else read_colors(path, list(self.values or ()))

    @property
    def reading(self) -> str:
        """What `figures` depends on besides the file."""
        colors = "".join(f"#{value:06x}" for value in self.values or ()) if self.encoding == "colors" else ""
        return self.kind + colors

    def figures(self, cells: Sequence[str], root: Path, image: Path) -> dict[str, Any]:
        """Measure a mask as stored: height, width, and `value:pixels` pairs, which do not depend on the classes."""
        mask = self._numbers(root / cells[0])
        return {"mask_height": mask.shape[0], "mask_width": mask.shape[1], "values": value_pairs(mask)}

    def pixels(self, values: str) -> np.ndarray:
        """The pixels of each class (C,), from the `values` of a scan."""
        pixels = np.zeros(len(self.classes), np.int64)
        for value, count in parse_pairs(values):
            number = value if self.values is None else self.values[value]
            if number < len(pixels):
                pixels[number] += count
        return pixels

    def problems(self, scan: pd.DataFrame, exif: str | None = None) -> list[str]:
        """List masks with another size than their image or unusable values."""
        return number_problems(scan, self.classes, self.ignore_index, self.values, exif, self.encoding == "colors")


def check_mask_values(values: Any, colors: bool = False) -> dict[int, int] | None:
    """Check `data.mask_values`: class numbers by stored value, or by colour as "#rrggbb" (converted) or 0xRRGGBB.

    Stored values and class numbers are 0 to 65535.
    """
    if values is None:
        return None
    pairs = dict(values) if isinstance(values, Mapping) else {}
    keys = [int(key) if str(key).isdecimal() else key for key in pairs]  # JSON has them as text
    if colors:
        keys = [int(str(key)[1:], 16) if COLOR.fullmatch(str(key)) else key for key in keys]
    good = all(_within(key, 0xFFFFFF if colors else 65535) for key in keys) and all(
        _within(number, 65535) for number in pairs.values()
    )
    if not pairs or not good:
        what, example = ("colours", "{'#000000': 0, '#ff0000': 1}") if colors else ("stored values", "{0: 0, 255: 1}")
        raise Refusal(
            f"data.mask_values is {values!r}; it must be null or map {what} to class numbers, such as {example}"
        )
    return dict(zip(keys, pairs.values(), strict=True))


def _within(number: Any, most: int) -> bool:
    return type(number) is int and 0 <= number <= most
