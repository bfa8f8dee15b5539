"""Pseudo labels of unlabelled images, for each fold's student its own; and the images to label by hand.

A table of pseudo labels has one row for each pair of student and image:

    row         "<student>/<id>", unique
    id, image   of the unlabelled table
    student     the fold whose student is trained on it
    confidence  of the answer: the highest probability, of masks its mean over the pixels; multi-label: that of the
                least certain label
    weight      in the loss, beside a real row's 1
    <class>     one column a class, the target: 0 and 1, or probabilities
    mask        of maps, in place of these: path under the data root of a PNG, which has the teachers' answer where it
                is confident and `data.ignore_index` elsewhere
    labelled    of maps: the share of the pixels that have a class

Beside it, `<table>.json` has the runs, folds and rule that made it, and counts; the masks lie in the folder `<table>/`,
each named after its content: so the hash of the table, which is part of a run's identity, covers them, and the record
of scanned images never takes a new mask for an old one.
"""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from foldwise.data.pseudo import ROW, STUDENT, masks_folder, provenance_path
from foldwise.errors import refuse_all
from foldwise.files import check_new, new_folder, write_atomic, write_json
from foldwise.predictions.metrics import cross_entropy
from foldwise.predictions.pseudo.rules import (
    Confident,
    Rule,
    check_output,
    check_suffix,
    class_problems,
    confidence,
    write_table,
)
from foldwise.predictions.pseudo.teachers import Teachers, open_teachers

COLUMNS = (ROW, "id", "image", STUDENT, "confidence", "weight")
UNCERTAIN_COLUMNS = ("id", "image", "entropy", "margin")


@dataclass(frozen=True)
class Student:
    """Counts of what the student of a fold gets.

    Attributes:
        student: its fold.
        rows: images.
        held_out: images of its own fold, which are left out.
        unsure: images that are left out because no answer is confident.
        surest: the highest confidence of an image that is not held out, of masks that of a pixel.
        classes: the sum of the targets of each class; of masks its pixels.
        answered: of masks, all pixels of each class, confident or not, in images that are not held out.
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
        """A sentence where it gets nothing."""
        if self.rows:
            return None
        why = f"the surest has {self.surest:.3f}" if self.unsure else "all are of its own fold"
        return f"the student of fold {self.student} gets no image: {why}"

    @property
    def lacking(self) -> list[str]:
        """Classes of which it gets nothing."""
        return [name for name, total in self.classes.items() if not total]


def pseudo_label(
    runs: Sequence[Path],
    out: Path,
    rule: Rule,
    test: str | None = None,
    table: Path | None = None,
    weight: float = 1.0,
) -> list[Student]:
    """Write a table of pseudo labels, its provenance, and masks; all of it or nothing.

    Args:
        runs, test, table: as in `open_teachers`.
        out: the .csv or .parquet file to write; of masks under the data root.
        weight: of each row in the loss, beside a real row's 1.

    Raises:
        Refusal: whatever is wrong with runs, predictions or the rule, or a student gets no row; nothing is written.
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
        problems = [student.problem for student in students if student.problem]
        refuse_all(problems)
        frame = pd.concat([frame for _, frame in labelled], ignore_index=True)
        ids = frame[STUDENT].astype(str) + "/" + frame["id"]
        columns = [*COLUMNS, *(name for name in frame if name not in COLUMNS)]
        write_table(table_file, frame.assign(**{ROW: ids, "weight": weight})[columns])
        write_json(origin_file, origin | {"students": [asdict(student) for student in students]})
    return students


def _label_rows(teachers: Teachers, rule: Rule, fold: int) -> tuple[Student, pd.DataFrame]:
    """Counts and rows of a fold's student: id, image, student, confidence, one column a class."""
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


def _mask_problems(teachers: Teachers, folder: Path) -> list[str]:
    """Why no masks can be written into a folder, which must lie under the data root."""
    problems, root, ignored = [], teachers.table.root, teachers.ignore_index
    if not folder.resolve().is_relative_to(root.resolve()):
        problems.append(
            f"the masks would lie in {folder.resolve()}, and training reads masks from the data root {root}: "
            f"name a table there, --out {root / 'pseudo.csv'}"
        )
    if not 0 <= ignored <= 65535:
        problems.append(
            f"data.ignore_index is {ignored}, which no PNG can hold, and it marks what is not confident: "
            "train the teachers with a value from the classes to 65535, such as 255"
        )
    return problems


