"""Statistics of the training images, which normalisation and class weights are made from."""

import json
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.images import default_scale
from foldwise.data.samples import TableItems
from foldwise.data.scan import image_fields

# The least std, in [0, 1] units: a channel that never changes would otherwise divide by zero.
SMALLEST_STD = 1 / 255


def compute_statistics(scan: pd.DataFrame, items: TableItems, folds: np.ndarray, scale: float | None) -> dict[str, Any]:
    """Statistics of the training items, as plain values for `statistics.json`.

    Args:
        scan: as `scan_items` gives it.
        folds: (N,) of the items.
        scale: the stored value that means 1.0; None: by dtype.

    Returns:
        images: by field, channels, dtype, scale, and mean and std per channel over all pixels in [0, 1] units (std at
        least 1/255); items: how many; class_counts: for each fold, as text, the items per class (soft targets add up),
        or for masks the pixels per class.
    """
    target = items.table.target
    counts = np.stack(scan["pixels"].tolist()) if target is None else target.astype(np.float64)
    others = [json.loads(text) for text in scan["others"]]
    images = {}
    for number, name in enumerate(image_fields(items.samples)):
        images[name] = _moments(pd.DataFrame([each[name] for each in others]) if number else scan, scale)
    sums = {str(fold): counts[folds == fold].sum(axis=0).tolist() for fold in np.unique(folds)}
    return {
        "images": images,
        "items": len(items.items),
        "class_counts": {fold: [int(n) if float(n).is_integer() else n for n in row] for fold, row in sums.items()},
    }


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
