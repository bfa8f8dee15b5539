"""Which answers of the teachers become pseudo labels: all as they are, or the confident ones as hard labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foldwise.data.problems import some
from foldwise.tasks import Task


@dataclass(frozen=True)
class Soft:
    """Every image, with the probabilities as its target (Xie et al. 2020, arXiv:1911.04252)."""

    def problems(self, classes: Sequence[str], task: Task) -> list[str]:
        """What is wrong with it for these classes."""
        if task.kind == "maps":
            return [
                "a mask has one class a pixel and no probabilities: take --confident, which leaves unsure pixels out"
            ]
        return []

    def label(self, probability: np.ndarray, classes: Sequence[str], task: Task) -> tuple[np.ndarray, np.ndarray]:
        """From (N, C) probabilities: the images that are taken, (N,) bool, and the targets (N, C)."""
        return np.ones(len(probability), bool), probability

    def describe(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {"name": "soft"}


@dataclass(frozen=True)
class Confident:
    """What is sure enough, with the answer as a hard label (Lee 2013, ICML workshop).

    Multiclass: images whose likeliest class has at least its threshold. Multi-label: each label is either there, with
    at least its threshold, or absent, with as much for its absence; an image with a label in between is left out.
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
        least = 0.0 if task.exclusive else 0.5  # below 0.5 a label would be there and absent at once
        values = [self.threshold, *self.of_class.values()]
        return found + [
            f"a confidence of {value:g} is not above {least:g} and at most 1"
            for value in values
            if not least < value <= 1
        ]

    def label(self, probability: np.ndarray, classes: Sequence[str], task: Task) -> tuple[np.ndarray, np.ndarray]:
        """As `Soft.label`."""
        if not task.exclusive:
            threshold = self._thresholds(classes)
            there = probability >= threshold
            decided = there | (1 - probability >= threshold)
            return np.all(decided, axis=1), there.astype(np.float64)
        answer, sure = self.answer(probability.T, classes)
        return sure, np.eye(len(classes))[answer]

    def answer(self, probability: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """From (C, ...) probabilities: the number of the likeliest class, and whether it has its threshold, (...)."""
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
