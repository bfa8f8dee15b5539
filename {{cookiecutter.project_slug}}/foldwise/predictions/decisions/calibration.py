"""Calibration of probabilities: predictions made with 0.8 confidence should be right 80 % of the time.

A calibrator is a frozen dataclass of its parameters: `fit` returns a fitted copy, a call calibrates. It is fitted on
the out-of-fold predictions of the other folds and applied to those of one fold's model, before models are averaged: a
mean of several is less confident than each, and no out-of-fold prediction shows by how much.
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


@dataclass(frozen=True)
class Temperature(Calibrator):
    """Exclusive classes: softmax of log p / T of least cross-entropy (Guo et al. 2017); T > 1 lowers confidence."""

    temperature: float = 1.0
    name: ClassVar[str] = "temperature"

    def fit(self, target: np.ndarray, probability: np.ndarray) -> Self:
        from scipy import optimize, special

        logits = np.log(probability.clip(SMALLEST, 1))
        correct, total = (target * logits).sum(), target.sum(axis=1)

        def loss(log_scale: float) -> float:
            scale = np.exp(log_scale)
            return float((total * special.logsumexp(scale * logits, axis=1)).sum() - scale * correct)

        # The loss is convex in 1 / T; beyond these bounds there is nothing but certainty or chance.
        bounds, options = (-np.log(20), np.log(20)), {"xatol": 1e-3}
        found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options=options)
        return type(self)(float(np.exp(-found.x)))

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        from scipy import special

        return special.softmax(np.log(probability.clip(SMALLEST, 1)) / self.temperature, axis=1)


@dataclass(frozen=True)
class Platt(Calibrator):
    """Other classes: sigmoid(slope · logit p + offset) per class, of least cross-entropy (Platt 1999).

    As in the paper, a pseudo count pulls targets in, so that a class that is rare, or always predicted correctly, does
    not get infinite odds. Slopes are never negative: the order of the rows stays.
    """

    slope: np.ndarray = field(default_factory=lambda: np.ones(1))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(1))
    name: ClassVar[str] = "platt"

    def fit(self, target: np.ndarray, probability: np.ndarray) -> Self:
        logits, target = _logit(probability), np.asarray(target, np.float64)
        slope, offset = np.array([_fit_sigmoid(logits[:, c], target[:, c]) for c in range(logits.shape[1])]).T
        return type(self)(slope, offset)

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        from scipy import special

        return special.expit(self.slope * _logit(probability) + self.offset)


# By whether classes are exclusive, the simplest first.
CALIBRATORS: dict[bool, tuple[Calibrator, ...]] = {
    True: (Calibrator(), Temperature()),
    False: (Calibrator(), Platt()),
}


def _fit_sigmoid(logit: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Slope and offset of (N,) logits and targets."""
    from scipy import optimize, special

    positive = target.sum()
    high, low = (positive + 1) / (positive + 2), 1 / (len(target) - positive + 2)
    aim = low + target * (high - low)
    inputs = np.stack([logit, np.ones_like(logit)])  # (2, N)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value = parameters @ inputs
        # log(1 + e^v) - aim v, which must not overflow
        each = np.maximum(value, 0) + np.log1p(np.exp(-np.abs(value))) - aim * value
        return float(each.mean()), inputs @ (special.expit(value) - aim) / len(aim)

    def curvature(parameters: np.ndarray) -> np.ndarray:
        p = special.expit(parameters @ inputs)
        return (inputs * (p * (1 - p))) @ inputs.T / len(aim)

    found = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, hess=curvature, method="trust-exact", tol=1e-6)
    slope, offset = found.x.tolist()
    if slope >= 0:
        return slope, offset
    return 0.0, float(special.logit(aim.mean()))  # the loss is convex: the best without a slope is the best allowed


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = probability.astype(np.float64).clip(SMALLEST, 1 - SMALLEST)
    return np.log(clipped) - np.log1p(-clipped)
