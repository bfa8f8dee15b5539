"""Maps of several segmentation predictions side by side, one image at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from foldwise.predictions.schema import some
from foldwise.predictions.store import Predictions, iter_average_maps


def iter_side_by_side(
    predictions: Sequence[Predictions], ids: Sequence[str], fold: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, maps (M, C, H, W) float32), averaged over snapshots and views, of the M predictions.

    Args:
        ids: the images, in this order.
        fold: whose models are asked; None: those of all folds, averaged.
    """
    parts = predictions
    if fold is not None:
        parts = [replace(each, frame=each.frame[each.frame["fold"] == fold]) for each in predictions]
    for rows in zip(*(iter_average_maps(part, ids) for part in parts), strict=True):
        yield rows[0][0], np.stack([probability for _, probability in rows])


def size_problems(predictions: Predictions, first: Predictions) -> list[str]:
    """What is wrong with maps of another size than those of the `first` predictions, of the same ids."""
    sizes = [
        part.frame.drop_duplicates("id").set_index("id")[["height", "width"]].sort_index()
        for part in (first, predictions)
    ]
    different = (sizes[0] != sizes[1]).any(axis=1)
    ids = different.index[different].tolist()
    return [f"{len(ids)} maps have another size than in {first.folder}: {some(ids)}"] if ids else []
