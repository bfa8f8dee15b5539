"""How far a score, or a difference of scores, can be trusted: bootstrap over images, t interval over seeds.

Images of one group (patient, scene, video) are alike, so that a hundred of them say less than a hundred of different
groups. What is drawn with replacement is therefore the group: the cluster bootstrap (Davison and Hinkley 1997,
section 3.8), with percentile intervals (Efron and Tibshirani 1993, section 13.3).
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from foldwise.data.table import Table
from foldwise.predictions.evaluation.weighted import Score
from foldwise.predictions.selection import paired_error

LEVEL = 0.95
FEWEST_GROUPS = 10  # of fewer, an interval would be much too narrow (Cameron, Gelbach and Miller 2008)


def resampled_groups(table: Table, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """What is drawn: the group of each of the rows (N,) as a number, and what the groups are called.

    It is the table's group column, else its unit, else every row for itself.
    """
    for name in ("group", "unit"):
        if name in table.frame:
            return pd.factorize(table.frame[name].to_numpy()[rows])[0], f"{name}s"
    return np.arange(len(rows)), "images"


def resample(
    parts: Sequence[tuple[np.ndarray, Score]], groups: np.ndarray, resamples: int, seed: int, progress: bool = False
) -> np.ndarray:
    """Score bootstrap samples: as many groups as there are, drawn with replacement, with all their rows.

    Every part is scored on the same draws, so that differences of columns are paired.

    Args:
        parts: rows and a score of their weights; the score of a draw without any of the rows is NaN.
        groups: (N,) the group of each row, numbers from 0 on.

    Returns:
        (resamples, parts) scores.
    """
    from rich.console import Console
    from rich.progress import track

    generator, count = np.random.default_rng(seed), int(groups.max()) + 1
    scores = np.empty((resamples, len(parts)))
    steps = track(
        range(resamples),
        "bootstrap",
        console=Console(stderr=True),
        transient=True,
        disable=not (progress and sys.stderr.isatty()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that a draw lacks, a thousand times
        for step in steps:
            drawn = np.bincount(generator.integers(count, size=count), minlength=count)
            weight = drawn[groups].astype(np.float64)
            scores[step] = [score(weight[rows]) for rows, score in parts]
    return scores


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap scores (B,); NaN where less than half of them exist."""
    finite = samples[np.isfinite(samples)]
    if len(finite) < len(samples) / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """One side minus the other: the mean over `pairs` of predictions, one pair a seed.

    `low` and `high` say how far it holds for other images like these, `seed_low` and `seed_high` for other seeds, with
    `error` the standard error over seeds; these three are NaN with one pair, and the first two with too few groups.
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
    """Compare two sides by their scores, and by their scores on the same bootstrap draws.

    Args:
        first, second: (K,) scores, in pairs of one seed.
        first_samples, second_samples: (B, K) bootstrap scores.
        enough_groups: False leaves the interval over images out.
    """
    mean, error = paired_error(first.tolist(), second.tolist())
    paired = first_samples.mean(axis=1) - second_samples.mean(axis=1)
    low, high = interval(paired) if enough_groups else (np.nan, np.nan)
    limits = [low, high]
    half = np.nan
    if len(first) > 1:
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, len(first) - 1)) * error
        limits += [mean - half, mean + half]
    verdict = _verdict(np.array(limits) * (1 if greater_is_better else -1), len(first))
    error = error if len(first) > 1 else np.nan
    return Difference(
        float(np.mean(first)),
        float(np.mean(second)),
        mean,
        low,
        high,
        len(first),
        error,
        mean - half,
        mean + half,
        verdict,
    )


def _verdict(limits: np.ndarray, pairs: int) -> str:
    """What intervals (their ends, larger is better) say of the first side."""
    if np.isnan(limits).any():
        return "too few groups to tell"
    if (limits > 0).all():
        return "better" if pairs > 1 else "better on these images"
    if (limits < 0).all():
        return "worse" if pairs > 1 else "worse on these images"
    return "no clear difference"
