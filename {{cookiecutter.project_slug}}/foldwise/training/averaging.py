"""Averages the weights of a fold's snapshots, and chooses how many to average.

Snapshots at the ends of annealing cycles often lie in one basin of the loss. The mean of their weights is then about as
good as the mean of their probabilities, at the cost of one network (Izmailov et al., arXiv:1803.05407). Otherwise the
mean is useless. So the number n is chosen out of fold:

- The candidates are the means of the newest n snapshots, n = 1, 2, ... (with `top_k`: of the best n epochs).
- Each candidate is scored on the held-out rows of its fold.
- Fold k uses the n with the best mean score on the other folds. Their networks were trained on fold k's labels, as
  always in cross-validation, but no score on fold k's rows is used.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from foldwise.inference.weights import find_models
from foldwise.predictions.schema import raise_problems
from foldwise.shell import command, override


def find_snapshots(
    run: Path, config: Mapping[str, Any], folds: Sequence[int], greater_is_better: bool
) -> dict[int, list[str]]:
    """Names of each fold's snapshots, newest first; with `top_k`, of the best epochs, best first.

    Raises:
        PredictionsError: fewer than two folds or snapshots, unfinished folds, missing snapshots; lists all problems.
    """
    problems = []
    if len(folds) < 2:
        problems.append("it has one fold; the number of averaged snapshots is chosen on other folds, so it takes two")
    unfinished = [fold for fold in folds if not (run / f"fold{fold}" / "metrics.json").is_file()]
    if unfinished or not (run / "metrics.json").is_file():
        subject = f"its folds {unfinished} are" if unfinished else "it is"
        resume = command("python", "train.py", override("run", str(run)), "fold=all")
        problems.append(f"{subject} not finished: {resume} resumes")
    snapshots = {
        fold: _snapshot_names(run / f"fold{fold}", config, greater_is_better)
        for fold in folds
        if fold not in unfinished
    }
    counts = {fold: len(names) for fold, names in snapshots.items()}
    if snapshots and max(counts.values()) < 2:
        problems.append("it keeps fewer than two snapshots a fold: train with phases=cycles or top_k=3")
    elif len(set(counts.values())) > 1:
        problems.append(f"the folds have different numbers of snapshots: {counts}")
    for fold, names in snapshots.items():
        missing = sorted(set(names) - find_models(run / f"fold{fold}").keys(), key=names.index)
        if missing:
            problems.append(f"fold {fold} lacks the snapshots {', '.join(missing)}: copy the whole run again")
    raise_problems(run, problems)
    return snapshots


def _snapshot_names(fold: Path, config: Mapping[str, Any], greater_is_better: bool) -> list[str]:
    """The names that `training.snapshots` gives."""
    if not config["top_k"]:
        return [name for name, phase in reversed(config["phases"].items()) if phase["epochs"] and phase.get("snapshot")]
    history = pd.read_csv(fold / "history.csv")
    history = history[np.isfinite(history["score"])]
    best = history.sort_values("score", ascending=not greater_is_better, kind="stable")["epoch"][: config["top_k"]]
    return [f"epoch{epoch:03d}" for epoch in best]


def average_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Uniform mean of network states, computed in float32; integer counters come from the first state."""
    return {
        name: torch.stack([state[name].float() for state in states]).mean(dim=0).to(newest.dtype)
        if newest.is_floating_point()
        else newest
        for name, newest in states[0].items()
    }


def frozen_norms(states: Sequence[Mapping[str, Tensor]]) -> set[str]:
    """Names of BatchNorms with equal statistics in all states: training froze them, so the average keeps them."""
    return {
        name.removesuffix(".running_mean")
        for name in states[0]
        if name.endswith(".running_mean") and all(torch.equal(state[name], states[0][name]) for state in states)
    }


def choose_counts(scores: Mapping[int, Mapping[int, float]], greater_is_better: bool) -> dict[int, int]:
    """For each fold, the n with the best mean score on the other folds; of equals the smallest.

    Args:
        scores: by n (ascending from 1) and fold; NaN does not count.
    """
    sign = 1 if greater_is_better else -1

    def mean_of_others(n: int, fold: int) -> float:
        others = [sign * score for other, score in scores[n].items() if other != fold and not math.isnan(score)]
        return fmean(others) if others else -math.inf

    return {fold: max(scores, key=lambda n: mean_of_others(n, fold)) for fold in scores[1]}
