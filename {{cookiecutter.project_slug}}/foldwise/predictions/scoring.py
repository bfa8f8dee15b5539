"""The competition's score of predictions against a table. What is predicted may be a unit of several images."""

import numpy as np
import pandas as pd

from foldwise.data.table import Table
from foldwise.predictions.metrics import ClassificationMetric, score_folds


def by_unit(
    table: Table, rows: np.ndarray, probability: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (U, C), probabilities (U, C) and folds (U,) of units: the mean over the images of one `unit`.

    Where the table has no units, every row is one. Rows of fold -1, which are never scored, are left out first.

    Args:
        rows: (N,) row numbers in the table, in any order, each once.
        probability: (N, C) predictions of these rows.
        folds: (N,) folds of these rows.
    """
    assert table.target is not None
    scored = folds >= 0
    rows, probability, folds = rows[scored], probability[scored], folds[scored]
    target = table.target[rows]
    if "unit" not in table.frame:
        return target, probability, folds
    code, _ = pd.factorize(table.frame["unit"].to_numpy()[rows])
    count = np.bincount(code)[:, None]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(code, weights=column) for column in values.T], axis=1) / count

    first = np.unique(code, return_index=True)[1]
    return mean(target), mean(probability), folds[first]


def score_rows(metric: ClassificationMetric, table: Table, rows: np.ndarray, probability: np.ndarray) -> float:
    """The score of predictions (N, C) of these rows, units averaged."""
    target, probability, _ = by_unit(table, rows, probability, np.zeros(len(rows), int))
    return metric(target, probability)


def score_table(
    metric: ClassificationMetric, table: Table, rows: np.ndarray, probability: np.ndarray, folds: np.ndarray
) -> tuple[dict[int, float], float]:
    """The score of each fold and of all of them, units averaged; see `metrics.score_folds`."""
    return score_folds(metric, *by_unit(table, rows, probability, folds))
