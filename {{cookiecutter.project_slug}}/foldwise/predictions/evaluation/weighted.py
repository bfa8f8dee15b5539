"""Metrics as functions of row weights, prepared so that the same rows can be scored a thousand times.

A bootstrap asks for the score of one set of rows under many weights. `prepare_score(metric, *arrays)` does once what
does not depend on the weights. For a new metric nothing needs to be done: it is called as it is, with the weights.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from typing import Any

import numpy as np

from foldwise.predictions.metrics import (
    Accuracy,
    ClassificationMetric,
    FBeta,
    LogLoss,
    MacroF1,
    MeanAveragePrecision,
    Metric,
    Published,
    QuadraticKappa,
    RocAuc,
    SegmentationMetric,
    cross_entropy,
)

Score = Callable[[np.ndarray], float]  # of (N,) weights: how often each row counts


def fold_score(metric: Metric, arrays: Sequence[np.ndarray], folds: np.ndarray) -> Score:
    """The score of weighted rows over all folds: of all rows together (pooled), or the mean over the folds.

    Args:
        arrays: target and probability (N, C), or the pixel counts (N, C, 3), as the metric takes them.
        folds: (N,) folds of the rows; those without a score are left out of the mean, as in `metrics.score_folds`.
    """
    if metric.pooled:
        return prepare_score(metric, *arrays)
    rows_of = {fold: np.flatnonzero(folds == fold) for fold in np.unique(folds).tolist()}
    score_of = {fold: prepare_score(metric, *(array[rows] for array in arrays)) for fold, rows in rows_of.items()}

    def score(weight: np.ndarray) -> float:
        values = []
        for fold, rows in rows_of.items():
            with warnings.catch_warnings(record=True) as caught:
                values.append(score_of[fold](weight[rows]))
            for warning in caught:
                warnings.warn(f"fold {fold}: {warning.message}", stacklevel=2)
        finite = [value for value in values if np.isfinite(value)]
        return float(np.mean(finite)) if finite else float("nan")

    return score


@singledispatch
def prepare_score(metric: Any, *arrays: np.ndarray) -> Score:
    """The metric of these rows as a function of their weights (N,), whole numbers that are not all zero.

    Args:
        metric: ready for its task.
        arrays: target and probability (N, C), or pixel counts (N, C, 3).
    """
    raise TypeError(f"{type(metric).__name__} is neither a classification nor a segmentation metric")


@prepare_score.register
def _(metric: ClassificationMetric, target: np.ndarray, probability: np.ndarray) -> Score:
    return partial(metric, target, probability)


@prepare_score.register
def _(metric: SegmentationMetric, counts: np.ndarray) -> Score:
    return partial(metric.reduce, counts)


@prepare_score.register
def _(metric: Published, target: np.ndarray, probability: np.ndarray) -> Score:
    """A published function takes no weights: the rows themselves are repeated."""

    def score(weight: np.ndarray) -> float:
        rows = np.repeat(np.arange(len(weight)), weight.astype(np.int64))
        return metric(target[rows], probability[rows])

    return score


@prepare_score.register
def _(metric: LogLoss, target: np.ndarray, probability: np.ndarray) -> Score:
    return _mean_of_rows(cross_entropy(target, probability, metric.task == "multilabel"))


@prepare_score.register(Accuracy)
@prepare_score.register(FBeta)
def _(metric: ClassificationMetric, target: np.ndarray, probability: np.ndarray) -> Score:
    """A mean over rows: each distinct row is scored once."""
    true, answer, place = _distinct_rows(metric, target, probability)
    values = np.array([metric(true[row : row + 1], answer[row : row + 1]) for row in range(len(true))])
    return _mean_of_rows(values[place])


@prepare_score.register(MacroF1)
@prepare_score.register(QuadraticKappa)
def _(metric: ClassificationMetric, target: np.ndarray, probability: np.ndarray) -> Score:
    """Rows of the same truth and the same answer are one row with their weights added."""
    true, answer, place = _distinct_rows(metric, target, probability)
    return lambda weight: metric(true, answer, np.bincount(place, weights=weight, minlength=len(true)))


@prepare_score.register
def _(metric: RocAuc, target: np.ndarray, probability: np.ndarray) -> Score:
    rankings = _rankings(metric, target, probability)

    def area(positive: np.ndarray, every: np.ndarray) -> float:
        negative = every - positive
        pairs = positive.sum() * negative.sum()  # ties count half
        return float(positive @ (np.cumsum(negative) - negative / 2) / pairs) if pairs else float("nan")

    return lambda weight: metric.mean_of_classes(
        np.array([area(*levels(weight)) for levels in rankings]), "all rows have it, or none"
    )


@prepare_score.register
def _(metric: MeanAveragePrecision, target: np.ndarray, probability: np.ndarray) -> Score:
    rankings = _rankings(metric, target, probability)

    def average_precision(positive: np.ndarray, every: np.ndarray) -> float:
        if not positive.sum():
            return float("nan")
        found, answered = np.cumsum(positive[::-1]), np.cumsum(every[::-1])  # from the highest level down
        precision = np.divide(found, answered, out=np.zeros(len(found)), where=answered > 0)
        return float(positive[::-1] @ precision / positive.sum())

    return lambda weight: metric.mean_of_classes(
        np.array([average_precision(*levels(weight)) for levels in rankings]), "no row has it"
    )


def _mean_of_rows(values: np.ndarray) -> Score:
    def score(weight: np.ndarray) -> float:
        total = weight.sum()
        return float(weight @ values / total) if total else float("nan")

    return score


def _distinct_rows(
    metric: ClassificationMetric, target: np.ndarray, probability: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different pairs of truth and answer (K, C) as 0.0 and 1.0, and which of them (N,) each row is."""
    true, answer = metric.hard(target), metric.hard(probability, getattr(metric, "threshold", 0.5))
    packed = np.packbits(np.hstack([true, answer]), axis=1)
    _, first, place = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return true[first].astype(np.float64), answer[first].astype(np.float64), place.ravel()


def _rankings(
    metric: ClassificationMetric, target: np.ndarray, probability: np.ndarray
) -> list[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """For each class, a function from the weights to (positive, every): the weights of each level of probability.

    Levels are in rising order; rows of equal probability share one.
    """
    return [
        _ranking(true, values) for true, values in zip(metric.hard(target).T, np.asarray(probability).T, strict=True)
    ]


def _ranking(true: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    sorted_true = true[order].astype(np.float64)

    def levels(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = weight[order]
        return np.add.reduceat(weight * sorted_true, starts), np.add.reduceat(weight, starts)

    return levels
