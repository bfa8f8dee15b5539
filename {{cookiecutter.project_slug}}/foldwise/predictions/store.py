"""Prediction folders: the one interface between models, folds, people and pipelines.

A prediction is a folder, written once and whole. It has one row per id and member. A member is a (fold, snapshot,
view): the model of a fold (-2: the full fit), one of its snapshots, and one view of the image (`mean` when views were
averaged). Averaging over members comes last, because calibration and stacking are fitted out of fold and apply to each
member separately.

    predictions.json      the sidecar, see `Header`
    predictions.parquet   rows, vectors: id (text), fold (integer), snapshot (text), view (text), float columns;
                          boxes: the same and class (text), score, x0, y0, x1, y1 in pixels of the picture (floats), a
                          row a box; a member that found nothing has a row of class "" and NaN
    index.parquet         maps: id, fold, snapshot, view, file, height, width
    maps/000000.npz       maps: one array "probability" (C, H, W) uint8, probability = value / 255

The `task` (see `foldwise.tasks`) defines the values, and whether they are rows (multiclass, multilabel), maps
(segmentation), vectors (retrieval) or boxes (detection). With split `oof`, each id is predicted only by its held-out
fold, or vectors by every fold, to be searched among; with split `test`, by every member.

Any pipeline can write a prediction folder with pandas alone:

    folder = Path("predictions/from-a-friend")
    folder.mkdir(parents=True)
    frame = pd.DataFrame({"id": ids, "fold": 0, "snapshot": "last", "view": "identity"})     # ids are text
    frame[["cat", "dog"]] = probabilities                                                      # (N, 2) in [0, 1]
    frame.to_parquet(folder / "predictions.parquet")
    header = {"schema_version": 2, "split": "test", "task": "multiclass", "kind": "rows", "columns": ["cat", "dog"],
              "run": "friend", "folds_hash": None, "tta": {"views": ["identity"], "mean": "arithmetic"},
              "created_by": "a friend", "members": [{"fold": 0, "snapshot": "last", "view": "identity"}]}
    (folder / "predictions.json").write_text(json.dumps(header))
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import new_folder, read_json, write_json
from foldwise.predictions.schema import (
    FILES,
    HEADER,
    MEMBER,
    Header,
    PredictionsError,
    clip_values,
    frame_problems,
    header_problems,
    listed,
    map_file_problems,
    members_of,
    raise_problems,
    row_columns,
    with_members,
)


@dataclass(frozen=True)
class Predictions:
    """A checked prediction folder; `frame` has the rows, or the index of the maps."""

    folder: Path
    header: Header
    frame: pd.DataFrame

    @property
    def columns(self) -> list[str]:
        return list(self.header.columns)


class MapRow(NamedTuple):
    """One member's map (C, H, W) float32 of one image."""

    id: str
    fold: int
    snapshot: str
    view: str
    probability: np.ndarray


def write_predictions(folder: Path, frame: pd.DataFrame, header: Header) -> None:
    """Write rows (id, fold, snapshot, view, and one float column per value) as a new prediction folder.

    Raises:
        PredictionsError: lists all problems of the rows; nothing is written.
    """
    raise_problems(folder, header_problems(asdict(header)))
    frame = frame[row_columns(frame, header, folder)].reset_index(drop=True)
    raise_problems(folder, frame_problems(frame, header))
    frame = clip_values(frame, header, np.float32)
    with new_folder(folder) as temporary:
        frame.to_parquet(temporary / FILES["rows"], index=False)
        write_json(temporary / HEADER, asdict(with_members(header, frame)))


def read_header(folder: Path) -> Header:
    """Read the sidecar of a prediction folder; raise PredictionsError with all its problems."""
    path = Path(folder) / HEADER
    if not path.is_file():
        raise PredictionsError(folder, [f"there is no {HEADER}, so this is not a prediction folder"])
    try:
        values = read_json(path)
    except Refusal as error:
        raise PredictionsError(folder, [str(error)]) from error
    raise_problems(folder, header_problems(values))
    return Header(**{item.name: values[item.name] for item in fields(Header)})


