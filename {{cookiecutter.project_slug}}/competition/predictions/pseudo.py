"""Pseudo labels of unlabelled images, for each fold's student its own; and the images that models are least sure of.

A table of pseudo labels has one row for each pair of student and image:

    row         "<student>/<id>", unique
    id, image   of the unlabelled table
    student     the fold whose student is trained on it
    confidence  of the answer: the highest probability; multi-label: that of the least certain label
    weight      in the loss, beside a real row's 1
    <class>     one column a class, the target: 0 and 1, or probabilities

Beside it, `<table>.json` says which runs made it, by which folds and rule, and what it holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from competition.data.pseudo import ROW, STUDENT, provenance_path
from competition.files import write_atomic, write_json
from competition.predictions.metrics import cross_entropy
from competition.predictions.schema import some
from competition.predictions.teachers import open_teachers

COLUMNS = (ROW, "id", "image", STUDENT, "confidence", "weight")
UNCERTAIN_COLUMNS = ("id", "image", "entropy", "margin")


class Rule(Protocol):
    """Which images get a label, and what it is."""

    def problems(self, classes: Sequence[str], multilabel: bool) -> list[str]:
        """What is wrong with it for these classes."""
        ...

    def label(self, probability: np.ndarray, classes: Sequence[str], multilabel: bool) -> tuple[np.ndarray, np.ndarray]:
        """From (N, C) probabilities: the images that are taken, (N,) bool, and the targets (N, C)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values for a record."""
        ...


@dataclass(frozen=True)
class Soft:
    """Every image, with the probabilities as its target (Xie et al. 2020, arXiv:1911.04252)."""

    def problems(self, classes: Sequence[str], multilabel: bool) -> list[str]:
        return []

    def label(self, probability: np.ndarray, classes: Sequence[str], multilabel: bool) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(len(probability), bool), probability

    def describe(self) -> dict[str, Any]:
        return {"name": "soft"}


@dataclass(frozen=True)
class Confident:
    """Images whose answer is sure enough, with that answer as a hard label (Lee 2013, ICML workshop).

    Multiclass: the likeliest class has at least its threshold. Multi-label: each label is either there, with at least
    its threshold, or absent, with as much for its absence; an image with a label in between is left out.

    Args:
        threshold: of every class that `of_class` does not name.
        of_class: thresholds of single classes.
    """

    threshold: float
    of_class: Mapping[str, float] = field(default_factory=dict)

    def problems(self, classes: Sequence[str], multilabel: bool) -> list[str]:
        unknown = [name for name in self.of_class if name not in classes]
        found = [f"there is no class {name!r}; the classes are {some(classes)}" for name in unknown]
        least = 0.5 if multilabel else 0.0  # below 0.5 a label would be there and absent at once
        values = [self.threshold, *self.of_class.values()]
        return found + [
            f"a confidence of {value:g} is not above {least:g} and at most 1"
            for value in values
            if not least < value <= 1
        ]

    def label(self, probability: np.ndarray, classes: Sequence[str], multilabel: bool) -> tuple[np.ndarray, np.ndarray]:
        threshold = np.array([self.of_class.get(name, self.threshold) for name in classes])
        if multilabel:
            there = probability >= threshold
            decided = there | (1 - probability >= threshold)
            return np.all(decided, axis=1), there.astype(np.float64)
        best = probability.argmax(axis=1)
        return confidence(probability, False) >= threshold[best], np.eye(len(classes))[best]

    def describe(self) -> dict[str, Any]:
        return {"name": "confident", "threshold": self.threshold, "of_class": dict(self.of_class)}


def confidence(probability: np.ndarray, multilabel: bool) -> np.ndarray:
    """(N,) the probability of the answer; multi-label: of the least certain of its labels."""
    if multilabel:
        return np.maximum(probability, 1 - probability).min(axis=1)
    return probability.max(axis=1)


def pseudo_label(
    runs: Sequence[Path],
    out: Path,
    rule: Rule,
    test: str | None = None,
    table: Path | None = None,
    weight: float = 1.0,
) -> list[dict[str, Any]]:
    """Write a table of pseudo labels, and beside it where they come from.

    Args:
        runs, test, table: as in `open_teachers`.
        out: the .csv or .parquet file to write.
        weight: of each row in the loss, beside a real row's 1.

    Returns:
        For each student: student, rows, held_out (images of its own fold that were left out), and classes: the sum of
        the targets of each.

    Raises:
        ValueError: whatever is wrong with runs, predictions or the rule, or a student gets no row; nothing is written.
    """
    check_new(out, provenance_path(out))
    if not 0 < weight < np.inf:
        raise ValueError(f"a weight of {weight:g} is not a number above 0")
    teachers = open_teachers(runs, test, table)
    problems = class_problems(teachers.classes, COLUMNS) + rule.problems(teachers.classes, teachers.multilabel)
    if problems:
        raise ValueError("\n".join(problems))
    frames, students = [], []
    for student in teachers.folds:
        probability, held_out = teachers.probability(student), teachers.held_out(student)
        taken, target = rule.label(probability, teachers.classes, teachers.multilabel)
        sure, rows = confidence(probability, teachers.multilabel), np.flatnonzero(taken & ~held_out)
        if not len(rows):
            why = "all are of its own fold" if held_out.all() else f"the surest has {sure[~held_out].max():.3f}"
            problems.append(f"the student of fold {student} gets no image: {why}")
        frame = teachers.table.frame.iloc[rows][["id", "image"]].reset_index(drop=True)
        frame = frame.assign(**{ROW: f"{student}/" + frame["id"], STUDENT: student, "weight": weight})
        frame["confidence"] = sure[rows].astype(np.float32)
        targets = pd.DataFrame(target[rows].astype(np.float32), columns=teachers.classes)
        frames.append(frame[list(COLUMNS)].join(targets))
        classes = dict(zip(teachers.classes, target[rows].sum(axis=0).tolist(), strict=True))
        students.append({STUDENT: student, "rows": len(rows), "held_out": int(held_out.sum()), "classes": classes})
    if problems:
        raise ValueError("\n".join(problems))
    origin = {"created_by": "pseudo_label.py", **teachers.describe(), "rule": rule.describe(), "weight": weight}
    with write_atomic(out) as table_file, write_atomic(provenance_path(out)) as origin_file:  # both, or neither
        write_json(origin_file, origin | {"students": students})
        _write_table(table_file, pd.concat(frames, ignore_index=True))
    return students


def list_uncertain(
    runs: Sequence[Path], out: Path, count: int, test: str | None = None, table: Path | None = None
) -> pd.DataFrame:
    """Write the images that the models of all folds together are least sure of, to be labelled by hand.

    Those of the highest entropy come first, for multi-label of its mean over the labels. `margin` is the other usual
    measure: how far the two likeliest answers are apart, for multi-label the presence and the absence of the least
    certain label; the smaller, the less sure. (Settles 2009, Active Learning Literature Survey, section 3.1.)

    Args:
        runs, test, table: as in `open_teachers`.
        out: the .csv or .parquet file to write.
        count: how many images.

    Returns:
        What is written: id, image, entropy, margin, and one probability a class.

    Raises:
        ValueError: as `pseudo_label`.
    """
    check_new(out)
    teachers = open_teachers(runs, test, table)
    problems = class_problems(teachers.classes, UNCERTAIN_COLUMNS)
    if problems:
        raise ValueError("\n".join(problems))
    probability = teachers.probability()
    if teachers.multilabel:
        margin = 2 * confidence(probability, True) - 1
    else:
        margin = np.diff(np.sort(probability, axis=1)[:, -2:], axis=1)[:, 0]
    entropy = cross_entropy(probability, probability, teachers.multilabel)
    frame = teachers.table.frame[["id", "image"]].assign(entropy=entropy, margin=margin)
    frame = frame.join(pd.DataFrame(probability, columns=teachers.classes))
    frame = frame.sort_values(["entropy", "id"], ascending=[False, True]).head(count).round(6)
    with write_atomic(out) as temporary:
        _write_table(temporary, frame)
    return frame


def class_problems(classes: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Classes that cannot have a column of their own name, because the table has one."""
    clash = [name for name in classes if name in columns]
    return [f"a class cannot be called {some(clash)}, which is another column of the table: rename it"] if clash else []


def check_new(out: Path, *beside: Path) -> None:
    """Refuse a table that is neither CSV nor parquet, and files that exist.

    Raises:
        ValueError: says what to do.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{out}: a table is a .csv or a .parquet file")
    there = [str(path) for path in (out, *beside) if path.exists()]
    if there:
        raise ValueError(f"{', '.join(there)} exists and is not overwritten: choose another name, or delete it first")


def _write_table(path: Path, frame: pd.DataFrame) -> None:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
