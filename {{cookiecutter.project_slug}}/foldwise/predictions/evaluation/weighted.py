"""Metrics as functions of row weights, prepared so that the same rows can be scored a thousand times.

A bootstrap asks for the score of one set of rows under many weights. `prepare_score(metric, *arrays)` does once what
does not depend on the weights. For a new metric nothing needs to be done: it is called with the rows repeated.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from foldwise.predictions.metrics import (
    Accuracy,
    Dice,
    FBeta,
    LogLoss,
    MacroF1,
    MapMetric,
    MeanAveragePrecision,
    MeanIoU,
    Metric,
    QuadraticKappa,
    RocAuc,
    RowMetric,
    cross_entropy,
)
from foldwise.predictions.metrics.records import repeat_records

Score = Callable[[np.ndarray], float]  # of (N,) weights: how often each row counts


def fold_score(metric: Metric, arrays: Sequence[np.ndarray], folds: np.ndarray) -> Score:
    """The score of weighted rows over all folds: of all rows together (pooled), or the mean over the folds.

    Args:
        arrays: as `prepare_score` takes them.
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


def prepare_score(metric: Metric, *arrays: np.ndarray) -> Score:
    """The metric of these rows as a function of their weights (N,), whole numbers that are not all zero.

    Args:
        metric: ready for its task.
        arrays: of a metric of rows target and probability (N, C) and records (N,), of maps the evidence (N, ...).
    """
    # By the exact class: what somebody's subclass computes, nobody knows here.
    return _PREPARED.get(type(metric), _repeat_rows)(metric, *arrays)


def _repeat_rows(metric: Any, *arrays: np.ndarray) -> Score:
    """For any metric: a row counts twice by being there twice, under two ids."""

    def score(weight: np.ndarray) -> float:
        drawn = np.repeat(np.arange(len(weight)), weight.astype(np.int64))
        if not len(drawn):
            return float("nan")
        if isinstance(metric, MapMetric):
            return metric.reduce(arrays[0][drawn])
        target, probability, rows = arrays
        return metric(
            target[drawn], probability[drawn], rows=repeat_records(rows, drawn) if metric.reads_rows else None
        )

    return score


def _evidence(metric: MapMetric, evidence: np.ndarray) -> Score:
    return partial(metric.reduce, evidence)


def _log_loss(metric: Any, target: np.ndarray, probability: np.ndarray, rows: np.ndarray) -> Score:
    return _mean_of_rows(cross_entropy(target, probability, metric.task.exclusive))


def _rowwise(metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: np.ndarray) -> Score:
    """A mean over rows: each distinct row is scored once."""
    true, answer, place = _distinct_rows(metric, target, probability)
    values = np.array([metric(true[row : row + 1], answer[row : row + 1]) for row in range(len(true))])
    return _mean_of_rows(values[place])


def _of_answers(metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: np.ndarray) -> Score:
    """Rows of the same truth and the same answer are one row with their weights added."""
    true, answer, place = _distinct_rows(metric, target, probability)
    return lambda weight: metric(true, answer, np.bincount(place, weights=weight, minlength=len(true)))


def _roc_auc(metric: RocAuc, target: np.ndarray, probability: np.ndarray, rows: np.ndarray) -> Score:
    rankings = _rankings(metric, target, probability)

    def area(positive: np.ndarray, every: np.ndarray) -> float:
        negative = every - positive
        pairs = positive.sum() * negative.sum()  # ties count half
        return float(positive @ (np.cumsum(negative) - negative / 2) / pairs) if pairs else float("nan")

    return lambda weight: metric.mean_of_classes(
        np.array([area(*levels(weight)) for levels in rankings]), "all rows have it, or none"
    )


def _mean_average_precision(
    metric: MeanAveragePrecision, target: np.ndarray, probability: np.ndarray, rows: np.ndarray
) -> Score:
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


_PREPARED: dict[type, Callable[..., Score]] = {
    Accuracy: _rowwise,
    Dice: _evidence,
    FBeta: _rowwise,
    LogLoss: _log_loss,
    MacroF1: _of_answers,
    MeanAveragePrecision: _mean_average_precision,
    MeanIoU: _evidence,
    QuadraticKappa: _of_answers,
    RocAuc: _roc_auc,
}


def _mean_of_rows(values: np.ndarray) -> Score:
    def score(weight: np.ndarray) -> float:
        total = weight.sum()
        return float(weight @ values / total) if total else float("nan")

    return score


def _distinct_rows(
    metric: RowMetric, target: np.ndarray, probability: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different pairs of truth and answer (K, C) as 0.0 and 1.0, and which of them (N,) each row is."""
    true, answer = metric.hard(target), metric.hard(probability, getattr(metric, "threshold", 0.5))
    packed = np.packbits(np.hstack([true, answer]), axis=1)
    _, first, place = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return true[first].astype(np.float64), answer[first].astype(np.float64), place.ravel()


def _rankings(
    metric: RowMetric, target: np.ndarray, probability: np.ndarray
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
