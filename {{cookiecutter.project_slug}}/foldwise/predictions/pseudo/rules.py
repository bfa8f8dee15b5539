"""Rules for pseudo labels: soft targets, or hard labels where confident. Also checks of the table to write."""

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
    """All images, with the probabilities as targets (Xie et al. 2020, arXiv:1911.04252)."""

    def problems(self, classes: Sequence[str], task: Task) -> list[str]:
        """Explain why the rule does not suit the classes and the task."""
        if task.kind == "rows":
            return []
        return ["masks cannot store probabilities: use --confident, which ignores uncertain pixels"]

    def label(self, probability: np.ndarray, classes: Sequence[str], task: Task) -> tuple[np.ndarray, np.ndarray]:
        """From probabilities (N, C), return which images to use, (N,) bool, and the targets (N, C)."""
        return np.ones(len(probability), bool), probability

    def describe(self) -> dict[str, Any]:
        """Return plain values for the provenance file."""
        return {"name": "soft"}


@dataclass(frozen=True)
class Confident:
    """Confident predictions as hard labels (Lee 2013, ICML workshop).

    Multiclass: the top probability must reach its class's threshold. Multi-label: every label must be present or absent
    with at least its threshold, or the image is left out. Masks: each pixel as in multiclass; with a mask per class,
    each pixel and class on its own.
    """

    threshold: float
    of_class: Mapping[str, float] = field(default_factory=dict)

    def problems(self, classes: Sequence[str], task: Task) -> list[str]:
        unknown = [name for name in self.of_class if name not in classes]
        found = [f"there is no class {name!r}; the classes are {some(classes)}" for name in unknown]
        least = 0.0 if task.exclusive else 0.5  # at 0.5 or below, a label could be present and absent at once
        values = [value for value in (self.threshold, *self.of_class.values()) if not least < value <= 1]
        return found + [f"the threshold {value:g} must be above {least:g} and at most 1" for value in values]

    def label(self, probability: np.ndarray, classes: Sequence[str], task: Task) -> tuple[np.ndarray, np.ndarray]:
        if not task.exclusive:
            threshold = self._thresholds(classes)
            present = probability >= threshold
            decided = present | (1 - probability >= threshold)
            return np.all(decided, axis=1), present.astype(np.float64)
        answer, sure = self.answer(probability.T, classes, True)
        return sure, np.eye(len(classes))[answer]

    def answer(self, probability: np.ndarray, classes: Sequence[str], exclusive: bool) -> tuple[np.ndarray, np.ndarray]:
        """From probabilities (C, ...), return the top class and whether it reaches its threshold, each (...).

        Not exclusive: whether each class is present, and whether that is certain, each (C, ...).
        """
        if not exclusive:
            threshold = self._thresholds(classes).reshape(-1, *[1] * (probability.ndim - 1))
            present = probability >= threshold
            return present, present | (1 - probability >= threshold)
        answer = probability.argmax(axis=0)
        return answer, probability.max(axis=0) >= self._thresholds(classes)[answer]

    def describe(self) -> dict[str, Any]:
        return {"name": "confident", "threshold": self.threshold, "of_class": dict(self.of_class)}

    def _thresholds(self, classes: Sequence[str]) -> np.ndarray:
        return np.array([self.of_class.get(name, self.threshold) for name in classes])


Rule = Soft | Confident


def confidence(probability: np.ndarray, exclusive: bool) -> np.ndarray:
    """Probability (N,) of the predicted class; multi-label: of the least certain label."""
    if exclusive:
        return probability.max(axis=1)
    return np.maximum(probability, 1 - probability).min(axis=1)


def check_output(out: Path, weight: float) -> None:
    """Refuse an existing file, an unknown suffix, and a weight that is not a positive number."""
    check_suffix(out)
    check_new(out, provenance_path(out))
    if not 0 < weight < np.inf:
        raise Refusal(f"--weight {weight:g} must be a finite number above 0")


def check_suffix(out: Path) -> None:
    """Refuse files other than .csv and .parquet."""
    if out.suffix not in (".csv", ".parquet"):
        raise Refusal(f"{out}: the table must be a .csv or a .parquet file")


def class_problems(classes: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Find classes whose names clash with other columns of the table."""
    clash = [name for name in classes if name in columns]
    return [f"a class cannot be called {some(clash)}: the table has another column of that name"] if clash else []


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write CSV or parquet, by the suffix."""
    (frame.to_csv if path.suffix == ".csv" else frame.to_parquet)(path, index=False)
