"""Statistics of the training items, for normalisation and class weights."""

import json
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.images import default_scale
from foldwise.data.samples import TableItems
from foldwise.data.scan import image_fields
from foldwise.data.table import Table
from foldwise.tasks import find_task

# Smallest std, in [0, 1] units, so that a constant channel does not divide by zero.
SMALLEST_STD = 1 / 255


def compute_statistics(scan: pd.DataFrame, items: TableItems, folds: np.ndarray, scale: float | None) -> dict[str, Any]:
    """Compute statistics of the training items, as plain values for `statistics.json`.

    Returns:
        images: channels, dtype, scale, and mean and std per channel in [0, 1] units (std at least 1/255), by field.
        items: their number. class_counts: items (`Task.count`) or pixels per class, by fold as text.
    """
    others = [json.loads(text) for text in scan["others"]]
    images = {}
    for number, name in enumerate(image_fields(items.samples)):
        images[name] = _moments(pd.DataFrame([each[name] for each in others]) if number else scan, scale)
    return {
        "images": images,
        "items": len(items.items),
        "class_counts": count_classes(items.table, scan, folds),
    }


def count_classes(table: Table, scan: pd.DataFrame, folds: np.ndarray) -> dict[str, list[float]]:
    """Items with a target (`Task.count`) or, from the scan, pixels of each class, by fold as text."""
    target, task = table.target, find_task(table.task)
    counts = np.stack(scan["pixels"].tolist()) if target is None else task.count(target)
    sums = {str(fold): np.nansum(counts[folds == fold], axis=0).tolist() for fold in np.unique(folds)}
    return {fold: [int(n) if float(n).is_integer() else n for n in row] for fold, row in sums.items()}


def _moments(scan: pd.DataFrame, scale: float | None) -> dict[str, Any]:
    dtype = str(scan["dtype"].iat[0])
    scale = default_scale(dtype) if scale is None else float(scale)
    pixels = float(scan["area"].astype(float).sum())
    sums, squares = (
        np.array([text.split() for text in scan[name]], dtype=np.float64).sum(axis=0) for name in ("sums", "squares")
    )
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0)) / scale
    return {
        "channels": int(scan["channels"].iat[0]),
        "dtype": dtype,
        "scale": scale,
        "mean": (mean / scale).tolist(),
        "std": np.maximum(std, SMALLEST_STD).tolist(),
    }