def _label_maps(teachers: Teachers, rule: Rule, fold: int, folder: Path, final: Path) -> tuple[Student, pd.DataFrame]:
    """Write the masks of a fold's student into `folder`, which will be renamed to `final`, one image at a time.

    Returns:
        Counts, and rows: id, image, student, confidence, mask, labelled.
    """
    assert isinstance(rule, Confident)  # others are refused by their `problems`
    ignored, held_out = teachers.ignore_index, teachers.held_out(fold)
    dtype = np.uint8 if max(ignored, len(teachers.classes) - 1) <= 255 else np.uint16
    counts, surest = np.zeros((2, len(teachers.classes)), np.int64), 0.0  # confident pixels, and all
    lines: list[dict[str, Any]] = []
    rows = np.flatnonzero(~held_out)
    inside = final.resolve().relative_to(teachers.table.root.resolve())
    (folder / str(fold)).mkdir()
    for row, probability in zip(rows, teachers.maps(rows, fold), strict=True):
        answer, sure = rule.answer(probability, teachers.classes)
        counts += [np.bincount(pixels, minlength=counts.shape[1]) for pixels in (answer[sure], answer.ravel())]
        best = probability.max(axis=0)
        surest = max(surest, float(best.max()))
        if not sure.any():
            continue
        png = cv2.imencode(".png", np.where(sure, answer, ignored).astype(dtype))[1].tobytes()
        name = f"{fold}/{hashlib.sha256(png).hexdigest()[:16]}.png"
        (folder / name).write_bytes(png)
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


def list_uncertain(
    runs: Sequence[Path], out: Path, count: int, test: str | None = None, table: Path | None = None
) -> pd.DataFrame:
    """Write the images of which the models of all folds together are least certain, to be labelled by hand.

    Those of the highest entropy come first, for multi-label of its mean over the labels, for masks over the pixels.
    `margin` is the other usual measure: how far the two most probable answers are apart, for multi-label the presence
    and the absence of the least certain label, for masks in the mean of the pixels; the smaller, the less certain.
    (Settles 2009, Active Learning Literature Survey, section 3.1.)

    Args:
        runs, test, table: as in `open_teachers`.
        out: the .csv or .parquet file to write.
        count: how many images.

    Returns:
        What is written: id, image, entropy, margin, and one probability a class, of masks its mean over the pixels.

    Raises:
        Refusal: as `pseudo_label`.
    """
    check_suffix(out)
    check_new(out)
    teachers = open_teachers(runs, test, table)
    problems = class_problems(teachers.classes, UNCERTAIN_COLUMNS)
    refuse_all(problems)
    if teachers.task.kind == "maps":
        every = (each.reshape(len(each), -1).T for each in teachers.maps(np.arange(len(teachers.table))))
        means = [(*(each.mean() for each in _uncertainty(pixels, True)), pixels.mean(axis=0)) for pixels in every]
        entropy, margin, probability = map(np.array, zip(*means, strict=True))
    else:
        probability = teachers.probability()
        entropy, margin = _uncertainty(probability, teachers.task.exclusive)
    frame = teachers.table.frame[["id", "image"]].assign(entropy=entropy, margin=margin)
    frame = frame.join(pd.DataFrame(probability, columns=teachers.classes))
    frame = frame.sort_values(["entropy", "id"], ascending=[False, True]).head(count).round(6)
    with write_atomic(out) as temporary:
        write_table(temporary, frame)
    return frame


def _uncertainty(probability: np.ndarray, exclusive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and margin, (N,) each, of (N, C) probabilities."""
    entropy = cross_entropy(probability, probability, exclusive)
    if exclusive:
        return entropy, np.diff(np.partition(probability, -2, axis=1)[:, -2:], axis=1)[:, 0]
    return entropy, 2 * confidence(probability, False) - 1
