"""Averaging of TTA views after the prediction."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import check_new
from foldwise.predictions.ensembles.blending import arithmetic, equal_weights, geometric, rank_mean
from foldwise.predictions.store import iter_maps, read_predictions, sort_rows, write_predictions
from foldwise.predictions.writers import PredictionWriter
from foldwise.tasks import Task


def average_views(folder: Path, out: Path, mean: str, views: Sequence[str] | None = None) -> None:
    """Average the kept views of each model into a new prediction folder, without images or networks.

    Args:
        folder: predictions made with --keep-views.
        mean: "arithmetic", "geometric" (mean log-probability; multi-label: mean log-odds), "median" (of numbers), or
            "rank" for ranking metrics. Mean ranks are not probabilities, and later steps refuse them as such.
        views: default: all.
    """
    check_new(out)
    predictions = read_predictions(folder)
    kept = predictions.frame["view"].drop_duplicates().tolist()
    chosen = kept if views is None else list(views)
    if set(chosen) - set(kept) or not chosen or len(set(chosen)) < len(chosen):
        raise Refusal(f"{folder} has the views {', '.join(kept)}; choose from these, each once")
    task = predictions.header.meaning
    if task.kind == "boxes":
        raise Refusal("views of boxes are fused, not averaged: evaluate.py and ensemble.py do that by themselves")
    if mean == "rank" and task.kind == "maps":
        raise Refusal("the rank mean is meaningless for pixels: choose the arithmetic or geometric mean for masks")
    if mean not in (*task.means, *(["rank"] if task.probabilities else [])):
        lacks = "is for numbers" if mean == "median" else f"needs probabilities, and {task.name} has none"
        raise Refusal(f"the {mean} mean {lacks}: choose {' or '.join(task.means)}")
    header = replace(predictions.header, tta={"views": chosen, "mean": mean}, members=[], created_by="average.py")
    frame = predictions.frame[predictions.frame["view"].isin(chosen)].reset_index(drop=True)
    name = chosen[0] if len(chosen) == 1 else "mean"
    if task.kind == "maps":
        by_model = sort_rows(frame, pd.Series(pd.factorize(frame["id"])[0]))  # views of one model become adjacent
        with PredictionWriter(out, header) as writer:
            maps = iter_maps(replace(predictions, frame=by_model))
            for model, rows in groupby(maps, key=lambda row: (row.id, row.fold, row.snapshot)):
                writer.add(*model, name, _mean(np.stack([row.probability for row in rows]), mean, task))
        return
    columns, parts = predictions.columns, []
    for (fold, snapshot), group in frame.groupby(["fold", "snapshot"], sort=True):  # ranks are within one model
        ids = group["id"].drop_duplicates()
        of_view = [
            group[group["view"] == view].set_index("id").loc[ids, columns].to_numpy(np.float32) for view in chosen
        ]
        values = pd.DataFrame(_mean(np.stack(of_view), mean, task), columns=columns)
        parts.append(values.assign(id=ids.to_numpy(), fold=fold, snapshot=snapshot, view=name))
    write_predictions(out, pd.concat(parts, ignore_index=True), header)


def _mean(values: np.ndarray, mean: str, task: Task) -> np.ndarray:
    """Average (V, N, C) or (V, C, H, W) over the views V."""
    weights = equal_weights(len(values))
    if mean == "rank":
        return rank_mean(values, weights)
    if mean == "arithmetic":
        return arithmetic(values, weights)
    if mean == "median":
        return np.nanmedian(values, axis=0)
    return geometric(values, weights, task.exclusive, axis=0 if task.kind == "maps" else -1)
