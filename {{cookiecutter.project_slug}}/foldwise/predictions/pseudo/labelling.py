"""Pseudo-label unlabelled images for the student of each fold.

A table of pseudo labels has one row per student and image:

    row         "<student>/<id>", unique
    id, image   as in the unlabelled table
    student     fold whose student trains on the row
    confidence  highest probability; multi-label: that of the least certain label; masks: mean over the pixels
    weight      in the loss; real rows have 1
    <class>     target, one column per class: 0 and 1, or probabilities
    mask        segmentation, instead of <class>: path of a mask under the data root, with `data.ignore_index` where the
                teachers are not confident; with a mask per class a channel per class
    labelled    segmentation: share of the pixels (and classes) that are labelled

`<table>.json` records the runs, folds, rule and counts. Masks are in the folder `<table>/`, named by a hash of their
content. So the table's hash, which is part of a run's identity, covers them, and cached image scans never go stale.
"""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.class_masks import SoftMasks, encode_layers
from foldwise.data.pseudo import ROW, STUDENT, masks_folder, provenance_path
from foldwise.errors import refuse_all
from foldwise.files import new_folder, write_atomic, write_json
from foldwise.predictions.pseudo.rules import (
    Confident,
    Rule,
    check_output,
    class_problems,
    confidence,
    write_table,
)
from foldwise.predictions.pseudo.teachers import Teachers, open_teachers

COLUMNS = (ROW, "id", "image", STUDENT, "confidence", "weight")


@dataclass(frozen=True)
class Student:
    """Counts of the pseudo labels for one student.

    Attributes:
        student: its held-out fold.
        rows: images with pseudo labels.
        held_out: images left out because they belong to the student's held-out fold.
        unsure: images left out because of low confidence.
        surest: highest confidence of an image (segmentation: of a pixel) that is not held out.
        classes: sum of the targets per class; segmentation: confident pixels.
        answered: segmentation: all predicted pixels per class in images that are not held out.
    """

    student: int
    rows: int
    held_out: int
    unsure: int
    surest: float
    classes: dict[str, float]
    answered: dict[str, int] | None = None

    @property
    def problem(self) -> str | None:
        """Reason why the student gets no images, if so."""
        if self.rows:
            return None
        why = f"the highest confidence is {self.surest:.3f}" if self.unsure else "all belong to its held-out fold"
        return f"the student of fold {self.student} gets no images: {why}"

    @property
    def lacking(self) -> list[str]:
        return [name for name, total in self.classes.items() if not total]


def pseudo_label(
    runs: Sequence[Path],
    out: Path,
    rule: Rule,
    test: str | None = None,
    table: Path | None = None,
    weight: float = 1.0,
) -> list[Student]:
    """Write a table of pseudo labels, its provenance and masks, all or nothing.

    Args:
        runs, test, table: as in `open_teachers`.
        out: the .csv or .parquet file to write; segmentation: under the data root.
        weight: of each row in the loss; real rows have 1.
    """
    check_output(out, weight)
    teachers = open_teachers(runs, test, table)
    maps = teachers.task.kind == "maps"
    problems = rule.problems(teachers.classes, teachers.task)
    problems += _mask_problems(teachers, masks_folder(out)) if maps else class_problems(teachers.classes, COLUMNS)
    refuse_all(problems)
    origin = {"created_by": "pseudo_label.py", **teachers.describe(), "rule": rule.describe(), "weight": weight}
    folder = new_folder(masks_folder(out)) if maps else nullcontext(out)
    with write_atomic(out) as table_file, write_atomic(provenance_path(out)) as origin_file, folder as temporary:
        if maps:
            labelled = [_label_maps(teachers, rule, fold, temporary, masks_folder(out)) for fold in teachers.folds]
        else:
            labelled = [_label_rows(teachers, rule, fold) for fold in teachers.folds]
        students = [student for student, _ in labelled]
        refuse_all(student.problem for student in students if student.problem)
        frame = pd.concat([frame for _, frame in labelled], ignore_index=True)
        ids = frame[STUDENT].astype(str) + "/" + frame["id"]
        columns = [*COLUMNS, *(name for name in frame if name not in COLUMNS)]
        write_table(table_file, frame.assign(**{ROW: ids, "weight": weight})[columns])
        write_json(origin_file, origin | {"students": [asdict(student) for student in students]})
    return students


