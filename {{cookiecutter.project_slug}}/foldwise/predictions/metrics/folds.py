"""Scores of each fold and of all folds, also as functions of row weights for a bootstrap."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foldwise.predictions.metrics.base import Metric, RowMetric, Score, repeat_records, warn
from foldwise.predictions.metrics.maps import MapMetric
from foldwise.predictions.metrics.ranks import RankMetric


def score_folds(
    metric: RowMetric,
    target: np.ndarray,
    probability: np.ndarray,
    folds: np.ndarray,
    rows: np.ndarray | None = None,
) -> tuple[dict[int, float], float]:
    """Score each fold, and all folds: pooled over their rows, or the mean of the folds' scores.

    Arguments are as in `scoring.Scored`. Rows of fold -1 are not scored. The mean leaves out folds whose score is NaN.
    """

    def score(chosen: np.ndarray) -> float:
        return metric(target[chosen], probability[chosen], rows=None if rows is None else rows[chosen])

    return _score(score, metric.pooled, folds)


def score_fold_evidence(
    metric: MapMetric | RankMetric, evidence: np.ndarray, folds: np.ndarray
) -> tuple[dict[int, float], float]:
    """As `score_folds`, from the evidence (N, ...) of a map metric or the ranks (N,) of a rank metric."""
    return _score(lambda chosen: metric.reduce(evidence[chosen]), metric.pooled, folds)


def fold_score(metric: Metric, arrays: Sequence[np.ndarray], folds: np.ndarray) -> Score:
    """Return the score over all folds as a function of row weights; arrays as in `prepare_score`, no fold is -1."""
    if metric.pooled:
        return prepare_score(metric, *arrays)
    rows_of = {fold: np.flatnonzero(folds == fold) for fold in np.unique(folds).tolist()}
    score_of = {fold: prepare_score(metric, *(array[rows] for array in arrays)) for fold, rows in rows_of.items()}
    return lambda weight: _mean(
        _each_fold({fold: partial(score_of[fold], weight[rows]) for fold, rows in rows_of.items()})
    )


def prepare_score(metric: Any, *arrays: np.ndarray) -> Score:
    """Return the score of these rows as a function of their weights (N,), which are whole numbers.

    For a metric without `prepare`, rows are repeated: a row of weight 2 occurs twice, under two ids.

    Args:
        arrays: target (N, C), probability (N, C) and records (N,); for other metrics the evidence (N, ...).
    """
    evidence = not isinstance(metric, RowMetric)
    if "prepare" in vars(type(metric)):  # an inherited `prepare` may not suit a subclass
        return metric.prepare(*arrays[: 1 if evidence else 2])

    def score(weight: np.ndarray) -> float:
        drawn = np.repeat(np.arange(len(weight)), weight.astype(np.int64))
        if not len(drawn):
            return float("nan")
        if evidence:
            return metric.reduce(arrays[0][drawn])
        target, probability, rows = arrays
        reads_records = type(metric)._score_rows is not RowMetric._score_rows  # ten times as fast without
        records = repeat_records(rows, drawn) if reads_records else None
        return metric(target[drawn], probability[drawn], rows=records)

    return score


def _score(score: Callable[[np.ndarray], float], pooled: bool, folds: np.ndarray) -> tuple[dict[int, float], float]:
    folds = np.asarray(folds)
    numbers = sorted(int(fold) for fold in np.unique(folds) if fold >= 0)
    per_fold = _each_fold({fold: partial(score, folds == fold) for fold in numbers})
    if not pooled:
        return per_fold, _mean(per_fold)
    # The same rows again would give the same score, and its warnings twice.
    return per_fold, per_fold[numbers[0]] if len(numbers) == 1 else score(folds >= 0)


def _each_fold(scores: Mapping[int, Callable[[], float]]) -> dict[int, float]:
    per_fold = {}
    for fold, score in scores.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            per_fold[fold] = score()
        for warning in caught:
            warn(f"fold {fold}: {warning.message}")
    return per_fold


def _mean(per_fold: Mapping[int, float]) -> float:
    finite = [value for value in per_fold.values() if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
