"""Writers of prediction folders, image by image: memory does not grow, and an interruption loses almost nothing.

The finished folder appears when the `with` block ends. Until then everything is in a temporary folder next to it, in
shards, one per process. Resuming an interrupted prediction adds new shards, from any number of processes.
"""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from foldwise.files import check_new, publish, read_json, write_atomic, write_json
from foldwise.predictions.schema import (
    FILES,
    HEADER,
    INDEX_COLUMNS,
    MEMBER,
    Header,
    PredictionsError,
    clip_values,
    frame_problems,
    header_problems,
    listed,
    raise_problems,
    with_members,
)
from foldwise.predictions.store import read_map, read_predictions, sort_rows, write_predictions
from foldwise.tasks.classes import ROUNDING

REQUEST, BAD = "request.json", "bad_images.csv"
ONCE = ("id", "snapshot", "view")  # what an out-of-fold prediction has once; others have it of each fold
BLOCK = 4096  # rows per file of a shard


class RowShard:
    """Rows that one process adds to an unfinished folder; an empty shard can be sent to another process.

    They are written in blocks, `shard-<number>-<block>.parquet`; a kill loses at most one block.
    """

    def __init__(self, folder: Path, number: int, columns: Sequence[str]) -> None:
        self.folder, self.name, self.columns = folder, f"shard-{number:03d}", list(columns)
        self.blocks = 0  # written
        self.pending: list[tuple[tuple[str, int, str, str], np.ndarray]] = []

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's values (C,)."""
        self.pending.append(((id, fold, snapshot, view), probability))
        if len(self.pending) == BLOCK:
            self.close()

    def close(self) -> None:
        """Write pending rows to disk."""
        if not self.pending:
            return
        keys = pd.DataFrame([key for key, _ in self.pending], columns=["id", *MEMBER])
        values = np.stack([values for _, values in self.pending]).astype(np.float32)
        columns = self.columns or [f"e{index}" for index in range(values.shape[1])]  # vectors
        frame = keys.join(pd.DataFrame(values, columns=columns))  # at once: there may be thousands of columns
        with write_atomic(self.folder / f"{self.name}-{self.blocks:06d}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
        self.blocks += 1
        self.pending = []

    @staticmethod
    def read_all(folder: Path) -> pd.DataFrame:
        """Read the rows of all shards, shard by shard, in the order they were added."""
        frames = [pd.read_parquet(path) for path in _shard_files(folder)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["id", *MEMBER])

    @staticmethod
    def finish(folder: Path, frame: pd.DataFrame, header: Header) -> None:
        clip_values(frame, header).to_parquet(folder / FILES["rows"], index=False)


class MapShard:
    """As `RowShard`, for maps: files in `maps/`, and an index line in `shard-<number>.jsonl` for each complete map."""

    def __init__(self, folder: Path, number: int, columns: Sequence[str]) -> None:
        self.folder, self.name, self.columns = folder, f"shard-{number:03d}", list(columns)
        self.count = 0  # maps written

    def close(self) -> None:
        """Do nothing: maps are written at once."""

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's probability (C, H, W): float in [0, 1], or uint8 as stored; else PredictionsError."""
        values = self._as_stored(id, probability)
        file = f"maps/{self.name}-{self.count:06d}.npz"
        (self.folder / "maps").mkdir(exist_ok=True)
        _write_map(self.folder / file, values)
        row = dict(zip(INDEX_COLUMNS, (id, int(fold), snapshot, view, file, *values.shape[1:]), strict=True))
        with (self.folder / f"{self.name}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        self.count += 1

    def _as_stored(self, id: str, probability: np.ndarray) -> np.ndarray:
        columns = len(self.columns)
        if probability.ndim != 3 or len(probability) != columns:
            raise PredictionsError(self.folder, [f"{id}: the map is {probability.shape}, not ({columns}, H, W)"])
        if probability.dtype == np.uint8:
            return probability
        low, high = float(probability.min()), float(probability.max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise PredictionsError(self.folder, [f"{id}: the map has NaN or values outside 0 to 1"])
        return np.rint(probability.clip(0, 1) * 255).astype(np.uint8)

    @staticmethod
    def read_all(folder: Path) -> pd.DataFrame:
        """Read the index of all shards, shard by shard, in the order they were added."""
        rows: list[dict[str, Any]] = []
        for path in _shard_files(folder):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # drops a truncated last line
            rows += [json.loads(line) for line in lines]
        # Maps that were already renamed when `finish` was killed are predicted again.
        return pd.DataFrame([row for row in rows if (folder / row["file"]).exists()], columns=INDEX_COLUMNS)

    @staticmethod
    def finish(folder: Path, frame: pd.DataFrame, header: Header) -> None:
        """Rename the maps to their final names and write the index."""
        names = [f"maps/{number:06d}.npz" for number in range(len(frame))]
        for old, new in zip(frame["file"], names, strict=True):
            (folder / old).rename(folder / new)
        for path in (folder / "maps").glob("shard-*"):
            path.unlink()  # left by an interrupted image
        frame["file"] = names
        frame.to_parquet(folder / FILES["maps"], index=False)


Shard = RowShard | MapShard


class PredictionWriter:
    """Context manager that writes a prediction folder.

    Args:
        folder: must not exist.
        header: `members` is filled in from the rows.
        request: plain values that identify the prediction; `members` is the number of rows per id. A writer with the
            same request resumes an interrupted one, and `done` holds its finished ids; the leftovers of another request
            are deleted. None: not resumable, an error leaves nothing behind.
        ids: order of the rows; default: as added.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        request: Mapping[str, Any] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.header, self.request, self.ids = Path(folder), header, request, ids
        self.kind: type[Shard] = MapShard if header.meaning.kind == "maps" else RowShard
        self.done: set[str] = set()

    def __enter__(self) -> Self:
        raise_problems(self.folder, header_problems(asdict(self.header)))  # before hours of predicting, not after
        check_new(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.request is None:
            self.temporary = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.folder.name}-"))
        else:
            self.temporary = self.folder.with_name(f".{self.folder.name}.partial")
            self._resume(json.loads(json.dumps(self.request)))
        numbers = [int(re.findall(r"\d+", path.name)[0]) for path in _shard_files(self.temporary)]
        self.shards = 1 + max(numbers, default=-1)
        self.shard = self.new_shard()
        return self

    def new_shard(self) -> Shard:
        """Create a shard for another process to fill and close before the `with` block ends."""
        self.shards += 1
        return self.kind(self.temporary, self.shards - 1, self.header.columns)

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's prediction of one image; see the shards' `add`."""
        self.shard.add(id, fold, snapshot, view, probability)

    def _resume(self, request: dict[str, Any]) -> None:
        path = self.temporary / REQUEST
        # with a list of bad images the shards already have fallbacks, which are not predictions to keep
        if not path.is_file() or read_json(path) != request or (self.temporary / BAD).exists():
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir()
            write_json(path, request)
            return
        self.done = self.finished()

    def finished(self) -> set[str]:
        """Ids with all members in the closed shards; needs a request."""
        counts = self._read()["id"].value_counts()
        return set(counts.index[counts == self.request["members"]]) if self.request else set()

    def _read(self) -> pd.DataFrame:
        frame = self.kind.read_all(self.temporary)
        if self.request is not None:  # an image interrupted between its members was predicted again
            frame = frame.drop_duplicates(["id", *MEMBER], keep="last")
        if self.ids is not None:
            order = {id: number for number, id in enumerate(self.ids)}
            frame = frame.sort_values("id", key=lambda ids: ids.map(order), kind="stable")
        return frame.reset_index(drop=True)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.shard.close()
            if kind is None:
                frame = self._read()
                header = with_members(self.header, frame)
                self.kind.finish(self.temporary, frame, header)
                raise_problems(self.folder, frame_problems(frame, header))
                write_json(self.temporary / HEADER, asdict(header))
                for path in _shard_files(self.temporary):
                    path.unlink()
                (self.temporary / REQUEST).unlink(missing_ok=True)
                publish(self.temporary, self.folder)
        finally:
            if self.request is None:
                shutil.rmtree(self.temporary, ignore_errors=True)


def merge_folders(shards: Sequence[Path], folder: Path, ids: Sequence[str]) -> None:
    """Merge the prediction folders of several ranks or folds into a new one, in the order of `ids`; see `merge`.

    Their headers must agree. Maps are copied unchanged, one at a time.
    """
    parts = [read_predictions(shard) for shard in shards]
    header = parts[0].header
    for part in parts[1:]:
        for name in ("split", "task", "columns", "run", "folds_hash", "tta"):
            if getattr(part.header, name) != getattr(header, name):
                raise PredictionsError(part.folder, [f"its {name} differs from {parts[0].folder}"])
    key = ("id", *MEMBER) if header.kind == "vectors" or header.split == "test" else ONCE
    frame = merge([part.frame.assign(part=index) for index, part in enumerate(parts)], ids, key)
    if header.kind != "maps":
        return write_predictions(folder, frame.drop(columns="part"), header)
    with PredictionWriter(folder, header) as writer:
        for row in frame.itertuples():
            probability = read_map(parts[row.part].folder, row, len(header.columns))
            writer.add(row.id, row.fold, row.snapshot, row.view, probability)


def merge(frames: Sequence[pd.DataFrame], ids: Sequence[str], key: Sequence[str] = ONCE) -> pd.DataFrame:
    """Merge the rows of several ranks or folds, in the order of `ids`; refuse missing, unknown and duplicate ids."""
    frame = pd.concat(frames, ignore_index=True)
    order = {id: index for index, id in enumerate(ids)}
    problems = ["the requested ids are not unique"] if len(order) != len(ids) else []
    problems += listed("ids are missing", order.keys() - set(frame["id"]))
    problems += listed("ids are duplicated", frame["id"][frame.duplicated(list(key))])
    problems += listed("ids were not requested", set(frame["id"]) - order.keys())
    raise_problems("merging predictions", problems)
    return sort_rows(frame, frame["id"].map(order))


def _shard_files(folder: Path) -> list[Path]:
    """List the files of all shards in order, without the maps."""
    return sorted(folder.glob("shard-*"))


def _write_map(path: Path, probability: np.ndarray) -> None:
    """Like np.savez_compressed, but at level 1: five times as fast, for files a third larger."""
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("probability.npy", "w") as file:
        np.lib.format.write_array(file, probability, allow_pickle=False)