def _label_rows(teachers: Teachers, rule: Rule, fold: int) -> tuple[Student, pd.DataFrame]:
    """Return the counts and rows of a fold's student."""
    probability, held_out = teachers.probability(fold), teachers.held_out(fold)
    confident, target = rule.label(probability, teachers.classes, teachers.task)
    certainty, rows = confidence(probability, teachers.task.exclusive), np.flatnonzero(confident & ~held_out)
    frame = teachers.table.frame.iloc[rows][["id", "image"]].reset_index(drop=True)
    frame = frame.assign(**{STUDENT: fold, "confidence": certainty[rows].astype(np.float32)})
    student = Student(
        student=fold,
        rows=len(rows),
        held_out=int(held_out.sum()),
        unsure=int((~confident & ~held_out).sum()),
        surest=float(certainty[~held_out].max(initial=0)),
        classes=dict(zip(teachers.classes, target[rows].sum(axis=0).tolist(), strict=True)),
    )
    return student, frame.join(pd.DataFrame(target[rows].astype(np.float32), columns=teachers.classes))


def _mask_problems(teachers: Teachers, folder: Path) -> list[str]:
    problems, root, ignored = [], teachers.table.root, teachers.ignore_index
    if teachers.task.stored is SoftMasks:
        problems.append("pseudo labels are 0, 1 or ignored, and soft masks are numbers: there is no rule for them yet")
    if not folder.resolve().is_relative_to(root.resolve()):
        problems.append(
            f"the masks would be written to {folder.resolve()}, but training reads masks from the data root {root}: "
            f"write the table there, for example --out {root / 'pseudo.csv'}"
        )
    if not 0 <= ignored <= 65535:
        problems.append(
            f"data.ignore_index is {ignored}, which a PNG cannot store, but it marks pixels of low confidence: "
            "train the teachers with a value above the classes and at most 65535, such as 255"
        )
    return problems


def _label_maps(teachers: Teachers, rule: Rule, fold: int, folder: Path, final: Path) -> tuple[Student, pd.DataFrame]:
    """Write the masks of a fold's student into `folder`, which is later renamed to `final`; return counts and rows."""
    assert isinstance(rule, Confident)  # `problems` of the other rules refuse maps
    ignored, held_out = teachers.ignore_index, teachers.held_out(fold)
    dtype = np.uint8 if max(ignored, len(teachers.classes) - 1) <= 255 else np.uint16
    counts, surest = np.zeros((2, len(teachers.classes)), np.int64), 0.0  # of confident pixels, and of all
    exclusive, classes = teachers.task.exclusive, len(teachers.classes)
    lines: list[dict[str, Any]] = []
    rows = np.flatnonzero(~held_out)
    inside = final.resolve().relative_to(teachers.table.root.resolve())
    (folder / str(fold)).mkdir()
    for row, probability in zip(rows, teachers.maps(rows, fold), strict=True):
        answer, sure = rule.answer(probability, teachers.classes, exclusive)
        if exclusive:
            counts += [np.bincount(pixels, minlength=classes) for pixels in (answer[sure], answer.ravel())]
            best = probability.max(axis=0)
        else:
            counts += [layers.sum(axis=(1, 2)) for layers in (answer, probability >= 0.5)]
            best = np.maximum(probability, 1 - probability)
        surest = max(surest, float(best.max()))
        if not sure.any():
            continue
        mask = np.where(sure, answer, ignored).astype(dtype)
        data = encode_layers(mask[None] if exclusive else mask)
        suffix = ".png" if exclusive or classes == 1 else ".tif"
        name = f"{fold}/{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
        (folder / name).write_bytes(data)
        image = teachers.table.frame.iloc[row]
        lines.append(
            {
                "id": image["id"],
                "image": image["image"],
                STUDENT: fold,
                "confidence": round(float(best.mean()), 6),
                "mask": (inside / name).as_posix(),
                "labelled": round(float(sure.mean()), 6),
            }
        )
    confident, answered = (dict(zip(teachers.classes, of_class.tolist(), strict=True)) for of_class in counts)
    student = Student(fold, len(lines), int(held_out.sum()), len(rows) - len(lines), surest, confident, answered)
    return student, pd.DataFrame(lines, columns=["id", "image", STUDENT, "confidence", "mask", "labelled"])
