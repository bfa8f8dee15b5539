"""Blends: means of the sources with given, equal or fitted weights.

Source predictions are (M, N, C) float32; weights are (M,) and sum to 1. `BLENDS` is ordered from simple to complex.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd

from foldwise.data.table import Table
from foldwise.predictions.ensembles.extra import Extra
from foldwise.predictions.ensembles.thresholding import best_on_others
from foldwise.predictions.metrics import RowMetric, score_folds
from foldwise.predictions.scoring import by_unit
from foldwise.tasks import find_task

EDGE = 2.0**-20  # probabilities are clipped to [EDGE, 1 - EDGE]; float32 represents both bounds exactly
MAP_EDGE = 0.5 / 255  # the same for maps, which are stored in 8 bits: 0 means below this
GREEDY_CANDIDATES = 10
GREEDY_STEPS = 30
GREEDY_ROWS = 10_000  # each step scores every candidate; more rows hardly change the ranking


@dataclass(frozen=True)
class Examples:
    """N rows of the table, to fit a method on or to predict.

    Attributes:
        rows, folds: (N,) row indices in the table and their folds.
        probability: (M, N, C) float32.
        extra: further inputs of stacking.
        source_scores: per fold, (M, T) scores of the single sources at T thresholds; T = 1 without thresholds.
    """

    table: Table
    metric: RowMetric
    rows: np.ndarray
    folds: np.ndarray
    probability: np.ndarray
    extra: Extra
    source_scores: dict[int, np.ndarray]

    @property
    def target(self) -> np.ndarray:
        assert self.table.target is not None
        return self.table.target[self.rows]

    @property
    def exclusive(self) -> bool:
        return find_task(self.table.task).exclusive

    def take(self, folds: list[int]) -> Self:
        """Keep only the rows and scores of these folds."""
        which = np.isin(self.folds, folds)
        return replace(
            self,
            rows=self.rows[which],
            folds=self.folds[which],
            probability=self.probability[:, which],
            extra=self.extra.take(which),
            source_scores={fold: self.source_scores[fold] for fold in folds},
        )

    def ranking(self) -> np.ndarray:
        """Source indices (M,), best mean fold score first; each fold uses the threshold that is best on the others."""
        greater = self.metric.greater_is_better
        scores = np.stack(list(self.source_scores.values()), axis=1)  # (M, K, T)
        best = np.stack([best_on_others(each, greater) for each in scores])
        means = np.take_along_axis(scores, best[:, :, None], axis=2)[:, :, 0].mean(axis=1)
        return np.argsort(np.where(np.isnan(means), np.inf, -means if greater else means), kind="stable")


class Fitted(Protocol):
    """A fitted method; `weights` (M,) is None for stacking."""

    @property
    def weights(self) -> np.ndarray | None: ...

    def predict(self, probability: np.ndarray, extra: Extra) -> np.ndarray:
        """Combine predictions (M, N, C) of one fold's models, and further inputs, into (N, C)."""
        ...


@dataclass(frozen=True)
class Method:
    """A way of combining sources; `fit` takes `Examples`, or `MapExamples` for maps."""

    name: str
    title: str
    fit: Callable[[Any], Fitted]


def arithmetic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over the first axis."""
    mean = np.tensordot(np.asarray(weights, np.float32), values, axes=1)
    return mean.clip(values.min(), values.max(), out=mean)  # against rounding errors


def geometric(
    probability: np.ndarray, weights: np.ndarray, exclusive: bool, axis: int = -1, edge: float = EDGE
) -> np.ndarray:
    """Weighted geometric mean over the first axis, finite even where a source predicts 0 or 1.

    Exclusive classes: mean log-probabilities, renormalised over the class axis `axis` (counted without the sources'
    axis). Otherwise: mean log-odds, class by class.
    """
    from scipy.special import expit, logit, softmax

    transform = np.log if exclusive else logit
    total = np.zeros(probability.shape[1:], np.float32)
    for weight, source in zip(weights, probability, strict=True):  # one at a time, to save memory
        total += np.float32(weight) * transform(source.clip(edge, 1 - edge))
    return softmax(total, axis=axis) if exclusive else expit(total)


def rank_mean(probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of each class's ranks among the N rows, in (0, 1), with averaged ties; not a probability.

    Pass rows of one fold only: ranks from different models are not comparable. Two classes still sum to 1.
    """
    total = np.zeros(probability.shape[1:], np.float64)
    for weight, source in zip(weights, probability, strict=True):
        total += weight * (pd.DataFrame(source).rank().to_numpy() - 0.5) / len(source)
    return total.astype(np.float32)


@dataclass(frozen=True)
class Blend:
    """Weighted mean of the sources."""

    weights: np.ndarray
    mean: Callable[[np.ndarray, np.ndarray], np.ndarray] = arithmetic

    def predict(self, probability: np.ndarray, extra: Extra | None = None) -> np.ndarray:
        return self.mean(probability, self.weights)


def equal_weights(sources: int) -> np.ndarray:
    return np.full(sources, 1 / sources)


