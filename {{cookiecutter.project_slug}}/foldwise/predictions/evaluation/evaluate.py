"""The benchmark: scores with intervals over all images and for subgroups, and whether a difference is more than chance.

Predictions are those of runs, ensembles or anybody else. Out-of-fold ones are scored against the competition's table
and folds; with a labelled table, any are. Everything is scored on the same bootstrap draws, so differences are paired.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.predictions.evaluation.bootstrap import FEWEST_GROUPS, compare, interval, resample, resampled_groups
from foldwise.predictions.evaluation.evidence import Evidence, gather_evidence
from foldwise.predictions.evaluation.subgroups import shown_rows, subgroup_columns, subgroups
from foldwise.predictions.evaluation.weighted import Score, fold_score
from foldwise.predictions.ground_truth import GroundTruth, check_predictions, read_ground_truth, read_labelled_table
from foldwise.predictions.metrics import METRICS
from foldwise.predictions.sources import find_predictions
from foldwise.predictions.store import read_predictions


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
    progress: bool = False,
) -> Evaluation:
    """Score predictions, and compare them where there are several.

    Args:
        sources: runs, ensembles, folders of their shape, or prediction folders.
        against: the other side of a comparison, as many as `sources`: the same seeds in the same order. Without it,
            every further source is compared with the first.
        oof, test: as in `find_predictions`.
        labelled: a table with the truth; None: the competition's own, out of fold.
        data: a file in configs/data by name, for predictions without a config.yaml; `overrides` change it.
        by: columns of the table that make subgroups; None: those with 2 to 20 values.
        show: a file of ids, or column=value: images that are shown and not scored.

    Raises:
        Refusal: predictions, table, columns or ids that do not fit.
    """
    if against and len(against) != len(sources):
        raise Refusal(f"{len(sources)} predictions against {len(against)}: name as many, the same seeds in order")
    if test and labelled is None:
        raise Refusal(f"--test {test} has no truth: name the table that has it with --table")
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
    return _score(truth, metrics, evidence, len(sources), columns, np.flatnonzero(shown), resamples, seed, progress)


def _score(
    truth: GroundTruth,
    metrics: list[Any],
    evidence: list[Evidence],
    sources: int,
    columns: Sequence[str],
    shown: np.ndarray,
    resamples: int,
    seed: int,
    progress: bool,
) -> Evaluation:
    rows = evidence[0].rows
    groups, drawn = resampled_groups(truth.table, rows)
    subsets = [("", "all", np.arange(len(rows)))]
    subsets += [part for column in columns for part in subgroups(truth.table, column, rows)]
    parts = [
        (units, fold_score(metric, [array[units] for array in arrays], one.folds[units]))
        for _, _, units in subsets
        for one in evidence
        for metric, arrays in zip(metrics, one.arrays, strict=True)
    ]
    frame = _score_frame(subsets, groups, evidence, metrics)
    scores, notes = _scores(frame, parts)
    for one in evidence:
        if one.predictions.header.ranks:
            notes.insert(0, f"{one.name} holds ranks and no probabilities: only metrics of ranking mean something")
    samples = resample(parts, groups, resamples, seed, progress)
    few = frame["groups"] < FEWEST_GROUPS
    limits = [(np.nan, np.nan) if small else interval(draws) for small, draws in zip(few, samples.T, strict=True)]
    frame = frame.assign(score=scores, low=[low for low, _ in limits], high=[high for _, high in limits])
    for row in frame[few].drop_duplicates(["column", "value"]).itertuples():
        notes.append(f"{_subset_name(row)}: only {row.groups} {drawn}, too few for an interval")
    return Evaluation(
        truth=truth,
        metrics=metrics,
        evidence=evidence,
        scores=frame,
        differences=_differences(frame, samples, sources, metrics),
        groups=int(groups.max()) + 1,
        drawn=drawn,
        resamples=resamples,
        shown=shown,
        notes=notes,
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


def _score_frame(
    subsets: Sequence[tuple[str, str, np.ndarray]],
    groups: np.ndarray,
    evidence: Sequence[Evidence],
    metrics: Sequence[Any],
) -> pd.DataFrame:
    """The rows of `Evaluation.scores`, without scores yet."""
    return pd.DataFrame(
        {
            "column": column,
            "value": value,
            "images": len(units),
            "groups": len(np.unique(groups[units])),
            "prediction": one.name,
            "metric": type(metric).__name__,
        }
        for column, value, units in subsets
        for one in evidence
        for metric in metrics
    )


def _subset_name(row: Any) -> str:
    return f"{row.column} {row.value}".strip()


def _scores(frame: pd.DataFrame, parts: Sequence[tuple[np.ndarray, Score]]) -> tuple[list[float], list[str]]:
    """The score of each part as it is, and what was warned of."""
    scores: list[float] = []
    notes: dict[str, None] = {}
    for row, (units, score) in zip(frame.itertuples(), parts, strict=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores.append(score(np.ones(len(units))))
        notes |= {f"{_subset_name(row)}: {warning.message}": None for warning in caught}
    return scores, list(notes)


def _differences(frame: pd.DataFrame, samples: np.ndarray, sources: int, metrics: Sequence[Any]) -> pd.DataFrame:
    """The rows of `Evaluation.differences`: side against side, or every further source against the first."""
    names = list(dict.fromkeys(frame["prediction"]))
    shape = (-1, len(names), len(metrics))
    overall = frame["score"].to_numpy().reshape(shape)[0]
    draws = samples.reshape(len(samples), *shape)[:, 0]
    enough = frame["groups"].iat[0] >= FEWEST_GROUPS
    if sources < len(names):
        sides = [(list(range(sources)), list(range(sources, len(names))))]
    else:
        sides = [([place], [0]) for place in range(1, sources)]
    rows = []
    for first, second in sides:
        what = f"{', '.join(names[place] for place in first)} − {', '.join(names[place] for place in second)}"
        for place, metric in enumerate(metrics):
            values = (overall[first, place], overall[second, place], draws[:, first, place], draws[:, second, place])
            difference = compare(*values, metric.greater_is_better, enough)
            rows.append({"what": what, "metric": type(metric).__name__, **asdict(difference)})
    return pd.DataFrame(rows)
