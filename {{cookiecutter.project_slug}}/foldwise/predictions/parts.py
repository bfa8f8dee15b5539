"""Parts of a prediction that is being written: what one process has added so far, image by image.

Any number of processes can add to one unfinished folder, since each has a part, whose files nobody else touches. An
interrupted prediction goes on with new parts, in as many processes as it likes; whatever lies in the folder counts.
"""

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.files import write_atomic
from foldwise.predictions.schema import INDEX_COLUMNS, MEMBER, PredictionsError
from foldwise.tasks.classes import ROUNDING

BLOCK = 4096  # rows that are put on disk together
NAME = "part-{:03d}"


class Part:
    """What writing rows and writing maps share; a part can be handed to another process before its first row.

    Args:
        folder: unfinished, and only read and written by parts.
        number: no other part of the folder has it.
        columns: names of the values.
    """

    def __init__(self, folder: Path, number: int, columns: Sequence[str]) -> None:
        self.folder, self.number, self.columns = folder, number, list(columns)
        self.count = 0  # files written

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's prediction of one image."""
        raise NotImplementedError

    def close(self) -> None:
        """Put on disk what is not there yet."""

    @classmethod
    def read_all(cls, folder: Path) -> pd.DataFrame:
        """The rows or the index of all parts, in the order of parts and within them as added."""
        raise NotImplementedError


class RowPart(Part):
    """Rows in blocks, `part-<number>-<block>.parquet`: at most one block is lost by a kill."""

    def __init__(self, folder: Path, number: int, columns: Sequence[str]) -> None:
        super().__init__(folder, number, columns)
        self.waiting: list[tuple[tuple[str, int, str, str], np.ndarray]] = []

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's values (C,)."""
        self.waiting.append(((id, fold, snapshot, view), probability))
        if len(self.waiting) == BLOCK:
            self.close()

    def close(self) -> None:
        if not self.waiting:
            return
        frame = pd.DataFrame([key for key, _ in self.waiting], columns=["id", *MEMBER])
        frame[self.columns] = np.stack([values for _, values in self.waiting]).astype(np.float32)
        with write_atomic(self.folder / f"{NAME.format(self.number)}-{self.count:06d}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
        self.count += 1
        self.waiting = []

    @classmethod
    def read_all(cls, folder: Path) -> pd.DataFrame:
        frames = [pd.read_parquet(path) for path in find_parts(folder)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["id", *MEMBER])


class MapPart(Part):
    """Maps in `maps/`, and for each that is whole a line of the index in `part-<number>.jsonl`."""

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's probability (C, H, W): float in [0, 1], or uint8 as stored.

        Raises:
            PredictionsError: another number of columns, NaN, or outside [0, 1].
        """
        values = self._checked(id, probability)
        name = NAME.format(self.number)
        file = f"maps/{name}-{self.count:06d}.npz"
        _write_map(self.folder / file, values)
        row = dict(zip(INDEX_COLUMNS, (id, int(fold), snapshot, view, file, *values.shape[1:]), strict=True))
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        self.count += 1

    def _checked(self, id: str, probability: np.ndarray) -> np.ndarray:
        """(C, H, W) uint8."""
        columns = len(self.columns)
        if probability.ndim != 3 or len(probability) != columns:
            raise PredictionsError(self.folder, [f"{id}: the map is {probability.shape} and not ({columns}, H, W)"])
        if probability.dtype == np.uint8:
            return probability
        low, high = float(probability.min()), float(probability.max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise PredictionsError(self.folder, [f"{id}: the map has NaN or values outside 0 to 1"])
        return np.rint(probability.clip(0, 1) * 255).astype(np.uint8)

    @classmethod
    def read_all(cls, folder: Path) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for path in find_parts(folder):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a last line that was cut off has no end
            rows += [json.loads(line) for line in lines]
        # Maps that a finish which was killed had renamed already are predicted again.
        return pd.DataFrame([row for row in rows if (folder / row["file"]).exists()], columns=INDEX_COLUMNS)


def find_parts(folder: Path) -> list[Path]:
    """The files of all parts but the maps, in their order."""
    return sorted(folder.glob("part-*"))


def next_number(folder: Path) -> int:
    """A number that no part has left files under."""
    return 1 + max((int(re.findall(r"\d+", path.name)[0]) for path in find_parts(folder)), default=-1)


def _write_map(path: Path, probability: np.ndarray) -> None:
    """As np.savez_compressed, whose compression takes five times as long for a quarter less."""
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("probability.npy", "w") as file:
        np.lib.format.write_array(file, probability, allow_pickle=False)
