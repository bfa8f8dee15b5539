"""Calibration: probabilities moved so that of the answers given with 0.8, four fifths are right.

A calibrator is a frozen dataclass of its parameters: `fit` gives a fitted one, calling it calibrates. Fitted on the
out-of-fold predictions of other folds, it is applied to the predictions of one fold's model, before models are
averaged: the average of several is less sure than each, and no out-of-fold prediction shows by how much.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

SMALLEST = 1e-7  # probabilities are stored as float32, whose zeros and ones have no logarithm or odds


@dataclass(frozen=True)
class Calibrator:
    """Leaves probabilities as they are."""

    name: ClassVar[str] = ""

    def fit(self, target: np.ndarray, probability: np.ndarray) -> Self:
        """A fitted copy; target (N, C) hard or soft, probability (N, C)."""
        return self

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (N, C)."""
        return probability

    def __str__(self) -> str:
        return "as predicted"


@dataclass(frozen=True)
class Temperature(Calibrator):
    """Exclusive classes: softmax of log p / T, of least cross-entropy (Guo et al. 2017); above 1 it makes less sure."""

    temperature: float = 1.0
    name: ClassVar[str] = "temperature"

    def fit(self, target: np.ndarray, probability: np.ndarray) -> Self:
        from scipy.optimize import minimize_scalar
        from scipy.special import logsumexp

        logits = np.log(probability.clip(SMALLEST, 1))
        right, total = (target * logits).sum(), target.sum(axis=1)

        def loss(log_rate: float) -> float:
            rate = np.exp(log_rate)
            return float((total * logsumexp(rate * logits, axis=1)).sum() - rate * right)

        # The loss is convex in the rate 1 / T; beyond these bounds there is nothing but certainty or chance.
        found = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded", options={"xatol": 1e-3})
        return type(self)(float(np.exp(-found.x)))

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        from scipy.special import softmax

        return softmax(np.log(probability.clip(SMALLEST, 1)) / self.temperature, axis=1)

    def __str__(self) -> str:
        return f"T = {self.temperature:.3f}"


@dataclass(frozen=True)
class Platt(Calibrator):
    """Other classes: sigmoid(slope · logit p + offset) for each class, of least cross-entropy (Platt 1999).

    As in the paper, targets are drawn in by a pseudo count, so that a class that is rare, or always right, does not
    get infinite odds. Slopes are never negative: the order of the rows stays.
    """

    slope: np.ndarray = field(default_factory=lambda: np.ones(1))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(1))
    name: ClassVar[str] = "platt"

    def fit(self, target: np.ndarray, probability: np.ndarray) -> Self:
        logits = _logit(probability)
        fitted = [_fit_sigmoid(logits[:, c], np.asarray(target[:, c], np.float64)) for c in range(logits.shape[1])]
        slope, offset = np.array(fitted).T
        return type(self)(slope, offset)

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(self.slope * _logit(probability) + self.offset)

    def __str__(self) -> str:
        return f"slopes {self.slope.min():.2f} to {self.slope.max():.2f}"


# What is tried, the simplest first, for classes that are exclusive, and for others.
CALIBRATORS: dict[bool, tuple[Calibrator, ...]] = {
    True: (Calibrator(), Temperature()),
    False: (Calibrator(), Platt()),
}


def _fit_sigmoid(logit: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Slope and offset of (N,) logits and targets."""
    from scipy.optimize import minimize
    from scipy.special import expit
    from scipy.special import logit as log_odds

    positive = target.sum()
    high, low = (positive + 1) / (positive + 2), 1 / (len(target) - positive + 2)
    aim = low + target * (high - low)
    inputs = np.stack([logit, np.ones_like(logit)])  # (2, N)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value = parameters @ inputs
        # log(1 + e^v) - aim v, which must not overflow
        each = np.maximum(value, 0) + np.log1p(np.exp(-np.abs(value))) - aim * value
        return float(each.mean()), inputs @ (expit(value) - aim) / len(aim)

    def curvature(parameters: np.ndarray) -> np.ndarray:
        p = expit(parameters @ inputs)
        return (inputs * (p * (1 - p))) @ inputs.T / len(aim)

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, hess=curvature, method="trust-exact", tol=1e-6)
    slope, offset = found.x.tolist()
    if slope >= 0:
        return slope, offset
    return 0.0, float(log_odds(aim.mean()))  # the loss is convex: the best without a slope is the best allowed


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = probability.astype(np.float64).clip(SMALLEST, 1 - SMALLEST)
    return np.log(clipped) - np.log1p(-clipped)
