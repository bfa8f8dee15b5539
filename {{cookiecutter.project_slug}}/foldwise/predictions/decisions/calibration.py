"""Calibration of probabilities: predictions made with 0.8 confidence should be right 80 % of the time.

Calibrators are fitted on out-of-fold predictions and applied to each fold's model before models are averaged. The mean
of several models is less confident than each of them, and out-of-fold predictions do not show by how much.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

SMALLEST = 1e-7  # avoids the logarithm of 0; float32 files contain exact zeros and ones


@dataclass(frozen=True)
class Calibrator:
    """No calibration; base of the calibrators."""

    name: ClassVar[str] = ""

    def fit(self, target: np.ndarray, probability: np.ndarray) -> Self:
        """Return a copy fitted to targets (N, C), hard or soft, and probabilities (N, C)."""
        return self

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Calibrate probabilities (N, C)."""
        return probability


@dataclass(frozen=True)
class Temperature(Calibrator):
    """Temperature scaling of exclusive classes: softmax(log p / T) (Guo et al. 2017); T > 1 lowers confidence."""

    temperature: float = 1.0
    name: ClassVar[str] = "temperature"

    def fit(self, target: np.ndarray, probability: np.ndarray) -> Self:
        from scipy import optimize, special

        logits = np.log(probability.clip(SMALLEST, 1))
        correct, total = (target * logits).sum(), target.sum(axis=1)

        def loss(log_scale: float) -> float:
            scale = np.exp(log_scale)
            return float((total * special.logsumexp(scale * logits, axis=1)).sum() - scale * correct)

        # The loss is convex in 1 / T; temperatures beyond these bounds make no practical difference.
        bounds, options = (-np.log(20), np.log(20)), {"xatol": 1e-3}
        found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options=options)
        return type(self)(float(np.exp(-found.x)))

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        from scipy import special

        return special.softmax(np.log(probability.clip(SMALLEST, 1)) / self.temperature, axis=1)


@dataclass(frozen=True)
class Platt(Calibrator):
    """Platt scaling of each label: sigmoid(slope · logit p + offset) (Platt 1999).

    As in the paper, pseudo counts smooth the targets to keep the odds of rare or perfectly predicted labels finite.
    Slopes are not negative, so the ranking of the rows never reverses.
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


# Keyed by whether the classes are exclusive; simplest first.
CALIBRATORS: dict[bool, tuple[Calibrator, ...]] = {
    True: (Calibrator(), Temperature()),
    False: (Calibrator(), Platt()),
}


def _fit_sigmoid(logit: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Fit slope and offset to logits (N,) and targets (N,)."""
    from scipy import optimize, special

    positive = target.sum()
    high, low = (positive + 1) / (positive + 2), 1 / (len(target) - positive + 2)
    aim = low + target * (high - low)
    inputs = np.stack([logit, np.ones_like(logit)])  # (2, N)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value = parameters @ inputs
        # log(1 + e^v) - aim v, without overflow
        each = np.maximum(value, 0) + np.log1p(np.exp(-np.abs(value))) - aim * value
        return float(each.mean()), inputs @ (special.expit(value) - aim) / len(aim)

    def curvature(parameters: np.ndarray) -> np.ndarray:
        p = special.expit(parameters @ inputs)
        return (inputs * (p * (1 - p))) @ inputs.T / len(aim)

    found = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, hess=curvature, method="trust-exact", tol=1e-6)
    slope, offset = found.x.tolist()
    if slope >= 0:
        return slope, offset
    return 0.0, float(special.logit(aim.mean()))  # the loss is convex, so the constrained optimum has slope 0


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = probability.astype(np.float64).clip(SMALLEST, 1 - SMALLEST)
    return np.log(clipped) - np.log1p(-clipped)
