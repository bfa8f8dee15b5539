"""Pseudo labels of unlabelled images, for each fold's student its own.

A table of pseudo labels has one row for each pair of student and image:

    row         "<student>/<id>", unique
    id, image   of the unlabelled table
    student     the fold whose student is trained on it
    confidence  of the answer: the highest probability, of masks its mean over the pixels; multi-label: that of the
                least certain label
    weight      in the loss, beside a real row's 1
    <class>     one column a class, the target: 0 and 1, or probabilities
    mask        of maps, in place of these: path under the data root; see `pseudo.masks`
    labelled    of maps: the share of the pixels that have a class

Beside it, `<table>.json` says which runs made it, by which folds and rule, and what it holds; the masks lie in the
folder `<table>/`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.data.pseudo import ROW, STUDENT, masks_folder, provenance_path
from foldwise.errors import Refusal
from foldwise.files import check_new, new_folder, write_atomic, write_json
from foldwise.predictions.pseudo.masks import Masks
from foldwise.predictions.pseudo.rules import Rule, confidence
from foldwise.predictions.pseudo.student import Student
from foldwise.predictions.pseudo.tables import check_suffix, class_problems, write_table
from foldwise.predictions.pseudo.teachers import Teachers, open_teachers

COLUMNS = (ROW, "id", "image", STUDENT, "confidence", "weight")


def pseudo_label(
    runs: Sequence[Path],
    out: Path,
    rule: Rule,
    test: str | None = None,
    table: Path | None = None,
    weight: float = 1.0,
) -> list[Student]:
    """Write a table of pseudo labels, and beside it where they come from, and masks; all of it or nothing.

    Args:
        runs, test, table: as in `open_teachers`.
        out: the .csv or .parquet file to write; of masks under the data root.
        weight: of each row in the loss, beside a real row's 1.

    Returns:
        What each student gets.

    Raises:
        Refusal: whatever is wrong with runs, predictions or the rule, or a student gets no row; nothing is written.
    """
    check_suffix(out)
    check_new(out, provenance_path(out))
    if not 0 < weight < np.inf:
        raise Refusal(f"a weight of {weight:g} is not a number above 0")
    teachers = open_teachers(runs, test, table)
    masks = Masks(teachers, masks_folder(out)) if teachers.task.kind == "maps" else None
    problems = rule.problems(teachers.classes, teachers.task)
    problems += class_problems(teachers.classes, COLUMNS) if masks is None else masks.problems
    if problems:
        raise Refusal("\n".join(problems))
    origin = {"created_by": "pseudo_label.py", **teachers.describe(), "rule": rule.describe(), "weight": weight}
    folder = nullcontext(out) if masks is None else new_folder(masks_folder(out))
    with write_atomic(out) as table_file, write_atomic(provenance_path(out)) as origin_file, folder as temporary:
        parts = [
            label_rows(teachers, rule, fold) if masks is None else masks.label(rule, fold, temporary)
            for fold in teachers.folds
        ]
        students = [student for student, _ in parts]
        problems = [student.problem for student in students if student.problem]
        if problems:
            raise Refusal("\n".join(problems))
        frame = pd.concat([frame for _, frame in parts], ignore_index=True)
        ids = frame[STUDENT].astype(str) + "/" + frame["id"]
        columns = [*COLUMNS, *(name for name in frame if name not in COLUMNS)]
        write_table(table_file, frame.assign(**{ROW: ids, "weight": weight})[columns])
        write_json(origin_file, origin | {"students": [asdict(student) for student in students]})
    return students


def label_rows(teachers: Teachers, rule: Rule, fold: int) -> tuple[Student, pd.DataFrame]:
    """What the student of a fold gets, and its rows: id, image, student, confidence, one column a class."""
    probability, held_out = teachers.probability(fold), teachers.held_out(fold)
    taken, target = rule.label(probability, teachers.classes, teachers.task)
    sure, rows = confidence(probability, teachers.task.exclusive), np.flatnonzero(taken & ~held_out)
    frame = teachers.table.frame.iloc[rows][["id", "image"]].reset_index(drop=True)
    frame = frame.assign(**{STUDENT: fold, "confidence": sure[rows].astype(np.float32)})
    student = Student(
        student=fold,
        rows=len(rows),
        held_out=int(held_out.sum()),
        unsure=int((~taken & ~held_out).sum()),
        surest=float(sure[~held_out].max(initial=0)),
        classes=dict(zip(teachers.classes, target[rows].sum(axis=0).tolist(), strict=True)),
    )
    return student, frame.join(pd.DataFrame(target[rows].astype(np.float32), columns=teachers.classes))
