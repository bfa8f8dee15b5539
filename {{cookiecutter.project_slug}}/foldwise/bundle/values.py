"""What a bundle is worth out of fold, and what each run, view and snapshot adds to that."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from foldwise.bundle.recipe import blend_folds
from foldwise.bundle.sources import Part, Parts
from foldwise.data.images import read_mask
from foldwise.predictions.ground_truth import GroundTruth, align
from foldwise.predictions.metrics import score_fold_evidence
from foldwise.predictions.schema import HEADER
from foldwise.predictions.scoring import score_table
from foldwise.predictions.store import Predictions, iter_average_maps, read_header, read_predictions


@dataclass(frozen=True)
class Values:
    """By run: what the score loses without it, and without each of its views and snapshots; None: unknown."""

    run: float | None
    views: list[float | None]
    snapshots: list[float | None]


def measure(found: Parts, truth: GroundTruth) -> list[Values]:
    """The values of each run: the out-of-fold score of the blend, less the score without it, on the metric's own scale
    and with a sign such that what helps is above 0.

    Views are measured where they were kept (predict.py --oof --keep-views).
    """
    parts = found.parts
    runs, views, snapshots = [], [], []
    for number, part in enumerate(parts):
        kept = _kept_views(part)
        names = part.oof.header.tta["views"]
        views.append(
            _without_each(found, truth, number, kept, kept.frame["view"], names) if kept else [None] * len(names)
        )
        keys = list(zip(part.oof.frame["fold"], part.oof.frame["snapshot"], strict=True))
        places = pd.Series([part.snapshots.get(key, 0) for key in keys])
        snapshots.append(
            _without_each(found, truth, number, part.oof, places, list(range(1 + max(part.snapshots.values()))))
        )
        others = [other for other in parts if other is not part]
        complete = set(part.weights) <= {fold for other in others for fold in other.weights}
        runs.append(_score(found, truth) - _score(Parts(others, found.blend), truth) if complete else None)
    sign = 1 if truth.metric.greater_is_better else -1

    def signed(value: float | None) -> float | None:
        return sign * value if value is not None and np.isfinite(value) else None

    return [
        Values(signed(run), list(map(signed, own_views)), list(map(signed, own_snapshots)))
        for run, own_views, own_snapshots in zip(runs, views, snapshots, strict=True)
    ]


def _without_each(
    found: Parts, truth: GroundTruth, number: int, kept: Predictions, labels: pd.Series, names: Sequence[Any]
) -> list[float | None]:
    """The score with these predictions in the place of a run's, less that without the rows of each label."""
    if len(names) < 2:
        return [None] * len(names)

    def score(frame: pd.DataFrame) -> float:
        parts = list(found.parts)
        parts[number] = replace(parts[number], oof=replace(kept, frame=frame))
        return _score(Parts(parts, found.blend), truth)

    whole = score(kept.frame)
    return [whole - score(kept.frame[(labels != name).to_numpy()]) for name in names]


def _kept_views(part: Part) -> Predictions | None:
    """Out-of-fold predictions of the run with its views apart."""
    tta = part.oof.header.tta["views"]
    for path in sorted((part.source / "predictions").glob(f"*/{HEADER}")):
        header = read_header(path.parent)
        apart = [member["view"] for member in header.members]
        if header.split == "oof" and set(apart) == set(tta) == set(header.tta["views"]) and len(tta) > 1:
            return read_predictions(path.parent)
    return None


def _score(found: Parts, truth: GroundTruth) -> float:
    with warnings.catch_warnings():  # of classes that a fold lacks: the run's report has said it
        warnings.simplefilter("ignore")
        if truth.task.kind == "rows":
            rows, probability = blended_rows(found, truth)
            return score_table(truth.metric, truth.table, rows, probability, truth.folds[rows])[1]
        evidence, folds = [], []
        for _, mask, probability, fold in blended_maps(found, truth):
            evidence.append(truth.metric.measure(mask, probability))
            folds.append(fold)
        return score_fold_evidence(truth.metric, np.stack(evidence), np.array(folds))[1]


def blended_rows(found: Parts, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) of the table and their out-of-fold probability (N, C): of each fold, the blend of its models."""
    aligned = [align(part.oof, truth) for part in found.parts]
    rows = aligned[0][0]
    values = np.stack([probability for _, probability in aligned]).astype(np.float32)
    blended = np.zeros(values.shape[1:])
    weights = [part.weights for part in found.parts]
    for fold in np.unique(truth.folds[rows]).tolist():
        own = truth.folds[rows] == fold
        members = [(number, fold) for number, each in enumerate(weights) if fold in each]
        chosen = values[[number for number, _ in members]][:, own]
        blended[own] = blend_folds(truth.task, found.blend, weights, members, chosen)[fold]
    return rows, blended


def blended_maps(found: Parts, truth: GroundTruth) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """The id, the mask (H, W), the out-of-fold probability (C, H, W), and the fold of each image, one at a time."""
    weights = [part.weights for part in found.parts]
    for fold in sorted(set(truth.folds.tolist()) - {-1}):
        rows = np.flatnonzero(truth.folds == fold).tolist()
        members = [(number, fold) for number, each in enumerate(weights) if fold in each]
        ids = [truth.table.ids[row] for row in rows]
        maps = zip(*(iter_average_maps(found.parts[number].oof, ids) for number, _ in members), strict=True)
        for row, each in zip(rows, maps, strict=True):
            said = np.stack([probability for _, probability in each])
            blended = blend_folds(truth.task, found.blend, weights, members, said)
            yield truth.table.ids[row], read_mask(truth.table.mask_path(row)), blended[fold], fold
