"""The competition's score of predictions by a table, whose units may have several images."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from foldwise.data.table import Table
from foldwise.predictions.metrics import RowMetric, score_folds
from foldwise.predictions.metrics.base import row_records


class Scored(NamedTuple):
    """Scored units: targets (U, C), values (U, C), folds (U,) and records (U,), see `metrics.base.row_records`."""

    target: np.ndarray
    probability: np.ndarray
    folds: np.ndarray
    rows: np.ndarray


def by_unit(table: Table, rows: np.ndarray, probability: np.ndarray, folds: np.ndarray) -> Scored:
    """Targets and predictions of units: the mean over the images of one `unit`.

    Where the table has no units, every row is one. Rows of fold -1, which are never scored, are left out first.

    Args:
        rows: (N,) row numbers in the table, in any order, each once.
        probability: (N, C) predictions of these rows.
        folds: (N,) folds of these rows.
    """
    assert table.target is not None
    scored = folds >= 0
    rows, probability, folds = rows[scored], probability[scored], folds[scored]
    target, records = table.target[rows], row_records(table.frame.iloc[rows])
    if "unit" not in table.frame:
        return Scored(target, probability, folds, records)
    code, _ = pd.factorize(table.frame["unit"].to_numpy()[rows])
    count = np.bincount(code)[:, None]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(code, weights=column) for column in values.T], axis=1) / count

    first = np.unique(code, return_index=True)[1]
    return Scored(mean(target), mean(probability), folds[first], records)


def score_rows(metric: RowMetric, table: Table, rows: np.ndarray, probability: np.ndarray) -> float:
    """The score of predictions (N, C) of these rows, units averaged."""
    scored = by_unit(table, rows, probability, np.zeros(len(rows), int))
    return metric(scored.target, scored.probability, rows=scored.rows)


def score_table(
    metric: RowMetric, table: Table, rows: np.ndarray, probability: np.ndarray, folds: np.ndarray
) -> tuple[dict[int, float], float]:
    """The score of each fold and of all of them, units averaged; see `metrics.score_folds`."""
    return score_folds(metric, *by_unit(table, rows, probability, folds))
