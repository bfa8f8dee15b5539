"""The report of a run: what it was, how it trained, and where its out-of-fold predictions are wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.config import followers
from foldwise.data.images import read_image, read_mask
from foldwise.data.table import Table
from foldwise.predictions.members import average_members
from foldwise.predictions.metrics import answered_right, confusion_matrix, cross_entropy
from foldwise.predictions.store import Predictions, iter_average_maps
from foldwise.reporting.figures import confusion, nothing_to_show, per_class
from foldwise.reporting.pictures import gallery, name_answer, overlay
from foldwise.reporting.report import write_report

GALLERY = 24  # pictures of a gallery
OVERLAYS = 4


def report_run(
    run: Path,
    config: Mapping[str, Any],
    table: Table,
    metric: Any,
    per_fold: Mapping[int, float],
    overall: float,
    oof: Predictions,
    counts: np.ndarray | None,
) -> None:
    """Write `report.html` of a run.

    Args:
        metric: the metric, ready for the task.
        oof: the out-of-fold predictions of the whole run.
        counts: (N, C, 3) pixel counts of the images in the order of `oof`; None but for segmentation.
    """
    name = type(metric).__name__
    summary = {
        "task": config["task"],
        "data": f"{config['data']['table']}: {len(table)} images, {len(table.classes)} classes",
        "model": " ".join(str(config["model"][key]) for key in ("name", "encoder") if config["model"].get(key)),
        "metric": f"{name}, {'greater' if metric.greater_is_better else 'lower'} is better; overall is "
        + ("over all rows together" if metric.pooled else "the mean of the folds"),
        "weights that are scored": _weights(config),
        "test-time augmentation": ", ".join(oof.header.tta["views"]) + f" ({oof.header.tta['mean']} mean)",
        "configuration": "config.yaml beside this file",
    }
    scores: list[dict[str, Any]] = [{"fold": fold, name: score} for fold, score in per_fold.items()]
    if len(per_fold) > 1:
        values = list(per_fold.values())
        scores += [{"fold": "mean", name: float(np.mean(values))}, {"fold": "std", name: float(np.std(values))}]
    scores.append({"fold": "OOF overall", name: overall})
    history = {fold: pd.read_csv(run / f"fold{fold}" / "history.csv") for fold in per_fold}
    figures = (
        _segmentation_figures(table, metric, oof, counts) if counts is not None else _classification_figures(table, oof)
    )
    if (run / "plan.png").exists():  # a run that averages another has none
        figures.insert(0, ("Plan", (run / "plan.png").read_bytes()))
    write_report(run / "report.html", run.name, summary, scores, history, figures, metric=name)


def _weights(config: Mapping[str, Any]) -> str:
    choices = followers(config)
    optimistic = f"; {', '.join(choices)} followed the fold that is scored: optimistic" if choices else ""
    if config["top_k"]:
        return f"the {config['top_k']} best epochs{optimistic}"
    if any(phase.get("snapshot") for phase in config["phases"].values()):
        return f"snapshots at the ends of phases{optimistic}"
    ema = ", averaged (EMA)" if "ema" in config["callbacks"] else ""
    return f"the last of a fixed number of epochs{ema}{optimistic}"


def _classification_figures(table: Table, oof: Predictions) -> list[tuple[str, Any]]:
    assert table.target is not None
    row_of = {id: row for row, id in enumerate(table.ids)}
    average = average_members(oof.frame, oof.classes)
    rows = np.array([row_of[id] for id in average["id"]])
    target, probability = table.target[rows], average[oof.classes].to_numpy(np.float64)
    multilabel = table.task == "multilabel"
    figures = []
    if multilabel:
        wrong = np.where(target >= 0.5, probability < 0.5, probability >= 0.5).mean(axis=0)
        support = (target >= 0.5).sum(axis=0)
        figure = per_class(wrong, oof.classes, "share of images answered wrongly at 0.5", support, False)
        figures.append(("Errors per class", figure))
    else:
        matrix = confusion_matrix(target.argmax(axis=1), probability.argmax(axis=1), len(oof.classes))
        figures.append(("Confusion matrix, out of fold", confusion(matrix, oof.classes)))
    worst = worst_rows(target, probability, GALLERY, multilabel)
    images = (read_image(table.image_path(rows[index])) for index in worst)
    titles = [
        f"{table.ids[rows[i]]}\n{name_answer(oof.classes, target[i], multilabel)}\n"
        f"→ {name_answer(oof.classes, probability[i], multilabel)}"
        for i in worst
    ]
    wrong = gallery(images, titles) if titles else nothing_to_show("no answer is wrong")
    figures.append(("Most wrong: truth → answer (look here for label errors)", wrong))
    return figures


def worst_rows(target: np.ndarray, probability: np.ndarray, count: int, multilabel: bool = False) -> np.ndarray:
    """Rows of (N, C) targets and probabilities that are answered wrongly, by their cross-entropy, at most `count`."""
    order = np.argsort(-cross_entropy(target, probability, multilabel), kind="stable")
    return order[~answered_right(target, probability, multilabel)[order]][:count]


def _segmentation_figures(table: Table, metric: Any, oof: Predictions, counts: np.ndarray) -> list[tuple[str, Any]]:
    values = metric.per_class(counts)
    support = counts[:, :, 2].sum(axis=0)
    figures = [(f"{type(metric).__name__} per class", per_class(values, oof.classes, type(metric).__name__, support))]
    right, true = counts[:, :, 0].sum(axis=1), counts[:, :, 2].sum(axis=1)
    share = right / np.maximum(true, 1)
    worst = [index for index in np.argsort(share, kind="stable")[:OVERLAYS] if right[index] < true[index]]
    ids = oof.frame["id"].drop_duplicates().tolist()
    row_of = {id: row for row, id in enumerate(table.ids)}
    for id, probability in iter_average_maps(oof, [ids[index] for index in worst]):
        image, mask = read_image(table.image_path(row_of[id])), read_mask(table.mask_path(row_of[id]))
        figures.append((f"Fewest pixels right: {id}, answer", overlay(image, probability.argmax(0), oof.classes)))
        figures.append((f"{id}, truth", overlay(image, mask, oof.classes, ignore_index=metric.ignore_index)))
    return figures
