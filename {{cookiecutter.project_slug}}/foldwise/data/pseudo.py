"""Pseudo labels as training rows: the table that pseudo_label.py wrote, checked, and the rows of each student.

The student of fold k is the model that is trained without fold k. It gets the rows with its own number and no others:
the targets of another student were made by models that had seen fold k's labels. Nothing may be computed over the rows
of several students either, since how many rows another student has, and which, depends on those labels too. The student
`full` is trained on every row, and nothing scores it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.holdout import FULL
from foldwise.data.samples import require_columns
from foldwise.data.table import Columns, Table, TableError, read_table
from foldwise.files import read_json
from foldwise.tasks import find_task

ROW, STUDENT = "row", "student"


def student_name(fold: int) -> str:
    """A student as tables write it: its fold, or full."""
    return "full" if fold == FULL else str(fold)


@dataclass(frozen=True)
class Pseudo:
    """Checked pseudo rows of all students; `student` (N,) int64 is the fold of the student that a row is for."""

    table: Table
    student: np.ndarray

    def of(self, fold: int) -> Table:
        """The rows of one student."""
        rows = np.flatnonzero(self.student == fold)
        target = None if self.table.target is None else self.table.target[rows]
        return replace(self.table, frame=self.table.frame.iloc[rows].reset_index(drop=True), target=target)


class JoinedTable(Table):
    """Real rows, then pseudo rows. The weight of a real row stays what it is without them."""

    @property
    def weights(self) -> np.ndarray:
        return self.frame["weight"].to_numpy(np.float32)


def provenance_path(table: Path | str) -> Path:
    """The file beside a table of pseudo labels that records the runs and folds that it was made from."""
    return Path(table).with_suffix(".json")


def masks_folder(table: Path | str) -> Path:
    """The folder beside a table of pseudo labels that holds its masks."""
    return Path(table).with_suffix("")


def read_pseudo(data: Mapping[str, Any], real: Table, folds: Iterable[int], folds_hash: str) -> Pseudo:
    """Read and check the table `data.pseudo`.

    Args:
        data: the `data` part of the config.
        real: the training table, whose task and classes the pseudo rows must have.
        folds: of the training rows; each of them must have a student.
        folds_hash: of these folds, with which the table must have been made.
    """
    path = Path(data["pseudo"])
    target = "mask" if find_task(real.task).field.spatial else list(real.classes)
    columns = Columns(id=ROW, target=target, weight="weight")
    table = read_table(path, real.task, real.root, columns, real.classes)
    origin = provenance_path(path)
    made_with = read_json(origin).get("folds_hash") if origin.is_file() else None
    problems = []
    if made_with is None:
        problems.append(f"{origin}, in which pseudo_label.py or distill.py records the folds, is not there")
    elif made_with != folds_hash:
        problems.append(f"it was made with the folds {made_with}, but the folds are {folds_hash} now: make it again")
    if STUDENT not in table.frame:
        raise TableError(path, [*problems, f"there is no column {STUDENT!r}"])
    existing = sorted(set(folds) - {-1})
    student = table.frame[STUDENT].astype(str).map({student_name(fold): fold for fold in [*existing, FULL]})
    unknown = student.isna()
    for name, value in zip(table.frame["id"][unknown], table.frame[STUDENT][unknown], strict=True):
        problems.append(f"row {name!r}: the student {value!r} is none of the folds {existing}, nor full")
    problems += [f"the student {fold} has no rows" for fold in existing if not (student == fold).any()]
    if problems:
        raise TableError(path, problems)
    return Pseudo(table, student.to_numpy(np.int64))


def join_tables(real: Table, pseudo: Table, columns: Sequence[str] = ()) -> JoinedTable:
    """The rows of the training table, then those of one student, with the `columns` that the reader declares."""
    target = None
    if real.target is not None and pseudo.target is not None:
        target = np.concatenate([real.target, pseudo.target])
    names = ["id", "image", "weight", *(["mask"] if target is None else []), *columns]
    require_columns(pseudo, columns)
    frame = pd.concat([real.frame.assign(weight=real.weights)[names], pseudo.frame[names]], ignore_index=True)
    return JoinedTable(frame, real.task, real.classes, real.root, target, pseudo.path)
