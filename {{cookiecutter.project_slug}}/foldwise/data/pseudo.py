"""Pseudo labels as training rows: check the table that pseudo_label.py wrote, select the rows of each student.

The student of fold k is the model trained without fold k. It may only use its own rows: the targets of other students
come from models that saw fold k's labels. For the same reason, never compute anything over the rows of several
students: which rows another student has, and how many, depends on fold k's labels too. The student `full` trains on
every row and is never scored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.holdout import FULL
from foldwise.data.masks import StoredMasks
from foldwise.data.problems import TableError
from foldwise.data.samples import Samples, TableItems, require_columns
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.tasks import find_task

ROW, STUDENT = "row", "student"


def student_name(fold: int) -> str:
    return "full" if fold == FULL else str(fold)


@dataclass(frozen=True)
class Pseudo:
    """Checked pseudo rows of all students; `student` (N,) int64 is each row's fold, or FULL."""

    table: Table
    student: np.ndarray

    def of(self, fold: int) -> Table:
        rows = np.flatnonzero(self.student == fold)
        target = None if self.table.target is None else self.table.target[rows]
        return replace(self.table, frame=self.table.frame.iloc[rows].reset_index(drop=True), target=target)


@dataclass(frozen=True)
class JoinedTable(Table):
    """`real` rows, then pseudo rows, whose masks store what is trained; weights are not rescaled to mean 1."""

    real: int = 0
    pseudo_masks: StoredMasks = field(default_factory=StoredMasks)

    @property
    def weights(self) -> np.ndarray:
        return self.frame["weight"].to_numpy(np.float32)

    def read_mask(self, row: int) -> np.ndarray:
        if row < self.real:
            return super().read_mask(row)
        return self.pseudo_masks.read(self.mask_cells(row), self.root, self.image_path(row))


def provenance_path(table: Path | str) -> Path:
    """Path of the JSON file next to a pseudo-label table that records its runs and folds."""
    return Path(table).with_suffix(".json")


def masks_folder(table: Path | str) -> Path:
    """Path of the folder next to a pseudo-label table that holds its masks."""
    return Path(table).with_suffix("")


def read_pseudo(data: Mapping[str, Any], real: Table, folds: Iterable[int], folds_hash: str) -> Pseudo:
    """Read the table `data.pseudo`: it must fit the task, classes, folds and hash of the `real` training table."""
    path = Path(data["pseudo"])
    target = "mask" if find_task(real.task).field.spatial else list(real.classes)
    columns = Columns(id=ROW, target=target, weight="weight")
    ignored, meaning = real.masks.ignore_index, find_task(real.task)
    values = None if meaning.exclusive else {0: 0, 1: 1, ignored: ignored}
    masks = {"ignore_index": ignored, "values": values} if meaning.field.spatial else None
    table = read_table(path, real.task, real.root, columns, real.classes, masks=masks, exif=real.exif)
    provenance = provenance_path(path)
    made_with = read_json(provenance).get("folds_hash") if provenance.is_file() else None
    problems = []
    if made_with is None:
        problems.append(
            f"{provenance} is missing or has no folds_hash; pseudo_label.py and distill.py write it with the table"
        )
    elif made_with != folds_hash:
        problems.append(f"it was made with the folds {made_with}, but the folds are {folds_hash} now: make it again")
    if STUDENT not in table.frame:
        raise TableError(path, [*problems, f"there is no column {STUDENT!r}"])
    existing = sorted(fold for fold in set(folds) if fold >= 0)
    student = table.frame[STUDENT].astype(str).map({student_name(fold): fold for fold in [*existing, FULL]})
    unknown = student.isna()
    for name, value in zip(table.frame["id"][unknown], table.frame[STUDENT][unknown], strict=True):
        problems.append(f"row {name!r}: the student {value!r} is neither one of the folds {existing} nor full")
    problems += [f"the student {fold} has no rows" for fold in existing if not (student == fold).any()]
    if problems:
        raise TableError(path, problems)
    return Pseudo(table, student.to_numpy(np.int64))


def read_unlabelled(data: Mapping[str, Any], real: Table, samples: Samples) -> TableItems:
    """Read the rows of `data.test_table` that phases with `relabel` train on; their targets are NaN."""
    if samples.target_columns:
        names = ", ".join(samples.target_columns)
        raise Refusal(f"phases with relabel train on rows without targets, and the reader needs {names} of each")
    columns = Columns.from_config(data["columns"])
    table = read_table(
        data["test_table"], real.task, real.root, columns, real.classes, has_target=False, exif=real.exif
    )
    target = np.full((len(table), len(real.classes)), np.nan, np.float32)
    return TableItems.of(replace(table, frame=table.frame.assign(weight=1.0), target=target), samples)


def same_scene(frame: pd.DataFrame, held: pd.DataFrame) -> np.ndarray:
    """Find unlabelled images that share a file, group or unit with held-out rows, bool (N,).

    Training on them would leak scenes of the held-out fold, even though under pseudo labels.
    """
    result = np.zeros(len(frame), bool)
    for column in ("image", "group", "unit"):
        if column in frame and column in held:
            result |= frame[column].isin(held[column]).to_numpy()
    return result


def join_tables(real: Table, pseudo: Table, columns: Sequence[str] = ()) -> JoinedTable:
    """Join the training rows and one student's rows, with the `columns` that the reader declares."""
    target = None
    if real.target is not None and pseudo.target is not None:
        target = np.concatenate([real.target, pseudo.target])
    names = ["id", "image", "weight", *(["mask"] if target is None else []), *columns]
    require_columns(pseudo, columns)
    frame = pd.concat([real.frame.assign(weight=real.weights)[names], pseudo.frame[names]], ignore_index=True)
    return JoinedTable(
        frame,
        real.task,
        real.classes,
        real.root,
        target,
        pseudo.path,
        real.masks,
        exif=real.exif,
        real=len(real),
        pseudo_masks=pseudo.masks,
    )
