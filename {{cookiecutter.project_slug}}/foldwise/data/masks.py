"""Masks as they are stored: a class number per pixel. Others are in `class_masks`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.images import map_mask, read_mask
from foldwise.data.mask_problems import number_problems, parse_pairs, value_pairs
from foldwise.errors import Refusal

SEPARATOR = ";"  # between the cells of a row with several mask columns


@dataclass(frozen=True)
class StoredMasks:
    """Masks with a class number per pixel, one file per image.

    Args:
        classes: their names.
        values: class number of each stored value, `data.mask_values`; None: masks store class numbers.
        encoding, scale: of the masks per class below.
        ignore_index: marks pixels that are neither trained nor scored.
    """

    classes: tuple[str, ...] = ()
    values: Mapping[int, int] | None = None
    encoding: str = "files"
    scale: float | None = None
    ignore_index: int = 255

    kind = ""  # part of the key of a scan

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", check_mask_values(self.values))
        if problem := self.setting_problem():
            raise Refusal(problem)

    def setting_problem(self) -> str:
        if self.encoding != "files" or self.scale is not None:
            return "data.mask_encoding and data.mask_scale are for masks per class: set data.masks=overlapping or soft"
        return ""

    def read(self, cells: Sequence[str], root: Path, image: Path) -> np.ndarray:
        """Read a mask: class numbers (H, W); a mask per class (C, H, W), 0 and 1 or numbers from 0 to 1.

        Ignored pixels have the ignore index. `image` gives the size where the cells do not.
        """
        mask = read_mask(root / cells[0])
        return mask if self.values is None else map_mask(mask, self.values, root / cells[0])

    def figures(self, cells: Sequence[str], root: Path, image: Path) -> dict[str, Any]:
        """Measure a mask as stored: height, width, and `value:pixels` pairs, which do not depend on the classes."""
        mask = read_mask(root / cells[0])
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
        return number_problems(scan, self.classes, self.ignore_index, self.values, exif)


def check_mask_values(values: Any) -> dict[int, int] | None:
    """Check `data.mask_values`; refuse anything but stored values and class numbers, each 0 to 65535."""
    if values is None:
        return None
    pairs = dict(values) if isinstance(values, Mapping) else {}
    keys = [int(key) if str(key).isdecimal() else key for key in pairs]  # JSON has them as text
    numbers = [*keys, *pairs.values()]
    if not numbers or not all(type(number) is int and 0 <= number <= 65535 for number in numbers):
        raise Refusal(
            f"data.mask_values is {values!r}; it must be null or map stored values to class numbers, such as "
            "{0: 0, 255: 1}"
        )
    return dict(zip(keys, pairs.values(), strict=True))
