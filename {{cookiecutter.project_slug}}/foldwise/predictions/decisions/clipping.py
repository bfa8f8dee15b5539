"""A floor and a ceiling for the probabilities of each class, which limit what confident mistakes cost in log loss."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Self

import numpy as np

from foldwise.predictions.decisions.rules import Rows, Rule
from foldwise.predictions.metrics import RowMetric

STEPS = (0, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1)  # tried as floor and as 1 - ceiling
ROUNDS = 3  # of coordinate descent over exclusive classes
SMALLEST = 1e-15  # as in the metric


@dataclass(frozen=True)
class Clip(Rule):
    """Probabilities between a floor and a ceiling of each class.

    Fitted as if each class had one more mistake at either end: a class without any would get no floor. Exclusive
    classes have floors only, and are renormalised, which lowers the others.
    """

    low: np.ndarray = field(default_factory=lambda: np.zeros(1))
    high: np.ndarray = field(default_factory=lambda: np.ones(1))
    exclusive: bool = False
    name: ClassVar[str] = "clip"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        values = probability.astype(np.float64)
        low, high = np.zeros(values.shape[1]), np.ones(values.shape[1])
        for _ in range(ROUNDS if self.exclusive else 1):
            for c, (true, own) in enumerate(zip(target.T, values.T, strict=True)):
                others = values.clip(low).sum(axis=1) - own.clip(low[c]) if self.exclusive else None
                low[c] = min(STEPS, key=partial(_loss, true, own, others))
                if not self.exclusive:
                    high[c] = 1 - min(STEPS, key=partial(_loss, 1 - true, 1 - own, None))
        return replace(self, low=low, high=high)

    def decide(self, probability: np.ndarray) -> np.ndarray:
        clipped = probability.clip(self.low, self.high)
        return clipped / clipped.sum(axis=1, keepdims=True) if self.exclusive else clipped

    def __str__(self) -> str:
        ends = [f"{low:g} to {high:g}" for low, high in zip(self.low, self.high, strict=True)]
        return f"{self.name} {', '.join(ends)}"


def _loss(true: np.ndarray, probability: np.ndarray, others: np.ndarray | None, floor: float) -> float:
    """Summed log loss of a class (N,) with a floor, and of one more row with it, but probability 0.

    Only what the floor changes counts. `others` (N,) is the sum of the other classes, None if not exclusive.
    """
    value = np.append(probability.clip(floor), floor).clip(SMALLEST, 1 - SMALLEST)
    true = np.append(true, 1)
    if others is None:
        return float(-(true * np.log(value) + (1 - true) * np.log1p(-value)).sum())
    return float((np.log(value + np.append(others, 1)) - true * np.log(value)).sum())
