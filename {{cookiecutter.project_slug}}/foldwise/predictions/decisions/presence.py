"""Presence of each class in an image, from another output such as a presence head: no mask of a class below t."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.schema import listed, raise_problems
from foldwise.predictions.sources import find_sources
from foldwise.predictions.store import Predictions, average_members, read_predictions

Presence = Mapping[str, np.ndarray]  # by id (C,), the probability that the image has each class of the masks


def read_presence(
    folder: Path, truth: GroundTruth, oof: str, test: str | None, predicted: tuple[Predictions, Predictions]
) -> tuple[Presence, Presence]:
    """Read the presence of the mask's classes out of fold and in the test; classes it does not predict have 1.

    Args:
        folder: a source whose columns are some of the mask's classes, such as `runs/<name>/outputs/presence`.
        predicted: the masks' predictions, out of fold and of the test, whose ids it must have.
    """
    source = find_sources([folder], oof, test)[0]
    found = []
    for path, masks in zip((source.oof, source.test), predicted, strict=True):
        if path is None:
            raise_problems(folder, ["it has no test predictions: python predict.py makes them"])
        assert path is not None
        found.append(presence_by_id(read_predictions(path), truth, masks))
    return found[0], found[1]


def presence_by_id(predictions: Predictions, truth: GroundTruth, masks: Predictions) -> Presence:
    """Average predictions of presence over members; arguments as in `read_presence`."""
    header, classes = predictions.header, truth.table.classes
    problems = []
    if header.kind != "rows":
        problems.append(f"their task is {header.task}; presence is one probability per class and image")
    problems += listed("columns are no classes of the masks", set(header.columns) - set(classes))
    if header.folds_hash != masks.header.folds_hash:
        problems.append(f"they were made with the folds {header.folds_hash}, the masks with {masks.header.folds_hash}")
    problems += listed("ids of the masks are missing", set(masks.frame["id"]) - set(predictions.frame["id"]))
    raise_problems(predictions.folder, problems)
    average = average_members(predictions.frame, predictions.columns).set_index("id")
    values = average.reindex(columns=list(classes), fill_value=1.0)
    return dict(zip(values.index, values.to_numpy(np.float64), strict=True))


def without_absent(probability: np.ndarray, present: np.ndarray, threshold: float) -> np.ndarray:
    """Lower classes of `probability` (C, H, W) that are less present than the threshold to -1, unless all are."""
    absent = present < threshold
    if not absent.any() or absent.all():
        return probability
    return np.where(absent[:, None, None], np.float32(-1), probability)
