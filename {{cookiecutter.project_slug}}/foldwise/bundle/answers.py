"""From what the members said to the answers of a submission, and to its file."""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.bundle.recipe import Recipe
from foldwise.files import write_atomic
from foldwise.predictions.decisions.deciding import Decision
from foldwise.predictions.decisions.masks import Cleaning
from foldwise.predictions.decisions.submission import write_table


def decide_rows(recipe: Recipe, values: np.ndarray, units: Sequence[str] | None) -> np.ndarray:
    """Answers (U, C) of units, or of the images where there are none, in the order of their first images.

    As ensemble.py and submit.py do: runs are blended within each fold, images of a unit averaged, each fold's blend
    calibrated by its own, the folds averaged, and that is decided. A unit none of whose images could be used is
    answered by the prior.

    Args:
        values: (N, members, C) of the members of the recipe, NaN where one did not predict.
        units: (N,) names.
    """
    decision, members = recipe.decider, recipe.members
    assert isinstance(decision, Decision)
    places, unit_names = pd.factorize(np.arange(len(values)) if units is None else np.asarray(units, object))
    predicted = np.isfinite(values).all(axis=2)
    by_fold = {fold: np.full((len(values), values.shape[2]), np.nan) for _, fold in members}
    for pattern in np.unique(predicted, axis=0):  # rows of the same members; more than one only where time was short
        rows = (predicted == pattern).all(axis=1)
        present = [member for member, there in zip(members, pattern, strict=True) if there]
        blended = recipe.blend_folds(present, values[rows][:, pattern].transpose(1, 0, 2))
        for fold, probability in blended.items():
            by_fold[fold][rows] = probability
    total, count = np.zeros((len(unit_names), values.shape[2])), np.zeros((len(unit_names), 1))
    for fold, probability in by_fold.items():
        average = pd.DataFrame(probability).groupby(places).mean().to_numpy()  # NaN takes no part
        there = np.isfinite(average).all(axis=1)
        total[there] += decision.calibrate(fold, average[there])
        count[there] += 1
    mean = np.where(count > 0, total / np.maximum(count, 1), recipe.prior)
    return decision.rule.decide(mean)


def decide_mask(recipe: Recipe, members: Sequence[tuple[int, int]], maps: np.ndarray) -> np.ndarray:
    """The mask (H, W) of the maps (A, C, H, W) of these members: blended within folds, averaged, cleaned."""
    cleaning = recipe.decider
    assert isinstance(cleaning, Cleaning)
    blended = recipe.blend_folds(members, maps)
    return cleaning(sum(blended.values(), np.zeros(maps.shape[1:], np.float32)) / len(blended))


def encode_mask(layout: Any, mask: np.ndarray) -> bytes:
    """A mask (H, W) as it is written: run-length codes, one a line, or a PNG."""
    if layout.name == "rle":
        return "\n".join(code for _, code in layout.rows("", mask)).encode()
    import cv2

    return cv2.imencode(".png", mask.astype(np.uint8 if len(layout.classes) <= 256 else np.uint16))[1].tobytes()


def write_masks(
    path: Path,
    layout: Any,
    answers: Iterable[tuple[str, bytes]],
    others: Mapping[str, str],
    sample: pd.DataFrame | None,
    sample_path: Path | None,
) -> None:
    """Write encoded masks by id as a new submission; `others` are rows of the sample that no image is there for."""
    if layout.name != "rle":
        with write_atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for id, answer in answers:
                archive.writestr(f"{id}.png", answer)
        return
    rows = [
        row for id, answer in answers for row in zip(layout.row_ids([id]), answer.decode().split("\n"), strict=True)
    ]
    if sample is not None:  # a competition may ask for some of the classes only
        asked = set(sample.iloc[:, 0])
        rows = [row for row in rows if row[0] in asked]
    frame = pd.DataFrame([*rows, *others.items()], columns=layout.columns)
    write_table(path, frame, sample, sample_path)
