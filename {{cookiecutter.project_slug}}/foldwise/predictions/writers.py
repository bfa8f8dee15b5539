"""Writing prediction folders image by image, so that memory does not grow and an interruption loses nothing.

The folder appears, whole, when the `with` block ends. Until then everything lies in a temporary folder beside it: with
a `request` under a name that the same request finds again, else under a random one that goes with an error.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from foldwise.files import check_new, publish, read_json, write_json
from foldwise.predictions.parts import MapPart, Part, RowPart, find_parts, next_number
from foldwise.predictions.schema import (
    FILES,
    HEADER,
    MEMBER,
    Header,
    frame_problems,
    header_problems,
    members_of,
    raise_problems,
)
from foldwise.tasks import find_task

REQUEST = "request.json"


class Writer:
    """What writing rows and writing maps share.

    Args:
        folder: to make; it must not exist.
        header: `members` is filled in from what is written.
        request: plain values that say what is being predicted with what, `members` how many rows an id has. The
            temporary folder of an interrupted writer with an equal request is taken up: `done` has the ids that are
            whole in it. One of another request is dropped.
        ids: the order of the rows; None: as they were added.
    """

    part_type: ClassVar[type[Part]]

    def __init__(
        self,
        folder: Path,
        header: Header,
        request: Mapping[str, Any] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.header, self.request, self.ids = Path(folder), header, request, ids
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
        self.parts = next_number(self.temporary)
        self.own = self.part()
        return self

    def part(self) -> Part:
        """A new part of this prediction, which another process can add to and close while the block lasts."""
        self.parts += 1
        return self.part_type(self.temporary, self.parts - 1, self.header.columns)

    def add(self, id: str, fold: int, snapshot: str, view: str, probability: np.ndarray) -> None:
        """Add one member's prediction of one image; see the `add` of the parts."""
        self.own.add(id, fold, snapshot, view, probability)

    def _take_up(self, request: dict[str, Any]) -> None:
        path = self.temporary / REQUEST
        if not path.is_file() or read_json(path) != request:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir()
            write_json(path, request)
            return
        counts = self._read()["id"].value_counts()
        self.done = set(counts.index[counts == request["members"]])

    def _read(self) -> pd.DataFrame:
        """The rows or the index of all parts."""
        frame = self.part_type.read_all(self.temporary)
        if self.request is not None:  # an image that was interrupted between its members has been predicted again
            frame = frame.drop_duplicates(["id", *MEMBER], keep="last")
        if self.ids is not None:
            place = {id: number for number, id in enumerate(self.ids)}
            frame = frame.sort_values("id", key=lambda ids: ids.map(place), kind="stable")
        return frame.reset_index(drop=True)

    def _finish(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Turn the parts into what a prediction folder has; the rows or the index."""
        raise NotImplementedError

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.own.close()
            if kind is None:
                frame = self._finish(self._read())
                raise_problems(self.folder, frame_problems(frame, self.header))
                write_json(self.temporary / HEADER, asdict(with_members(self.header, frame)))
                for path in find_parts(self.temporary):
                    path.unlink()
                (self.temporary / REQUEST).unlink(missing_ok=True)
                publish(self.temporary, self.folder)
        finally:
            if self.request is None:
                shutil.rmtree(self.temporary, ignore_errors=True)


class RowWriter(Writer):
    """Writes a prediction of rows."""

    part_type = RowPart

    def _finish(self, frame: pd.DataFrame) -> pd.DataFrame:
        columns = self.header.columns
        frame[columns] = self.header.meaning.clip(frame[columns].to_numpy())
        frame.to_parquet(self.temporary / FILES["rows"], index=False)
        return frame


class MapWriter(Writer):
    """Writes a prediction of maps. `temporary` takes further files meanwhile."""

    part_type = MapPart

    def __enter__(self) -> Self:
        super().__enter__()
        (self.temporary / "maps").mkdir(exist_ok=True)
        return self

    def _finish(self, frame: pd.DataFrame) -> pd.DataFrame:
        names = [f"maps/{number:06d}.npz" for number in range(len(frame))]
        for old, new in zip(frame["file"], names, strict=True):
            (self.temporary / old).rename(self.temporary / new)
        for path in (self.temporary / "maps").glob("part-*"):
            path.unlink()  # of an image that was interrupted
        frame["file"] = names
        frame.to_parquet(self.temporary / FILES["maps"], index=False)
        return frame


WRITERS: dict[str, type[Writer]] = {"rows": RowWriter, "maps": MapWriter}  # by the kind of the task


def with_members(header: Header, frame: pd.DataFrame) -> Header:
    """The header with the members of the rows."""
    members = [dict(zip(MEMBER, member, strict=True)) for member in members_of(frame)]
    return Header(**{**asdict(header), "members": members})


def new_writer(
    folder: Path, header: Header, request: Mapping[str, Any] | None = None, ids: Sequence[str] | None = None
) -> Writer:
    """The writer of what a task stores; arguments as `Writer`."""
    return WRITERS[find_task(header.task).kind](folder, header, request, ids)
