"""The benchmark: scores with intervals over all images and for subgroups, and whether a difference is more than chance.

Predictions are those of runs, ensembles or anybody else. Out-of-fold ones are scored against the competition's table
and folds; with a labelled table, any are. Everything is scored on the same bootstrap draws, so differences are paired.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.predictions.evaluation.bootstrap import FEWEST_GROUPS, compare, interval, resample, resampled_groups
from foldwise.predictions.evaluation.evidence import Evidence, gather_evidence
from foldwise.predictions.evaluation.subgroups import shown_rows, subgroup_columns, subgroups
from foldwise.predictions.ground_truth import GroundTruth, check_predictions, read_ground_truth, read_labelled_table
from foldwise.predictions.metrics import METRICS, fold_score
from foldwise.predictions.sources import find_predictions
from foldwise.predictions.store import read_predictions
from foldwise.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result.

    Attributes:
        metrics: the competition's metric, then others that fit the task.
        evidence: of each prediction, the first side before the second.
        scores: columns column, value, images, groups, prediction, metric, score, low, high. The rows over all images
            come first and have the column "". `low` and `high` are NaN where there are too few groups.
        differences: columns what, metric, and those of `bootstrap.Difference`; no rows for one prediction.
        groups, drawn: how many groups were drawn from, and what they are called.
        shown: rows of the table that are shown and were not scored.
        notes: what could not be computed, or is too small.
    """

    truth: GroundTruth
    metrics: list[Any]
    evidence: list[Evidence]
    scores: pd.DataFrame
    differences: pd.DataFrame
    groups: int
    drawn: str
    resamples: int
    shown: np.ndarray
    notes: list[str]


def evaluate(
    sources: Sequence[Path],
    against: Sequence[Path] = (),
    *,
    oof: str = "oof",
    test: str | None = None,
    labelled: Path | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    by: Sequence[str] | None = None,
    show: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Evaluation:
    """Score predictions, and compare them where there are several.

    Args:
        sources: runs, ensembles, folders of their shape, or prediction folders.
        against: the other side of a comparison, as many as `sources`: the same seeds in the same order. Without it,
            every further source is compared with the first.
        oof, test: as in `find_predictions`.
        labelled: a table with targets; None: the competition's own, out of fold.
        data: a file in configs/data by name, for predictions without a config.yaml; `overrides` change it.
        by: columns of the table that make subgroups; None: those with 2 to 20 values.
        show: a file of ids, or column=value: images that are shown and not scored.

    Raises:
        Refusal: predictions, table, columns or ids that do not fit.
    """
    if against and len(against) != len(sources):
        raise Refusal(f"{len(sources)} predictions against {len(against)}: name as many, the same seeds in order")
    if test and labelled is None:
        raise Refusal(f"--test {test} has no ground truth: name the table that has it with --table")
    paths = [*sources, *against]
    predictions = [read_predictions(folder) for folder in find_predictions(paths, oof, test, labelled is not None)]
    home = next((path for path in paths if (path / "config.yaml").is_file()), paths[0])
    if labelled is None:
        truth = read_ground_truth(home, data, overrides)
    else:
        truth = read_labelled_table(labelled, predictions[0].header, home, data, overrides)
    for prediction in predictions:
        check_predictions(prediction, truth)
    columns = subgroup_columns(truth.table, truth.config["data"]["columns"], by)
    scored = truth.folds >= 0
    shown = scored & shown_rows(truth.table, show) if show is not None else np.zeros_like(scored)
    if not (scored & ~shown).any():
        raise Refusal(f"no rows are left to score: --show {show} takes all of them")
    metrics = _metrics(truth)
    evidence = [
        gather_evidence(name, prediction, truth, metrics, np.flatnonzero(scored & ~shown), progress)
        for name, prediction in zip(_names(paths), predictions, strict=True)
    ]
    rows = evidence[0].rows
    groups, drawn = resampled_groups(truth.table, rows)
    subsets = [("", "all", np.arange(len(rows)))]
    subsets += [subset for column in columns for subset in subgroups(truth.table, column, rows)]
    records, parts = [], []
    notes: dict[str, None] = {
        f"{one.name} holds ranks and no probabilities: only metrics of ranking mean something": None
        for one in evidence
        if one.predictions.header.ranks
    }
    for column, value, units in subsets:
        subset, count = f"{column} {value}".strip(), len(np.unique(groups[units]))
        for one in evidence:
            for metric, arrays in zip(metrics, one.arrays, strict=True):
                score = fold_score(metric, [array[units] for array in arrays], one.folds[units])
                parts.append((units, score))
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    value_of_all = score(np.ones(len(units)))
                notes |= {f"{subset}: {warning.message}": None for warning in caught}
                kind = type(metric).__name__
                records.append((column, value, len(units), count, one.name, kind, value_of_all))
        if count < FEWEST_GROUPS:
            notes |= {f"{subset}: only {count} {drawn}, too few for an interval": None}
    samples = resample(parts, groups, resamples, seed, progress)
    names = ["column", "value", "images", "groups", "prediction", "metric", "score"]
    frame = pd.DataFrame(records, columns=names)
    frame[["low", "high"]] = [
        (np.nan, np.nan) if count < FEWEST_GROUPS else interval(draws)
        for count, draws in zip(frame["groups"], samples.T, strict=True)
    ]
    return Evaluation(
        truth=truth,
        metrics=metrics,
        evidence=evidence,
        scores=frame,
        differences=_differences(frame, samples, len(sources), metrics),
        groups=int(groups.max()) + 1,
        drawn=drawn,
        resamples=resamples,
        shown=np.flatnonzero(shown),
        notes=list(notes),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """What the predictions are called: their folders' names, with as many parents as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = next(depth for depth in range(1, 100) if len({part[-depth:] for part in parts}) == len(parts))
    return ["/".join(part[-depth:]) for part in parts]


def _metrics(truth: GroundTruth) -> list[Any]:
    """The competition's own and the task's others: none of ranking, which take a hundred times as long to resample."""
    others = [METRICS[name] for name in truth.task.metrics if type(truth.metric) is not METRICS[name]]
    options = {"ignore_index": truth.metric.ignore_index} if truth.task.kind == "maps" else {}
    return [truth.metric, *(kind(**options).for_task(truth.task.name, truth.table.classes) for kind in others)]


def _differences(frame: pd.DataFrame, samples: np.ndarray, sources: int, metrics: Sequence[Any]) -> pd.DataFrame:
    """The rows of `Evaluation.differences`: side against side, or every further source against the first."""
    names = list(dict.fromkeys(frame["prediction"]))
    shape = (-1, len(names), len(metrics))
    overall = frame["score"].to_numpy().reshape(shape)[0]
    draws = samples.reshape(len(samples), *shape)[:, 0]
    enough = frame["groups"].iat[0] >= FEWEST_GROUPS
    sides = [([number], [0]) for number in range(1, sources)]
    if sources < len(names):
        sides = [(list(range(sources)), list(range(sources, len(names))))]
    rows = []
    for first, second in sides:
        what = f"{', '.join(names[number] for number in first)} − {', '.join(names[number] for number in second)}"
        for number, metric in enumerate(metrics):
            both = (overall[first, number], overall[second, number], draws[:, first, number], draws[:, second, number])
            difference = compare(*both, metric.greater_is_better, enough)
            rows.append({"what": what, "metric": type(metric).__name__, **difference._asdict()})
    return pd.DataFrame(rows)
