"""Rules of pseudo labels (all answers as soft targets, or the confident ones as hard labels), and what tables share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.problems import some
from foldwise.data.pseudo import provenance_path
from foldwise.errors import Refusal
from foldwise.files import check_new
from foldwise.tasks import Task


@dataclass(frozen=True)
class Soft:
    """Every image, with the probabilities as its target (Xie et al. 2020, arXiv:1911.04252)."""

    def problems(self, classes: Sequence[str], task: Task) -> list[str]:
        """What is wrong with it for these classes."""
        if task.kind == "rows":
            return []
        return ["a mask has one class a pixel and no probabilities: take --confident, which leaves unsure pixels out"]

    def label(self, probability: np.ndarray, classes: Sequence[str], task: Task) -> tuple[np.ndarray, np.ndarray]:
        """From (N, C) probabilities: the images that are taken, (N,) bool, and the targets (N, C)."""
        return np.ones(len(probability), bool), probability

    def describe(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {"name": "soft"}


@dataclass(frozen=True)
class Confident:
    """Confident answers as hard labels (Lee 2013, ICML workshop).

    Multiclass: images whose most probable class has at least its threshold. Multi-label: each label is either present,
    with at least its threshold, or absent, with as much for its absence; an image with a label in between is left out.
    Segmentation: pixels, as images of multiclass.

    Args:
        threshold: of every class that `of_class` does not name.
        of_class: thresholds of single classes.
    """

    threshold: float
    of_class: Mapping[str, float] = field(default_factory=dict)

    def problems(self, classes: Sequence[str], task: Task) -> list[str]:
        """What is wrong with it for these classes."""
        unknown = [name for name in self.of_class if name not in classes]
        found = [f"there is no class {name!r}; the classes are {some(classes)}" for name in unknown]
        least = 0.0 if task.exclusive else 0.5  # below 0.5 a label would be present and absent at once
        values = [value for value in (self.threshold, *self.of_class.values()) if not least < value <= 1]
        return found + [f"a confidence of {value:g} is not above {least:g} and at most 1" for value in values]

    def label(self, probability: np.ndarray, classes: Sequence[str], task: Task) -> tuple[np.ndarray, np.ndarray]:
        """As `Soft.label`."""
        if not task.exclusive:
            threshold = self._thresholds(classes)
            present = probability >= threshold
            decided = present | (1 - probability >= threshold)
            return np.all(decided, axis=1), present.astype(np.float64)
        answer, sure = self.answer(probability.T, classes)
        return sure, np.eye(len(classes))[answer]

    def answer(self, probability: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """From (C, ...) probabilities: the most probable class, and whether it has its threshold, (...)."""
        answer = probability.argmax(axis=0)
        return answer, probability.max(axis=0) >= self._thresholds(classes)[answer]

    def describe(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {"name": "confident", "threshold": self.threshold, "of_class": dict(self.of_class)}

    def _thresholds(self, classes: Sequence[str]) -> np.ndarray:
        """(C,)."""
        return np.array([self.of_class.get(name, self.threshold) for name in classes])


Rule = Soft | Confident


def confidence(probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """(N,) the probability of the answer; not exclusive: of the least certain of its labels."""
    if exclusive:
        return probability.max(axis=1)
    return np.maximum(probability, 1 - probability).min(axis=1)


def check_output(out: Path, weight: float) -> None:
    """Refuse a table that is neither CSV nor parquet or exists, and a weight that is not above 0."""
    check_suffix(out)
    check_new(out, provenance_path(out))
    if not 0 < weight < np.inf:
        raise Refusal(f"a weight of {weight:g} is not a number above 0")


def check_suffix(out: Path) -> None:
    """Refuse a table that is neither CSV nor parquet."""
    if out.suffix not in (".csv", ".parquet"):
        raise Refusal(f"{out}: a table is a .csv or a .parquet file")


def class_problems(classes: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Classes that cannot have a column of their own name, because the table has one."""
    clash = [name for name in classes if name in columns]
    return [f"a class cannot be called {some(clash)}, which is another column of the table: rename it"] if clash else []


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table in the format of its suffix."""
    (frame.to_csv if path.suffix == ".csv" else frame.to_parquet)(path, index=False)
