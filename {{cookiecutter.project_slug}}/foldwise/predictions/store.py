"""Prediction folders: the one interface between models, folds, people and pipelines.

A prediction is a folder, written once and whole. Rows are (id, member): a member is a (fold, snapshot, view), that is
the model of a fold (-2: a full fit, of every row), one of its snapshots, and one view of the image (`mean` when views
were averaged). Averaging over members comes last, since what is fitted out of fold (calibration, stacking) applies to
each member alone.

    predictions.json      what it is, see `Header`
    predictions.parquet   rows: id (text), fold (integer), snapshot (text), view (text), and the values (float columns)
    index.parquet         maps: id, fold, snapshot, view, file, height, width
    maps/000000.npz       maps: one array "probability" (C, H, W) uint8, probability = value / 255

What the values are, and what they must be, says the `task` (see `foldwise.tasks`), whose `kind` is rows or maps: of
multiclass and multilabel rows of probabilities, of segmentation maps of them.

`split` says how rows and members go together: `oof` rows are each predicted by the model that did not see them, so an
id has one fold; a `test` prediction has every id from every member.

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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import new_folder, read_json, write_json
from foldwise.predictions.members import merge
from foldwise.predictions.schema import (
    FILES,
    HEADER,
    Header,
    PredictionsError,
    frame_problems,
    header_problems,
    map_file_problems,
    members_of,
    raise_problems,
    row_columns,
)
from foldwise.predictions.writers import MapWriter, with_members


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
    header = with_members(header, frame)
    frame[header.columns] = header.meaning.clip(frame[header.columns].to_numpy(np.float32))
    with new_folder(folder) as temporary:
        frame.to_parquet(temporary / FILES["rows"], index=False)
        write_json(temporary / HEADER, asdict(header))


def read_header(folder: Path) -> Header:
    """The sidecar of a prediction folder.

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
    problems = frame_problems(frame, header)
    found, said = members_of(frame), sorted((m["fold"], m["snapshot"], m["view"]) for m in header.members)
    if not problems and found != said:
        problems.append(f"the members of {HEADER} are {said} and those of {path.name} {found}")
    if header.kind == "maps" and not problems:
        problems += map_file_problems(folder, frame)
    raise_problems(folder, problems)
    if header.kind == "rows":
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
            probability = _read_map(predictions.folder, row, len(predictions.columns))
            yield MapRow(row.id, row.fold, row.snapshot, row.view, probability.astype(np.float32) / 255)


def iter_average_maps(predictions: Predictions, ids: Sequence[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """(id, probability (C, H, W) float32) averaged over the members, one image at a time; as `iter_maps`."""
    current, total, count = None, np.zeros(0, np.float32), 0
    for row in iter_maps(predictions, ids):
        if row.id != current:
            if current is not None:
                yield current, total / count
            current, total, count = row.id, row.probability, 1
        else:
            total, count = total + row.probability, count + 1
    if current is not None:
        yield current, total / count


def merge_folders(shards: Sequence[Path], folder: Path, ids: Sequence[str]) -> None:
    """Put together the prediction folders of several ranks or folds as a new one, in the order of `ids`.

    Maps are copied one at a time, as they are.

    Raises:
        PredictionsError: a shard is not valid, they are not of one task and columns, or as `merge`.
    """
    parts = [read_predictions(shard) for shard in shards]
    header = parts[0].header
    for part in parts[1:]:
        for name in ("split", "task", "columns", "run", "folds_hash", "tta"):
            if getattr(part.header, name) != getattr(header, name):
                raise PredictionsError(part.folder, [f"its {name} is not that of {parts[0].folder}"])
    frame = merge([part.frame.assign(part=index) for index, part in enumerate(parts)], ids)
    if header.kind == "rows":
        return write_predictions(folder, frame.drop(columns="part"), header)
    with MapWriter(folder, header) as writer:
        for row in frame.itertuples():
            probability = _read_map(parts[row.part].folder, row, len(header.columns))
            writer.add(row.id, row.fold, row.snapshot, row.view, probability)


def _read_map(folder: Path, row: Any, columns: int) -> np.ndarray:
    """The (C, H, W) uint8 map of an index row."""
    try:
        with np.load(folder / row.file, allow_pickle=False) as arrays:
            values = arrays["probability"]
    except Exception as error:  # zipfile, zlib, numpy and the file system each have their own
        raise PredictionsError(folder, [f"{row.file} (id {row.id}) cannot be read: {error}"]) from error
    if values.dtype != np.uint8 or values.shape != (columns, row.height, row.width):
        said = (columns, row.height, row.width)
        raise PredictionsError(folder, [f"{row.file} (id {row.id}) is {values.dtype} {values.shape}, not uint8 {said}"])
    return values
