"""Choosing views and their mean after the prediction: from kept views to a prediction with one view a model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import check_new
from foldwise.predictions.ensembles.blending import arithmetic, equal_weights, geometric, rank_mean
from foldwise.predictions.schema import MEMBER
from foldwise.predictions.store import Predictions, iter_maps, read_predictions, write_predictions
from foldwise.predictions.writers import PredictionWriter
from foldwise.tasks import Task

MEANS = ("arithmetic", "geometric", "rank")


def average_views(folder: Path, out: Path, mean: str, views: Sequence[str] | None = None) -> None:
    """Average the kept views of each model into a new prediction folder; no image and no network is needed.

    Args:
        folder: predictions made with --keep-views.
        out: the folder to write.
        mean: "arithmetic", "geometric" (the mean log-probability, or for multi-label the mean log-odds), or "rank",
            which orders rows for a ranking metric and is no probability; later steps refuse it as one.
        views: names of some of the views; None: all.

    Raises:
        Refusal: an unknown view, a mean that the task cannot have, or as `read_predictions` and the writers.
    """
    check_new(out)
    predictions = read_predictions(folder)
    there = predictions.frame["view"].drop_duplicates().tolist()
    chosen = there if views is None else list(views)
    unknown = [view for view in chosen if view not in there]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise Refusal(f"{folder} has the views {', '.join(there)}; choose some of them, each once")
    task = predictions.header.meaning
    if mean == "rank" and task.kind == "maps":
        raise Refusal("ranks of pixels say nothing: choose the arithmetic or geometric mean for masks")
    if mean != "arithmetic" and not task.probabilities:
        raise Refusal(f"the {mean} mean is of probabilities, which {task.name} has not: choose the arithmetic mean")
    header = replace(predictions.header, tta={"views": chosen, "mean": mean}, members=[], created_by="average.py")
    some = replace(predictions, frame=predictions.frame[predictions.frame["view"].isin(chosen)])
    if task.kind == "rows":
        return write_predictions(out, _average_rows(some, mean, chosen), header)
    with PredictionWriter(out, header) as writer:
        waiting: list[np.ndarray] = []
        for row in iter_maps(_by_member(some)):
            waiting.append(row.probability)
            if len(waiting) == len(chosen):
                writer.add(row.id, row.fold, row.snapshot, _name(chosen), _mean(np.stack(waiting), mean, task))
                waiting = []


def _average_rows(predictions: Predictions, mean: str, views: Sequence[str]) -> pd.DataFrame:
    """One row for each id, fold and snapshot. Ranks are those among the rows of one model."""
    columns, parts = predictions.columns, []
    for (fold, snapshot), frame in predictions.frame.groupby(["fold", "snapshot"], sort=True):
        ids = frame["id"].drop_duplicates()
        stacked = np.stack(
            [frame[frame["view"] == view].set_index("id").loc[ids, columns].to_numpy(np.float32) for view in views]
        )
        values = pd.DataFrame(_mean(stacked, mean, predictions.header.meaning), columns=columns)
        parts.append(values.assign(id=ids.to_numpy(), fold=fold, snapshot=snapshot, view=_name(views)))
    return pd.concat(parts, ignore_index=True)


def _by_member(predictions: Predictions) -> Predictions:
    """The index with the views of each id and model one after the other."""
    order = pd.Series(pd.factorize(predictions.frame["id"])[0], index=predictions.frame.index, name="order")
    keys = pd.concat([order, predictions.frame[MEMBER]], axis=1).sort_values(["order", *MEMBER], kind="stable").index
    return replace(predictions, frame=predictions.frame.loc[keys])


def _mean(values: np.ndarray, mean: str, task: Task) -> np.ndarray:
    """(V, N, C) or (V, C, H, W) without the first axis."""
    weights = equal_weights(len(values))
    if mean == "rank":
        return rank_mean(values, weights)
    if mean == "arithmetic":
        return arithmetic(values, weights)
    return geometric(values, weights, task.exclusive, axis=0 if task.kind == "maps" else -1)


def _name(views: Sequence[str]) -> str:
    return views[0] if len(views) == 1 else "mean"
