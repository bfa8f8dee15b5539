"""Scores of predictions against a table; images of one unit are reduced first."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from foldwise.data.table import Table
from foldwise.predictions.metrics import RankMetric, RowMetric, score_folds
from foldwise.predictions.metrics.base import row_records
from foldwise.predictions.search import search
from foldwise.tasks import find_task


class Scored(NamedTuple):
    """Scored units, or rows of a table without units."""

    target: np.ndarray  # (U, C)
    probability: np.ndarray  # (U, C)
    folds: np.ndarray  # (U,)
    rows: np.ndarray  # (U,) records, see `metrics.base.row_records`


def by_unit(table: Table, rows: np.ndarray, probability: np.ndarray, folds: np.ndarray) -> Scored:
    """Reduce the predictions of the images of each `unit`, and average their targets; drop rows of fold -1.

    Args:
        rows: (N,) distinct row indices into the table.
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
    task, first = find_task(table.task), np.unique(code, return_index=True)[1]
    reduced = task.of_units(probability.astype(np.float64), code, table.reduction)
    return Scored(task.of_units(target.astype(np.float64), code, "mean"), reduced, folds[first], records)


def score_rows(metric: RowMetric | RankMetric, table: Table, rows: np.ndarray, probability: np.ndarray) -> float:
    """Score predictions (N, C) of these table rows; images of a unit are reduced first, vectors searched among all."""
    if isinstance(metric, RankMetric):
        assert table.target is not None
        identity = table.target[rows, 0]
        return metric.reduce(search(probability, probability, identity, 1, identity, np.arange(len(rows))).rank)
    scored = by_unit(table, rows, probability, np.zeros(len(rows), int))
    return metric(scored.target, scored.probability, rows=scored.rows)


def score_table(
    metric: RowMetric, table: Table, rows: np.ndarray, probability: np.ndarray, folds: np.ndarray
) -> tuple[dict[int, float], float]:
    """Score each fold and all folds (`metrics.score_folds`); images of a unit are reduced first."""
    return score_folds(metric, *by_unit(table, rows, probability, folds))
