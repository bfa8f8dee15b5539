"""The score of each fold and of all of them."""

import warnings
from collections.abc import Callable

import numpy as np

from foldwise.predictions.metrics.base import RowMetric, warn
from foldwise.predictions.metrics.segmentation import MapMetric


def score_folds(
    metric: RowMetric,
    target: np.ndarray,
    probability: np.ndarray,
    folds: np.ndarray,
    rows: np.ndarray | None = None,
) -> tuple[dict[int, float], float]:
    """The score of each fold, and of all folds: over all rows together (pooled), or the mean over the folds.

    Rows of fold -1 are never scored. Folds without a score (NaN) are left out of the mean; the warnings name the fold.

    Args:
        target, probability, folds, rows: as `scoring.Scored` has them.
    """

    def score(own: np.ndarray) -> float:
        return metric(target[own], probability[own], rows=None if rows is None else rows[own])

    return _over_folds(score, metric.pooled, folds)


def score_fold_evidence(metric: MapMetric, evidence: np.ndarray, folds: np.ndarray) -> tuple[dict[int, float], float]:
    """As `score_folds`, of the evidence (N, ...) of a metric of maps."""
    return _over_folds(lambda own: metric.reduce(evidence[own]), metric.pooled, folds)


def _over_folds(
    score: Callable[[np.ndarray], float], pooled: bool, folds: np.ndarray
) -> tuple[dict[int, float], float]:
    folds = np.asarray(folds)
    per_fold = {}
    for fold in sorted(int(fold) for fold in np.unique(folds) if fold >= 0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            per_fold[fold] = score(folds == fold)
        for warning in caught:
            warn(f"fold {fold}: {warning.message}")
    if pooled:
        return per_fold, score(folds >= 0)
    finite = [value for value in per_fold.values() if np.isfinite(value)]
    return per_fold, float(np.mean(finite)) if finite else float("nan")
