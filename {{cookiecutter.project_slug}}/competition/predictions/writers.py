"""Writing prediction folders image by image, so that memory does not grow and an interruption loses nothing.

The folder appears, whole, when the `with` block ends. Until then everything lies in a temporary folder beside it: with
a `request` under a name that the same request finds again, else under a random one that goes with an error.
"""

import json
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from competition.files import check_new, publish, read_json, write_atomic, write_json
from competition.predictions.schema import (
    HEADER,
    INDEX,
    INDEX_COLUMNS,
    MEMBER,
    ROUNDING,
    ROWS,
    Header,
    PredictionsError,
    frame_problems,
    header_problems,
    members_of,
    raise_problems,
)

BLOCK = 4096  # rows that are put on disk together
REQUEST, DONE = "request.json", "done.jsonl"


class Writer:
    """What writing rows and writing maps share.

    Args:
        folder: to make; it must not exist.
        header: `members` is filled in from what is written.
        request: plain values that say what is being predicted with what, `members` how many rows an id has. The
            temporary folder of an interrupted writer with an equal request is taken up: `done` has the ids that are
            whole in it. One of another request is dropped.
    """

    def __init__(self, folder: Path, header: Header, request: Mapping[str, Any] | None = None) -> None:
        self.folder, self.header, self.request = Path(folder), header, request
        self.done: set[str] = set()

    def __enter__(self) -> Self:
        raise_problems(self.folder, header_problems(asdict(self.header)))  # before hours of predicting, not after
        check_new(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.request is None:
            self.temporary = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.folder.name}-"))
        else:
            self.temporary = self.folder.with_name(f".{self.folder.name}.partial")
            self._take_up(json.loads(json.dumps(self.request)))
        return self

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's prediction of one image."""
        raise NotImplementedError

    def _take_up(self, request: dict[str, Any]) -> None:
        path = self.temporary / REQUEST
        if not path.is_file() or read_json(path) != request:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir()
            write_json(path, request)
            return
        self.done = self._read_done(int(request["members"]))

    def _read_done(self, members: int) -> set[str]:
        """Take the rows of whole images back; their ids."""
        raise NotImplementedError

    def _finish(self) -> pd.DataFrame:
        """Put the last pieces into the temporary folder; the rows or the index."""
        raise NotImplementedError

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                frame = self._finish()
                raise_problems(self.folder, frame_problems(frame, self.header))
                write_json(self.temporary / HEADER, asdict(with_members(self.header, frame)))
                (self.temporary / REQUEST).unlink(missing_ok=True)
                publish(self.temporary, self.folder)
        finally:
            if self.request is None:
                shutil.rmtree(self.temporary, ignore_errors=True)


class RowWriter(Writer):
    """Writes a classification prediction one row at a time."""

    def __enter__(self) -> Self:
        self.waiting: list[tuple[tuple[str, int, str, str], np.ndarray]] = []
        self.frames: list[pd.DataFrame] = []
        return super().__enter__()

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's probability (C,)."""
        self.waiting.append(((id, fold, snapshot, view), probability))
        if len(self.waiting) == BLOCK:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        frame = pd.DataFrame([key for key, _ in self.waiting], columns=["id", *MEMBER])
        frame[self.header.classes] = np.stack([values for _, values in self.waiting]).astype(np.float32)
        if self.request is not None:
            with write_atomic(self.temporary / f"block-{len(self.frames):06d}.parquet") as temporary:
                frame.to_parquet(temporary, index=False)
        self.frames.append(frame)
        self.waiting = []

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None and self.request is not None:
            self._flush()
        super().__exit__(kind, error, trace)

    def _read_done(self, members: int) -> set[str]:
        frames = [pd.read_parquet(path) for path in sorted(self.temporary.glob("block-*.parquet"))]
        counts = pd.concat([frame["id"] for frame in frames]).value_counts() if frames else pd.Series(dtype=int)
        done = set(counts.index[counts == members])
        self.frames = [frame[frame["id"].isin(done)] for frame in frames]
        return done

    def _finish(self) -> pd.DataFrame:
        self._flush()
        frame = pd.concat(self.frames, ignore_index=True)
        frame[self.header.classes] = frame[self.header.classes].clip(0, 1)
        frame.to_parquet(self.temporary / ROWS, index=False)
        for path in self.temporary.glob("block-*.parquet"):
            path.unlink()
        return frame


class MapWriter(Writer):
    """Writes a segmentation prediction one map at a time. `temporary` takes further files meanwhile."""

    def __enter__(self) -> Self:
        self.rows: list[dict[str, Any]] = []
        super().__enter__()
        (self.temporary / "maps").mkdir(exist_ok=True)
        return self

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's probability (C, H, W): float in [0, 1], or uint8 as stored.

        Raises:
            PredictionsError: another number of classes, NaN, or outside [0, 1].
        """
        file = f"maps/{len(self.rows):06d}.npz"
        _write_map(self.temporary / file, self._checked(id, probability))
        values = (id, fold, snapshot, view, file, *probability.shape[1:])
        self.rows.append(dict(zip(INDEX_COLUMNS, values, strict=True)))
        if self.request is not None:
            with (self.temporary / DONE).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(self.rows[-1]) + "\n")

    def _checked(self, id: str, probability: np.ndarray) -> np.ndarray:
        """(C, H, W) uint8."""
        classes = len(self.header.classes)
        if probability.ndim != 3 or len(probability) != classes:
            raise PredictionsError(self.folder, [f"{id}: the map is {probability.shape} and not ({classes}, H, W)"])
        if probability.dtype == np.uint8:
            return probability
        low, high = float(probability.min()), float(probability.max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise PredictionsError(self.folder, [f"{id}: the map has NaN or values outside 0 to 1"])
        return np.rint(probability.clip(0, 1) * 255).astype(np.uint8)

    def _read_done(self, members: int) -> set[str]:
        path = self.temporary / DONE
        # A last line that was cut off has no end, and its map is written again.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        rows = [json.loads(line) for line in lines]
        counts = Counter(row["id"] for row in rows)
        self.rows = [row for row in rows if counts[row["id"]] == members]
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        return {row["id"] for row in self.rows}

    def _finish(self) -> pd.DataFrame:
        (self.temporary / DONE).unlink(missing_ok=True)
        frame = pd.DataFrame(self.rows, columns=INDEX_COLUMNS)
        for name in {path.name for path in (self.temporary / "maps").iterdir()} - {Path(f).name for f in frame["file"]}:
            (self.temporary / "maps" / name).unlink()  # of an image that was interrupted
        frame.to_parquet(self.temporary / INDEX, index=False)
        return frame


def with_members(header: Header, frame: pd.DataFrame) -> Header:
    """The header with the members of the rows."""
    members = [dict(zip(MEMBER, member, strict=True)) for member in members_of(frame)]
    return Header(**{**asdict(header), "members": members})


def _write_map(path: Path, probability: np.ndarray) -> None:
    """As np.savez_compressed, whose compression takes five times as long for a quarter less."""
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("probability.npy", "w") as file:
        np.lib.format.write_array(file, probability, allow_pickle=False)
