"""Evaluation: scores with intervals for all images and subgroups, and differences between predictions.

Out-of-fold predictions are scored on the competition's table and folds, any predictions on a labelled table.
Everything is scored on the same bootstrap draws, so differences are paired.
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
from foldwise.predictions.evaluation.evidence import Evidence, confusion_notes, gather_evidence
from foldwise.predictions.evaluation.subgroups import shown_rows, subgroup_columns, subgroups
from foldwise.predictions.ground_truth import (
    GroundTruth,
    check_predictions,
    gold_rows,
    read_ground_truth,
    read_labelled_table,
    shared_rows,
)
from foldwise.predictions.metrics import METRICS, fold_score
from foldwise.predictions.sources import GOLD_FOLDER, find_predictions
from foldwise.predictions.store import read_predictions
from foldwise.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of `evaluate`.

    `scores` has the columns column, value, images, groups, prediction, metric, score, low, high. Rows over all images
    come first, with column "". `low` and `high` are NaN with too few groups.
    """

    truth: GroundTruth
    metrics: list[Any]  # the competition's metric, then others that suit the task
    evidence: list[Evidence]  # one per prediction, in the order of `sources`, then `against`
    scores: pd.DataFrame
    differences: pd.DataFrame  # what, metric, and the fields of `bootstrap.Difference`; empty for one prediction
    groups: int  # number of groups to draw from
    drawn: str  # what these are: "groups", "units" or "images"
    resamples: int
    shown: np.ndarray  # indices of table rows that are shown but not scored
    notes: list[str]  # warnings about scores that are undefined or rest on too few groups


