"""Averages of a fold's snapshots, and the rule by which one of them is chosen.

Networks at the ends of annealing cycles often lie in one basin of the loss, and the mean of their weights is then
about as good as the mean of their probabilities, at the cost of one network (Izmailov et al., arXiv:1803.05407).
Where they do not, the mean of their weights is no good network at all. So how many are averaged is chosen, and like
everything that is chosen, it is chosen out of fold:

- candidates are the means of the newest n snapshots, n = 1, 2, ... (with `top_k`, of the best n epochs); for n = 1
  that is the snapshot as it was trained;
- each is made for every fold, and scored on the rows that this fold's networks have not seen;
- the n of fold k is the one with the best mean score on the other folds. The other folds' networks were trained on
  fold k's labels, as always when folds are crossed, but what was measured on fold k's rows takes no part.
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
from foldwise.schedule.phases import build_phases


def find_snapshots(
    run: Path, config: Mapping[str, Any], folds: Sequence[int], greater_is_better: bool
) -> dict[int, list[str]]:
    """The names of each fold's snapshots: the newest first, or with `top_k` the best epochs, the best first.

    Raises:
        PredictionsError: fewer than two folds, fewer than two snapshots, folds that are not finished, snapshots that
            are not there; all are listed.
    """
    problems = []
    if len(folds) < 2:
        problems.append("it has one fold; how many snapshots are averaged is chosen on other folds, so 2 are the least")
    unfinished = [fold for fold in folds if not (run / f"fold{fold}" / "metrics.json").is_file()]
    if unfinished or not (run / "metrics.json").is_file():
        subject = f"its folds {unfinished} are" if unfinished else "it is"
        problems.append(f"{subject} not finished: python train.py run={run} fold=all resumes")
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
    """As `training.snapshots` chooses and names them."""
    if not config.get("top_k", 0):
        return [phase.name for phase in reversed(build_phases(config["phases"])) if phase.snapshot]
    history = pd.read_csv(fold / "history.csv")
    history = history[np.isfinite(history["score"])]
    best = history.sort_values("score", ascending=not greater_is_better, kind="stable")["epoch"][: config["top_k"]]
    return [f"epoch{epoch:03d}" for epoch in best]


def average_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The uniform mean of network states: floats in float32, counters from the first state, which is the newest."""
    return {
        name: torch.stack([state[name].float() for state in states]).mean(dim=0).to(newest.dtype)
        if newest.is_floating_point()
        else newest
        for name, newest in states[0].items()
    }


def frozen_norms(states: Sequence[Mapping[str, Tensor]]) -> set[str]:
    """Names of BatchNorms whose statistics are the same in all states, because training kept them.

    The weights were trained for these statistics, so the average keeps them. A single state keeps its own.
    """
    return {
        name.removesuffix(".running_mean")
        for name in states[0]
        if name.endswith(".running_mean") and all(torch.equal(state[name], states[0][name]) for state in states)
    }


def choose_counts(scores: Mapping[int, Mapping[int, float]], greater_is_better: bool) -> dict[int, int]:
    """For each fold the n with the best mean score on the other folds; of equals the smallest.

    Args:
        scores: by n, ascending from 1, and fold. Folds without a score (NaN) do not count.
    """
    sign = 1 if greater_is_better else -1

    def elsewhere(n: int, fold: int) -> float:
        others = [sign * score for other, score in scores[n].items() if other != fold and not math.isnan(score)]
        return fmean(others) if others else -math.inf

    return {fold: max(scores, key=lambda n: elsewhere(n, fold)) for fold in scores[1]}
