"""2.5D by file names: a slice with its neighbours in the channels."""

import re
from pathlib import Path

from foldwise.data.samples import Rows
from foldwise.data.units import Neighbours


class SlicesByName(Neighbours):
    """As `Neighbours`, for files such as p12_007.png: series p12, slice 7; the table needs no columns for it."""

    def __init__(self, mode: str = "stored", unit: str = "", order: str = "", reach: int = 1) -> None:
        super().__init__(mode, unit, order, reach)
        self.columns = []

    def positions(self, rows: Rows) -> dict[tuple[str, int], int]:
        found = {}
        for row, name in enumerate(rows["image"]):
            match = re.fullmatch(r"(.+)_(\d+)", Path(name).stem)
            if match is None:
                raise ValueError(f"{name} has no number of a slice, as in p12_007.png")
            found[match[1], int(match[2])] = row
        return found
