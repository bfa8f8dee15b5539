"""Confidence intervals of scores and their differences: bootstrap over images, t interval over seeds.

Images of one group (patient, scene, video) are alike and carry less information than images of different groups. The
cluster bootstrap therefore draws groups with replacement (Davison and Hinkley 1997, section 3.8). Intervals are
percentile intervals (Efron and Tibshirani 1993, section 13.3).
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from foldwise.data.table import Table
from foldwise.predictions.metrics.base import Score
from foldwise.predictions.selection import paired_error
from foldwise.progress import Progress, silent, stepping

LEVEL = 0.95
FEWEST_GROUPS = 10  # with fewer, intervals are much too narrow (Cameron, Gelbach and Miller 2008)


def resampled_groups(table: Table, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Number the group (else unit, else image) of each row (N,); also return the plural, such as "groups"."""
    for name in ("group", "unit"):
        if name in table.frame:
            return pd.factorize(table.frame[name].to_numpy()[rows])[0], f"{name}s"
    return np.arange(len(rows)), "images"


def resample(
    parts: Sequence[tuple[np.ndarray, Score]],
    groups: np.ndarray,
    resamples: int,
    seed: int,
    progress: Progress = silent,
) -> np.ndarray:
    """Score bootstrap samples of groups, each with all its rows; return (resamples, parts).

    All parts are scored on the same draws, so differences of columns are paired.

    Args:
        parts: row indices, and their score as a function of weights; NaN for a draw without any of the rows.
        groups: (N,) the group of each row, numbered from 0.
    """
    generator, count = np.random.default_rng(seed), int(groups.max()) + 1
    scores = np.empty((resamples, len(parts)))
    step = stepping(progress, "bootstrap", resamples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes missing from a draw
        for row in scores:
            drawn = np.bincount(generator.integers(count, size=count), minlength=count)
            weight = drawn[groups].astype(np.float64)
            row[:] = [score(weight[rows]) for rows, score in parts]
            step()
    return scores


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrap scores (B,); NaN if less than half of them are finite."""
    finite = samples[np.isfinite(samples)]
    if len(finite) < len(samples) / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


class Difference(NamedTuple):
    """First side minus second, averaged over pairs of predictions, one pair per seed.

    `low` and `high` are the interval over images, NaN with too few groups. `error` is the standard error over seeds,
    and `seed_low` and `seed_high` the interval over seeds, NaN with one pair.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    pairs: int
    error: float
    seed_low: float
    seed_high: float
    verdict: str


def compare(
    first: np.ndarray,
    second: np.ndarray,
    first_samples: np.ndarray,
    second_samples: np.ndarray,
    greater_is_better: bool,
    enough_groups: bool = True,
) -> Difference:
    """Compare two sides by their scores and bootstrap scores.

    Args:
        first, second: (K,) scores, paired by seed.
        first_samples, second_samples: (B, K) scores on the same bootstrap draws.
        enough_groups: False omits the interval over images.
    """
    pairs = len(first)
    mean, error = paired_error(first.tolist(), second.tolist())
    low, high = np.nan, np.nan
    if enough_groups:
        low, high = interval(first_samples.mean(axis=1) - second_samples.mean(axis=1))
    error, half, limits = error if pairs > 1 else np.nan, np.nan, [low, high]
    if pairs > 1:
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, pairs - 1)) * error
        limits += [mean - half, mean + half]
    verdict = _verdict(np.array(limits) * (1 if greater_is_better else -1), pairs)
    sides = float(np.mean(first)), float(np.mean(second))
    return Difference(*sides, mean, low, high, pairs, error, mean - half, mean + half, verdict)


def _verdict(limits: np.ndarray, pairs: int) -> str:
    """Judge the first side by the ends of its intervals, where larger is better."""
    if np.isnan(limits).any():
        return "too few groups to tell"
    where = "" if pairs > 1 else " on these images"
    if (limits > 0).all():
        return f"better{where}"
    return f"worse{where}" if (limits < 0).all() else "no clear difference"