def read_predictions(folder: Path) -> Predictions:
    """Read a prediction folder; raise PredictionsError with all its problems.

    Ids must be unique within each member, values valid for the task, columns and members as in the sidecar, members
    complete for every id, and map files present. The maps themselves are checked when read (`iter_maps`).
    """
    folder = Path(folder)
    header = read_header(folder)
    path = folder / FILES[header.kind]
    if not path.is_file():
        raise PredictionsError(folder, [f"there is no {path.name}; the task {header.task} needs it"])
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise PredictionsError(folder, [f"{path.name} cannot be read ({error})"]) from error
    frame = frame[row_columns(frame, header, folder)].reset_index(drop=True)
    raise_problems(folder, frame_problems(frame, header))
    found, declared = members_of(frame), sorted((m["fold"], m["snapshot"], m["view"]) for m in header.members)
    if found != declared:
        raise PredictionsError(folder, [f"{HEADER} lists the members {declared}, but {path.name} has {found}"])
    if header.kind == "maps":
        raise_problems(folder, map_file_problems(folder, frame))
    else:
        frame = clip_values(frame, header)
    return Predictions(folder, header, frame)


def iter_maps(predictions: Predictions, ids: Sequence[str] | None = None) -> Iterator[MapRow]:
    """Yield one map at a time, all members of an image in a row; PredictionsError for a missing id or a bad map.

    Args:
        ids: which images, in which order; default: all, in index order.
    """
    groups = predictions.frame.groupby("id", sort=False).indices
    for id in groups if ids is None else ids:
        if id not in groups:
            raise PredictionsError(predictions.folder, [f"there is no prediction for id {id}"])
        for row in predictions.frame.iloc[groups[id]].itertuples():
            probability = read_map(predictions.folder, row, len(predictions.columns))
            yield MapRow(row.id, row.fold, row.snapshot, row.view, probability.astype(np.float32) / 255)


def iter_average_maps(predictions: Predictions, ids: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (id, probability (C, H, W) float32) averaged over members, one image at a time; as `iter_maps`."""
    for id, rows in groupby(iter_maps(predictions, ids), key=lambda row: row.id):
        total: Any = 0
        count = 0
        for row in rows:
            total, count = total + row.probability, count + 1
        yield id, total / count


def iter_side_by_side(
    predictions: Sequence[Predictions], ids: Sequence[str], fold: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (id, maps (M, C, H, W) float32) of M predictions, averaged over members (of one `fold`)."""
    if fold is not None:
        predictions = [replace(each, frame=each.frame[each.frame["fold"] == fold]) for each in predictions]
    for rows in zip(*(iter_average_maps(each, ids) for each in predictions), strict=True):
        yield rows[0][0], np.stack([probability for _, probability in rows])


def read_map(folder: Path, row: Any, columns: int) -> np.ndarray:
    """Read the (C, H, W) uint8 map of an index row."""
    try:
        with np.load(folder / row.file, allow_pickle=False) as arrays:
            values = arrays["probability"]
    except Exception as error:  # zipfile, zlib, numpy and the file system raise different types
        raise PredictionsError(folder, [f"{row.file} (id {row.id}) cannot be read: {error}"]) from error
    if values.dtype != np.uint8 or values.shape != (columns, row.height, row.width):
        found, expected = f"{values.dtype} {values.shape}", f"uint8 {(columns, row.height, row.width)}"
        raise PredictionsError(folder, [f"{row.file} (id {row.id}) is {found}, not {expected}"])
    return values


def size_problems(predictions: Predictions, first: Predictions) -> list[str]:
    """List ids whose maps differ in size from those in `first`; both have the same ids."""
    sizes = [
        each.frame.drop_duplicates("id").set_index("id")[["height", "width"]].sort_index()
        for each in (first, predictions)
    ]
    different = (sizes[0] != sizes[1]).any(axis=1)
    return listed(f"maps differ in size from those in {first.folder}", different.index[different])


def average_members(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Average over members: one row per id, in order of first occurrence, with id and value columns."""
    return frame.groupby("id", sort=False)[list(columns)].mean().reset_index()


def sort_rows(frame: pd.DataFrame, order: pd.Series) -> pd.DataFrame:
    """Sort rows by `order`, a number per row, then by member."""
    keys = pd.concat([order.rename("order"), frame[MEMBER]], axis=1).sort_values(["order", *MEMBER], kind="stable")
    return frame.loc[keys.index].reset_index(drop=True)


def class_shares(frame: pd.DataFrame, header: Header) -> pd.Series:
    """Share of ids for which each class is predicted: argmax, or from 0.5 on if not exclusive."""
    average = average_members(frame, header.columns)[header.columns].to_numpy()
    if not header.meaning.exclusive:
        return pd.Series((average >= 0.5).mean(axis=0), header.columns)
    counts = np.bincount(average.argmax(axis=1), minlength=len(header.columns))
    return pd.Series(counts / len(average), header.columns)
