"""Report of a run: settings, training curves, and errors of its out-of-fold predictions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.config import followers
from foldwise.data.samples import TableItems
from foldwise.data.table import Table
from foldwise.predictions.metrics import Dice, MeanIoU, confusion_matrix, cross_entropy, is_correct, row_errors
from foldwise.predictions.metrics.maps import PixelMetric
from foldwise.predictions.search import Found
from foldwise.predictions.store import Predictions, average_members
from foldwise.reporting.figures import confusion, nothing_to_show, numbers, per_class
from foldwise.reporting.pictures import compare_masks, compare_values
from foldwise.reporting.report import write_report
from foldwise.tasks import Task, find_task

GALLERY = 24  # pictures
OVERLAYS = 4


def report_run(
    run: Path,
    config: Mapping[str, Any],
    table: Table,
    items: TableItems,
    metric: Any,
    per_fold: Mapping[int, float],
    overall: float,
    oof: Predictions,
    counts: np.ndarray | None,
    found: Found | None = None,
    gold: float | None = None,
) -> None:
    """Write `report.html` of a finished run.

    Args:
        counts: (N, C, 3) pixel counts of the images in the order of `oof`, or errors (N, C, 2) of a `PixelMetric`; None
            unless the task has maps.
        found: names of the images; None unless the task is retrieval.
        gold: score of the gold rows, if there are any.
    """
    name = metric.name
    summary = {
        "task": config["task"],
        "data": f"{config['data']['table']}: {len(table)} images, "
        f"{len(table.classes)} {'columns' if oof.header.meaning.transforms else 'classes'}",
        "model": " ".join(str(config["model"][key]) for key in ("name", "encoder") if config["model"].get(key)),
        "metric": f"{name}, {'greater' if metric.greater_is_better else 'lower'} is better; overall is "
        + ("over all rows together" if metric.pooled else "the mean of the folds"),
        "scored weights": _weights(config),
        "test-time augmentation": ", ".join(oof.header.tta["views"]) + f" ({oof.header.tta['mean']} mean)",
        "configuration": "config.yaml next to this file",
    }
    scores: list[dict[str, Any]] = [{"fold": fold, name: score} for fold, score in per_fold.items()]
    if len(per_fold) > 1:
        values = list(per_fold.values())
        scores += [{"fold": "mean", name: float(np.mean(values))}, {"fold": "std", name: float(np.std(values))}]
    scores.append({"fold": "OOF overall", name: overall})
    scores += [] if gold is None else [{"fold": "gold rows, by the mean of all folds", name: gold}]
    history = {fold: pd.read_csv(run / f"fold{fold}" / "history.csv") for fold in per_fold}
    if found is not None:
        figures = _name_figures(table, items, metric, found)
    else:
        figures = _row_figures(table, items, oof) if counts is None else _map_figures(table, items, metric, oof, counts)
    if (run / "plan.png").exists():  # missing if the run averages the weights of another
        figures.insert(0, ("Plan", (run / "plan.png").read_bytes()))
    write_report(run / "report.html", run.name, summary, scores, history, figures, metric=name)


def _weights(config: Mapping[str, Any]) -> str:
    choices = followers(config)
    optimistic = f"; optimistic: {', '.join(choices)} followed the scored fold" if choices else ""
    if config["top_k"]:
        return f"the {config['top_k']} best epochs{optimistic}"
    if any(phase.get("snapshot") for phase in config["phases"].values()):
        return f"snapshots at the ends of phases{optimistic}"
    ema = ", averaged (EMA)" if config["ema"] is not None else ""
    return f"the last of a fixed number of epochs{ema}{optimistic}"


def _row_figures(table: Table, items: TableItems, oof: Predictions) -> list[tuple[str, Any]]:
    assert table.target is not None
    average, task = average_members(oof.frame, oof.columns), oof.header.meaning
    rows = np.array([table.row_of[id] for id in average["id"]])
    target, values = table.target[rows], average[oof.columns].to_numpy(np.float64)
    figures = []
    if task.probabilities and task.exclusive:
        matrix = confusion_matrix(target.argmax(axis=1), values.argmax(axis=1), len(oof.columns))
        figures.append(("Confusion matrix, out of fold", confusion(matrix, oof.columns)))
    elif task.probabilities:
        wrong = np.where(target >= 0.5, values < 0.5, values >= 0.5).mean(axis=0)
        support = (target >= 0.5).sum(axis=0)
        figure = per_class(wrong, oof.columns, "share of images predicted wrongly at 0.5", support, False)
        figures.append(("Errors per class", figure))
    else:
        figures.append(("Predicted and true numbers, out of fold", numbers(target, values, oof.columns)))
    worst = worst_rows(target, values, GALLERY, task)
    figure = nothing_to_show("no prediction is wrong")
    if len(worst):
        figure = compare_values(items, table, rows[worst].tolist(), values[worst], task)
    return [*figures, ("Most wrong: ground truth → predicted (look here for label errors)", figure)]


def _name_figures(table: Table, items: TableItems, metric: Any, found: Found) -> list[tuple[str, Any]]:
    assert table.target is not None
    identity, known = table.target[found.rows, 0], found.rank > 0
    support = np.bincount(identity[known], minlength=len(table.classes))
    wrong = np.bincount(identity[known], found.rank[known] > 1, len(table.classes))
    shown = np.flatnonzero(support)
    share = per_class(wrong[shown] / support[shown], [table.classes[n] for n in shown], "share", support[shown], False)
    worst = np.argsort(-found.rank, kind="stable")[:GALLERY]
    worst = worst[found.rank[worst] > 1]
    figure = nothing_to_show("no image has a wrong first name")
    if len(worst):
        values = np.stack([found.names[worst, 0], found.scores[worst, 0]], axis=1)
        figure = compare_values(items, table, found.rows[worst].tolist(), values, find_task(table.task))
    return [
        ("Images with a wrong first name, per identity", share),
        ("Worst rank of the right name: ground truth → first name, similarity (look here for label errors)", figure),
    ]


def worst_rows(target: np.ndarray, values: np.ndarray, count: int, task: Task) -> np.ndarray:
    """Return the `count` wrong rows with the largest cross-entropy; without probabilities, the largest mean error."""
    if not task.probabilities:
        return np.argsort(-row_errors(target, values), kind="stable")[:count]
    order = np.argsort(-cross_entropy(target, values, task.exclusive), kind="stable")
    return order[~is_correct(target, values, task.exclusive)[order]][:count]


def _map_figures(
    table: Table, items: TableItems, metric: Any, oof: Predictions, counts: np.ndarray
) -> list[tuple[str, Any]]:
    ids = oof.frame["id"].drop_duplicates().tolist()
    if isinstance(metric, PixelMetric):
        errors, pixels = counts.sum(axis=1).T
        order = np.argsort(-errors / np.maximum(pixels, 1), kind="stable")[:OVERLAYS]
        bars = per_class(metric.per_class(counts), oof.columns, metric.name, counts[:, :, 1].sum(axis=0), False)
        worst = [table.row_of[ids[index]] for index in order]
        pictures = compare_masks("Largest errors", items, table, worst, oof, metric.ignore_index)
        return [(f"{metric.name} per class", bars), *pictures]
    support, shown = counts[:, :, 2].sum(axis=0), metric if isinstance(metric, Dice | MeanIoU) else MeanIoU()
    name = type(shown).__name__
    correct, predicted, true = np.moveaxis(counts.sum(axis=1), -1, 0)
    either = predicted + true - correct
    order = np.argsort(correct / np.maximum(either, 1), kind="stable")
    worst = [table.row_of[ids[index]] for index in order if correct[index] < either[index]][:OVERLAYS]
    return [
        (f"{name} per class", per_class(shown.per_class(counts), oof.columns, name, support)),
        *compare_masks("Fewest pixels correct", items, table, worst, oof, metric.ignore_index),
    ]