def simplex_weights(probability: np.ndarray, target: np.ndarray, exclusive: bool) -> np.ndarray:
    """Find non-negative weights (M,) with sum 1 that minimise the log loss of the arithmetic mean.

    Log loss instead of the competition's metric because it is convex and differentiable. Probabilities are (M, N, C),
    targets (N, C) in [0, 1].
    """
    from scipy.optimize import Bounds, LinearConstraint, minimize

    sources = len(probability)
    cells = probability[:, target > 0] if exclusive else probability.reshape(sources, -1)
    yes = target[target > 0] if exclusive else target.ravel()
    no = np.zeros_like(yes) if exclusive else 1 - yes

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mean = (weights.astype(np.float32) @ cells).clip(EDGE, 1 - EDGE)
        value = -np.mean(yes * np.log(mean) + no * np.log1p(-mean), dtype=np.float64)
        slope = cells @ ((no / (1 - mean) - yes / mean) / np.float32(len(mean)))
        return float(value), slope.astype(np.float64)

    result = minimize(
        loss,
        equal_weights(sources),
        jac=True,
        method="SLSQP",
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.ones(sources), 1, 1),
        options={"maxiter": 100, "ftol": 1e-7},
    )
    weights = np.where(result.x < 1e-4, 0, result.x)
    return weights / weights.sum()


def least_squares_weights(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find non-negative weights (M,) with sum 1 that minimise the squared error of the mean of values (M, N, C).

    Columns count alike, whatever their unit; targets (N, C) of NaN are left out.
    """
    from scipy.optimize import nnls

    known, scale = np.isfinite(target), np.nanstd(target, axis=0, dtype=np.float64)
    errors = ((values - target) / np.where(scale > 0, scale, 1))[:, known].astype(np.float64)  # (M, cells)
    # With Ew -> 0 and sum(w) -> 1 as one problem, the solution is the constrained optimum times a number.
    weights, _ = nnls(
        np.vstack([errors.T / np.sqrt(errors.shape[1]), np.ones(len(values))]), [*[0.0] * errors.shape[1], 1.0]
    )
    weights = np.where(weights < 1e-4 * weights.sum(), 0, weights)
    return weights / weights.sum()


def greedy_weights(examples: Examples) -> np.ndarray:
    """Weights (M,) of greedy forward selection with replacement on the competition's metric (Caruana et al. 2004).

    Each step adds the source that improves the mean most; stop when none does. Only the ten best sources are
    candidates, which is faster and overfits less (Caruana et al. 2006).
    """
    sources = examples.ranking()[:GREEDY_CANDIDATES]
    units = [by_unit(examples.table, examples.rows, examples.probability[m], examples.folds) for m in sources]
    subset = slice(None, None, -(-len(units[0].target) // GREEDY_ROWS))
    target, folds, rows = units[0].target[subset], units[0].folds[subset], units[0].rows[subset]
    candidates = [unit.probability[subset] for unit in units]
    metric, sign = examples.metric, 1 if examples.metric.greater_is_better else -1

    def score(probability: np.ndarray) -> float:
        if metric.pooled:
            return sign * metric(target, probability, rows=rows)
        return sign * score_folds(metric, target, probability, folds, rows)[1]

    picks = np.zeros(len(candidates))
    total, best = np.zeros_like(candidates[0]), -np.inf
    with warnings.catch_warnings(action="ignore"):  # about classes missing from a fold; shown before
        for step in range(1, GREEDY_STEPS + 1):
            scores = [score((total + candidate) / step) for candidate in candidates]
            winner = int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
            if not scores[winner] > best:
                break
            best, total = scores[winner], total + candidates[winner]
            picks[winner] += 1
    weights = np.zeros(len(examples.probability))
    weights[sources] = picks / picks.sum() if picks.sum() else equal_weights(len(sources))
    return weights


def given(weights: np.ndarray) -> Method:
    return Method("given", "given weights", lambda examples: Blend(weights))


def equal(examples: Any, mean: Callable[[np.ndarray, np.ndarray], np.ndarray] = arithmetic) -> Blend:
    return Blend(equal_weights(len(examples.probability)), mean)


def _single(examples: Examples) -> Blend:
    return Blend(np.eye(len(examples.probability))[examples.ranking()[0]])


def _geometric(examples: Examples) -> Blend:
    return equal(examples, partial(geometric, exclusive=examples.exclusive))


def _simplex(examples: Examples) -> Blend:
    return Blend(simplex_weights(examples.probability, examples.target, examples.exclusive))


def _least_squares(examples: Examples) -> Blend:
    return Blend(least_squares_weights(examples.probability, examples.target))


SINGLE = Method("single", "best single source", _single)
MEAN = Method("mean", "arithmetic mean", equal)
GEOMETRIC = Method("geometric", "geometric mean", _geometric)
RANK = Method("rank", "mean of ranks", partial(equal, mean=rank_mean))
SIMPLEX = Method("simplex", "weights by log loss", _simplex)
NNLS = Method("nnls", "non-negative least squares", _least_squares)
GREEDY = Method("greedy", "greedy selection", lambda examples: Blend(greedy_weights(examples)))
BLENDS = (SINGLE, MEAN, GEOMETRIC, RANK, SIMPLEX, GREEDY)
BLENDS_OF_VALUES = (SINGLE, MEAN, NNLS, GREEDY)  # of numbers, not probabilities
