"""Importance of parts of the input: how much worse the score is without them, on the evaluation's bootstrap draws."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from foldwise.predictions.evaluation.bootstrap import FEWEST_GROUPS, interval, resample, resampled_groups
from foldwise.predictions.evaluation.evaluate import Evaluation
from foldwise.predictions.metrics import fold_score
from foldwise.predictions.scoring import by_unit
from foldwise.progress import Progress, silent


def measure_importance(
    evaluation: Evaluation, predicted: Mapping[str, np.ndarray], seed: int = 0, progress: Progress = silent
) -> pd.DataFrame:
    """Score predictions of the table by the competition's metric, and compare them with the first.

    Args:
        predicted: by what they are made from, values (R, N, C) of the table's rows; repeats are averaged by score.

    Returns:
        Columns "predicted from", score, "worse by", low, high, the last two NaN with too few groups; all after the
        first three in order of "worse by".
    """
    truth, metric, first = evaluation.truth, evaluation.metrics[0], evaluation.evidence[0]
    rows = np.setdiff1d(np.flatnonzero(truth.folds >= 0), evaluation.shown)
    groups, _ = resampled_groups(truth.table, first.rows)
    names, parts = [], []
    for name, repeats in predicted.items():
        for values in repeats:
            target, value, folds, records = by_unit(truth.table, rows, values[rows].astype(float), truth.folds[rows])
            names.append(name)
            parts.append((np.arange(len(folds)), fold_score(metric, (target, value, records), folds)))
    scores = np.array([score(np.ones(len(units))) for units, score in parts])
    draws = resample(parts, groups, evaluation.resamples, seed, progress)
    sign, lines = 1 if metric.greater_is_better else -1, []
    for name in predicted:
        own = np.flatnonzero(np.array(names) == name)
        worse = sign * (draws[:, 0] - draws[:, own].mean(axis=1))
        ends = interval(worse) if evaluation.groups >= FEWEST_GROUPS else (np.nan, np.nan)
        score = scores[own].mean()
        lines.append((name, score, sign * (scores[0] - score), *ends))
    frame = pd.DataFrame(lines, columns=["predicted from", "score", "worse by", "low", "high"])
    return pd.concat([frame[:3], frame[3:].sort_values("worse by", ascending=False, kind="stable")], ignore_index=True)
