"""Blends of several members: means with weights that are given, equal, or fitted.

A member is one source of predictions. Values of members are (M, N, C) float32, weights (M,) with sum 1. Methods
are listed in `BLENDS`, the simplest first; each is fitted on `Examples` and then predicts rows it has not seen.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from foldwise.predictions.ensembles.examples import Examples, Method
from foldwise.predictions.metrics import score_folds
from foldwise.predictions.scoring import by_unit

EDGE = 2.0**-20  # probabilities are kept so far from 0 and 1; float32 has 1 - EDGE exactly, so both sides are alike
GREEDY_CANDIDATES = 10
GREEDY_STEPS = 30
GREEDY_ROWS = 10_000  # each step scores every candidate, and more rows hardly change the order


def arithmetic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean over the first axis."""
    mean = np.tensordot(np.asarray(weights, np.float32), values, axes=1)
    return mean.clip(values.min(), values.max(), out=mean)  # rounding


def geometric(
    probability: np.ndarray, weights: np.ndarray, exclusive: bool, axis: int = -1, edge: float = EDGE
) -> np.ndarray:
    """The weighted mean of log-probabilities over the first axis, renormalised; finite where a member says 0 or 1.

    Exclusive: the classes are those of `axis`, counted without the members' axis, and sum to 1 again. Otherwise: the
    mean of the log-odds, each class by itself.
    """
    from scipy.special import expit, logit, softmax

    transform = np.log if exclusive else logit
    total = np.zeros(probability.shape[1:], np.float32)
    for weight, member in zip(weights, probability, strict=True):  # one at a time: no second copy of all members
        total += np.float32(weight) * transform(member.clip(edge, 1 - edge))
    return softmax(total, axis=axis) if exclusive else expit(total)


def rank_mean(probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean of each class's ranks among the N rows, in (0, 1); ties share their mean rank.

    It is meant for the rows of one fold's model: ranks of several models have nothing in common. It is not a
    probability. With two classes that sum to 1 the ranks do so too.
    """
    total = np.zeros(probability.shape[1:], np.float64)
    for weight, member in zip(weights, probability, strict=True):
        total += weight * (pd.DataFrame(member).rank().to_numpy() - 0.5) / len(member)
    return total.astype(np.float32)


@dataclass(frozen=True)
class Blend:
    """A mean with weights."""

    weights: np.ndarray
    mean: Callable[[np.ndarray, np.ndarray], np.ndarray] = arithmetic

    def predict(self, probability: np.ndarray, extra: np.ndarray) -> np.ndarray:
        return self.mean(probability, self.weights)


def equal_weights(members: int) -> np.ndarray:
    """(M,) weights of a plain mean."""
    return np.full(members, 1 / members)


def one_hot(member: int, members: int) -> np.ndarray:
    """(M,) weights of one member alone."""
    return np.eye(members)[member]


def simplex_weights(probability: np.ndarray, target: np.ndarray, exclusive: bool) -> np.ndarray:
    """Weights (M,) of 0 or more with sum 1 that minimise the log loss of the arithmetic mean: a convex problem.

    Log loss and not the competition's metric: it has one minimum, a gradient, and no steps to get stuck on.

    Args:
        probability: (M, N, C).
        target: (N, C) in [0, 1].
    """
    from scipy.optimize import Bounds, LinearConstraint, minimize

    members = len(probability)
    cells = probability[:, target > 0] if exclusive else probability.reshape(members, -1)
    yes = target[target > 0] if exclusive else target.ravel()
    no = np.zeros_like(yes) if exclusive else 1 - yes

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mean = (weights.astype(np.float32) @ cells).clip(EDGE, 1 - EDGE)
        value = -np.mean(yes * np.log(mean) + no * np.log1p(-mean), dtype=np.float64)
        slope = cells @ ((no / (1 - mean) - yes / mean) / np.float32(len(mean)))
        return float(value), slope.astype(np.float64)

    result = minimize(
        loss,
        equal_weights(members),
        jac=True,
        method="SLSQP",
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.ones(members), 1, 1),
        options={"maxiter": 100, "ftol": 1e-7},
    )
    weights = np.where(result.x < 1e-4, 0, result.x)
    return weights / weights.sum()


def greedy_weights(examples: Examples) -> np.ndarray:
    """Forward selection with replacement by the competition's metric (Caruana et al. 2004); (M,) the shares of picks.

    Each step adds the member that makes the mean of all picks best, and the first step that improves nothing is the
    end. Only the best ten members by themselves take part, which is quicker and overfits less (Caruana et al. 2006).
    """
    members = examples.ranking()[:GREEDY_CANDIDATES]
    units = [by_unit(examples.table, examples.rows, examples.probability[m], examples.folds) for m in members]
    every = slice(None, None, -(-len(units[0].target) // GREEDY_ROWS))
    target, folds, rows = units[0].target[every], units[0].folds[every], units[0].rows[every]
    candidates = [unit.probability[every] for unit in units]
    metric, sign = examples.metric, 1 if examples.metric.greater_is_better else -1

    def score(probability: np.ndarray) -> float:
        if metric.pooled:
            return sign * metric(target, probability, rows=rows)
        return sign * score_folds(metric, target, probability, folds, rows)[1]

    picks = np.zeros(len(candidates))
    total, best = np.zeros_like(candidates[0]), -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that a fold lacks: said once, with the scores of the members
        for step in range(1, GREEDY_STEPS + 1):
            scores = [score((total + candidate) / step) for candidate in candidates]
            winner = int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
            if not scores[winner] > best:
                break
            best, total = scores[winner], total + candidates[winner]
            picks[winner] += 1
    weights = np.zeros(len(examples.probability))
    weights[members] = picks / picks.sum() if picks.sum() else equal_weights(len(members))
    return weights


def given(weights: np.ndarray) -> Method:
    """Weights that somebody chose."""
    return Method("given", "given weights", lambda examples: Blend(weights))


def _best_single(examples: Examples) -> Blend:
    return Blend(one_hot(int(examples.ranking()[0]), len(examples.probability)))


def _arithmetic(examples: Examples) -> Blend:
    return Blend(equal_weights(len(examples.probability)))


def _geometric(examples: Examples) -> Blend:
    return Blend(equal_weights(len(examples.probability)), partial(geometric, exclusive=examples.exclusive))


def _rank_mean(examples: Examples) -> Blend:
    return Blend(equal_weights(len(examples.probability)), rank_mean)


def _simplex(examples: Examples) -> Blend:
    return Blend(simplex_weights(examples.probability, examples.target, examples.exclusive))


def _greedy(examples: Examples) -> Blend:
    return Blend(greedy_weights(examples))


SINGLE = Method("single", "best single source", _best_single)
MEAN = Method("mean", "arithmetic mean", _arithmetic)
GEOMETRIC = Method("geometric", "geometric mean", _geometric)
RANK = Method("rank", "mean of ranks", _rank_mean)
SIMPLEX = Method("simplex", "weights by log loss", _simplex)
GREEDY = Method("greedy", "greedy selection", _greedy)
BLENDS = (SINGLE, MEAN, GEOMETRIC, RANK, SIMPLEX, GREEDY)
BLENDS_OF_VALUES = (SINGLE, MEAN, GREEDY)  # of whatever a task has
