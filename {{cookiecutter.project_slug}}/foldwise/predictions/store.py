"""Prediction folders: the one interface between models, folds, people and pipelines.

A prediction is a folder, written once and whole. Rows are (id, member): a member is a (fold, snapshot, view), that is
the model of a fold (-2: the full fit), one of its snapshots, and one view of the image (`mean` when views were
averaged). Averaging over members comes last, since what is fitted out of fold (calibration, stacking) applies to each
member alone.

    predictions.json      what it is, see `Header`
    predictions.parquet   rows: id (text), fold (integer), snapshot (text), view (text), and the values (float columns)
    index.parquet         maps: id, fold, snapshot, view, file, height, width
    maps/000000.npz       maps: one array "probability" (C, H, W) uint8, probability = value / 255

The `task` (see `foldwise.tasks`) says what the values mean and whether they are rows (multiclass, multilabel) or maps
(segmentation). `split` says how rows and members go together: an `oof` row is predicted by the models that did not see
it, so an id has one fold; a `test` prediction has every id from every member.

Anybody's pipeline can write one with pandas alone:

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
    """A checked prediction: `frame` has the rows, or the index of the maps."""

    folder: Path
    header: Header
    frame: pd.DataFrame

    @property
    def columns(self) -> list[str]:
        return list(self.header.columns)


class MapRow(NamedTuple):
    """One member's map of one image; `probability` (C, H, W) float32."""

    id: str
    fold: int
    snapshot: str
    view: str
    probability: np.ndarray


def write_predictions(folder: Path, frame: pd.DataFrame, header: Header) -> None:
    """Write rows (id, fold, snapshot, view, and the values, a float column each) as a new prediction folder.

    Raises:
        PredictionsError: everything that is wrong with the rows; nothing is written then.
        Refusal: the folder exists.
    """
    raise_problems(folder, header_problems(asdict(header)))
    frame = frame[row_columns(frame, header, folder)].reset_index(drop=True)
    raise_problems(folder, frame_problems(frame, header))
    frame[header.columns] = header.meaning.clip(frame[header.columns].to_numpy(np.float32))
    with new_folder(folder) as temporary:
        frame.to_parquet(temporary / FILES["rows"], index=False)
        write_json(temporary / HEADER, asdict(with_members(header, frame)))


def read_header(folder: Path) -> Header:
    """Read the sidecar of a prediction folder.

    Raises:
        PredictionsError: not there, not JSON, of another version, or keys missing or of another type.
    """
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
    """Read and check a prediction folder.

    Rows: ids unique within each member, values that the task can have, columns and members as the sidecar says, every
    id from the members it should have. Maps: the same of the index, and that every map file is there; the maps are
    checked as they are read (`iter_maps`).

    Raises:
        PredictionsError: everything that is wrong.
    """
    folder = Path(folder)
    header = read_header(folder)
    path = folder / FILES[header.kind]
    if not path.is_file():
        raise PredictionsError(folder, [f"there is no {path.name}, which {HEADER} needs for {header.task}"])
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise PredictionsError(folder, [f"{path.name} cannot be read ({error})"]) from error
    frame = frame[row_columns(frame, header, folder)].reset_index(drop=True)
    raise_problems(folder, frame_problems(frame, header))
    found, declared = members_of(frame), sorted((m["fold"], m["snapshot"], m["view"]) for m in header.members)
    if found != declared:
        raise PredictionsError(folder, [f"the members of {HEADER} are {declared} and those of {path.name} {found}"])
    if header.kind == "maps":
        raise_problems(folder, map_file_problems(folder, frame))
    else:
        frame[header.columns] = header.meaning.clip(frame[header.columns].to_numpy())
    return Predictions(folder, header, frame)


def iter_maps(predictions: Predictions, ids: Sequence[str] | None = None) -> Iterator[MapRow]:
    """The maps of a prediction, one at a time, an image's members one after the other.

    Args:
        ids: the images, in this order; None: all, in the order of the index.

    Raises:
        PredictionsError: an id is not there, or a map cannot be read or has another size than the index says.
    """
    groups = predictions.frame.groupby("id", sort=False).indices
    for id in groups if ids is None else ids:
        if id not in groups:
            raise PredictionsError(predictions.folder, [f"there is no prediction for id {id}"])
        for row in predictions.frame.iloc[groups[id]].itertuples():
            probability = read_map(predictions.folder, row, len(predictions.columns))
            yield MapRow(row.id, row.fold, row.snapshot, row.view, probability.astype(np.float32) / 255)


def iter_average_maps(predictions: Predictions, ids: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """(id, probability (C, H, W) float32) averaged over the members, one image at a time; as `iter_maps`."""
    for id, rows in groupby(iter_maps(predictions, ids), key=lambda row: row.id):
        total: Any = 0
        count = 0
        for row in rows:
            total, count = total + row.probability, count + 1
        yield id, total / count


def iter_side_by_side(
    predictions: Sequence[Predictions], ids: Sequence[str], fold: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, maps (M, C, H, W) float32) of M predictions, averaged over snapshots and views; as `iter_maps`.

    Args:
        fold: whose models predicted; None: those of all folds, averaged.
    """
    if fold is not None:
        predictions = [replace(each, frame=each.frame[each.frame["fold"] == fold]) for each in predictions]
    for rows in zip(*(iter_average_maps(each, ids) for each in predictions), strict=True):
        yield rows[0][0], np.stack([probability for _, probability in rows])


def read_map(folder: Path, row: Any, columns: int) -> np.ndarray:
    """The (C, H, W) uint8 map of an index row."""
    try:
        with np.load(folder / row.file, allow_pickle=False) as arrays:
            values = arrays["probability"]
    except Exception as error:  # zipfile, zlib, numpy and the file system each have their own
        raise PredictionsError(folder, [f"{row.file} (id {row.id}) cannot be read: {error}"]) from error
    if values.dtype != np.uint8 or values.shape != (columns, row.height, row.width):
        wanted = (columns, row.height, row.width)
        found = f"{values.dtype} {values.shape}"
        raise PredictionsError(folder, [f"{row.file} (id {row.id}) is {found}, not uint8 {wanted}"])
    return values


def size_problems(predictions: Predictions, first: Predictions) -> list[str]:
    """Maps of another size than those of the `first` predictions, of the same ids."""
    sizes = [
        each.frame.drop_duplicates("id").set_index("id")[["height", "width"]].sort_index()
        for each in (first, predictions)
    ]
    different = (sizes[0] != sizes[1]).any(axis=1)
    return listed(f"maps have another size than in {first.folder}", different.index[different])


def average_members(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Average over the members: id and the value columns, one row an id, in the order of their first rows."""
    return frame.groupby("id", sort=False)[list(columns)].mean().reset_index()


def sort_rows(frame: pd.DataFrame, order: pd.Series) -> pd.DataFrame:
    """The rows by their numbers `order`, those of one number by member."""
    keys = pd.concat([order.rename("order"), frame[MEMBER]], axis=1).sort_values(["order", *MEMBER], kind="stable")
    return frame.loc[keys.index].reset_index(drop=True)


def class_shares(frame: pd.DataFrame, header: Header) -> pd.Series:
    """Share of ids for which each class is predicted: the most probable, or if not exclusive from 0.5 on."""
    average = average_members(frame, header.columns)[header.columns].to_numpy()
    if not header.meaning.exclusive:
        return pd.Series((average >= 0.5).mean(axis=0), header.columns)
    counts = np.bincount(average.argmax(axis=1), minlength=len(header.columns))
    return pd.Series(counts / len(average), header.columns)