def evaluate(
    sources: Sequence[Path],
    against: Sequence[Path] = (),
    *,
    oof: str = "oof",
    test: str | None = None,
    labelled: Path | None = None,
    gold: bool = False,
    rounds: bool = False,
    data: str | None = None,
    overrides: Sequence[str] = (),
    by: Sequence[str] | None = None,
    show: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Evaluation:
    """Score predictions and compare them.

    Args:
        sources: runs, ensembles, folders with their layout, or prediction folders.
        against: the second side of a comparison: as many as `sources`, with the same seeds in the same order. Without
            it, each source is compared with the first.
        oof, test: as in `find_sources`.
        labelled: a labelled table; default: the competition's table, out of fold.
        gold: score the gold rows of the competition's table, in place of out-of-fold predictions.
        rounds: score the rows that all sources have, by the last source's table, and compare each source with the one
            before it.
        data, overrides: as in `read_ground_truth`.
        by: columns that define subgroups; default: those with 2 to 20 values.
        show: images to show but not score: a file of ids, or column=value.
    """
    if against and len(against) != len(sources):
        raise Refusal(
            f"{len(sources)} predictions against {len(against)}: name equally many, with the same seeds in order"
        )
    if test and labelled is None:
        raise Refusal(f"--test {test} has no ground truth: name a labelled table with --table <file>")
    paths = [*sources, *against]
    tested = gold or labelled is not None
    found = find_predictions(paths, oof, GOLD_FOLDER if gold else test, tested)
    predictions = [read_predictions(folder) for folder in found]
    configured = next((path for path in paths[:: -1 if rounds else 1] if (path / "config.yaml").is_file()), paths[0])
    if labelled is not None and predictions[0].header.kind == "vectors":
        raise Refusal("--table is not for retrieval, whose images are searched among those of the training table")
    if labelled is None:
        truth = read_ground_truth(configured, data, overrides)
    else:
        truth = read_labelled_table(labelled, predictions[0].header, configured, data, overrides)
    truth = gold_rows(truth) if gold else truth
    truth = shared_rows(truth, predictions) if rounds else truth
    for prediction in predictions:
        check_predictions(prediction, truth)
    columns = subgroup_columns(truth.table, truth.config["data"]["columns"], by)
    scored = truth.folds >= 0
    shown = scored & shown_rows(truth.table, show) if show is not None else np.zeros_like(scored)
    if not (scored & ~shown).any():
        raise Refusal(f"no rows are left to score: --show {show} selects all of them")
    metrics = _metrics(truth)
    evidence = [
        gather_evidence(name, prediction, truth, metrics, np.flatnonzero(scored & ~shown), progress)
        for name, prediction in zip(_names(paths), predictions, strict=True)
    ]
    rows = evidence[0].rows
    confused = [note for one in evidence if truth.task.kind == "vectors" for note in confusion_notes(one, truth)]
    groups, drawn = resampled_groups(truth.table, rows)
    subsets = [("", "all", np.arange(len(rows)))]
    subsets += [subset for column in columns for subset in subgroups(truth.table, column, rows)]
    records, parts = [], []
    notes: dict[str, None] = {
        f"{one.name} holds ranks, not probabilities: only ranking metrics are meaningful": None
        for one in evidence
        if one.predictions.header.ranks
    }
    group = truth.config["data"]["columns"].get("group")
    if group is not None and "group" not in truth.table.frame:
        text = f"{truth.table.path} has no column {group!r} (data.columns.group): {drawn} are resampled instead"
        notes[f"{text}, so the intervals are too narrow if the images of a group are alike"] = None
    for column, value, units in subsets:
        subset, count = f"{column} {value}".strip(), len(np.unique(groups[units]))
        for one in evidence:
            for metric, arrays in zip(metrics, one.arrays, strict=True):
                score = fold_score(metric, [array[units] for array in arrays], one.folds[units])
                parts.append((units, score))
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    point = score(np.ones(len(units)))
                notes |= {f"{subset}: {warning.message}": None for warning in caught}
                records.append((column, value, len(units), count, one.name, metric.name, point))
        if count < FEWEST_GROUPS:
            notes |= {f"{subset}: only {count} {drawn}, too few for an interval": None}
    samples = resample(parts, groups, resamples, seed, progress)
    frame = pd.DataFrame(records, columns=["column", "value", "images", "groups", "prediction", "metric", "score"])
    frame[["low", "high"]] = [
        (np.nan, np.nan) if count < FEWEST_GROUPS else interval(draws)
        for count, draws in zip(frame["groups"], samples.T, strict=True)
    ]
    return Evaluation(
        truth=truth,
        metrics=metrics,
        evidence=evidence,
        scores=frame,
        differences=_differences(frame, samples, len(sources), metrics, rounds),
        groups=int(groups.max()) + 1,
        drawn=drawn,
        resamples=resamples,
        shown=np.flatnonzero(shown),
        notes=[*notes, *dict.fromkeys(confused)],
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Name predictions by their folders, with as many parents as make them unique."""
    parts = [path.resolve().parts for path in paths]
    depth = next(depth for depth in range(1, 100) if len({part[-depth:] for part in parts}) == len(parts))
    return ["/".join(part[-depth:]) for part in parts]


def _metrics(truth: GroundTruth) -> list[Any]:
    """The competition's metric and the task's others; not ranking metrics, which resample a hundred times slower."""
    others = [METRICS[name] for name in truth.task.metrics if type(truth.metric) is not METRICS[name]]
    options = {"ignore_index": truth.metric.ignore_index} if truth.task.kind == "maps" else {}
    return [truth.metric, *(kind(**options).for_task(truth.task.name, truth.table.classes) for kind in others)]


def _differences(
    frame: pd.DataFrame, samples: np.ndarray, sources: int, metrics: Sequence[Any], rounds: bool
) -> pd.DataFrame:
    """Compare side with side, or each further source with the first; of rounds, with the one before."""
    names = list(dict.fromkeys(frame["prediction"]))
    shape = (-1, len(names), len(metrics))
    overall = frame["score"].to_numpy().reshape(shape)[0]
    draws = samples.reshape(len(samples), *shape)[:, 0]
    enough = frame["groups"].iat[0] >= FEWEST_GROUPS
    sides = [([number], [number - 1 if rounds else 0]) for number in range(1, sources)]
    if sources < len(names):
        sides = [(list(range(sources)), list(range(sources, len(names))))]
    rows = []
    for first, second in sides:
        what = f"{', '.join(names[number] for number in first)} − {', '.join(names[number] for number in second)}"
        for number, metric in enumerate(metrics):
            both = (overall[first, number], overall[second, number], draws[:, first, number], draws[:, second, number])
            difference = compare(*both, metric.greater_is_better, enough)
            rows.append({"what": what, "metric": metric.name, **difference._asdict()})
    return pd.DataFrame(rows)
