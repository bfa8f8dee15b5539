"""The images that models are least sure of, to be labelled by hand: the other end of the list of pseudo labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import check_new, write_atomic
from foldwise.predictions.metrics import cross_entropy
from foldwise.predictions.pseudo.rules import confidence
from foldwise.predictions.pseudo.tables import check_suffix, class_problems, write_table
from foldwise.predictions.pseudo.teachers import Teachers, open_teachers

COLUMNS = ("id", "image", "entropy", "margin")


def list_uncertain(
    runs: Sequence[Path], out: Path, count: int, test: str | None = None, table: Path | None = None
) -> pd.DataFrame:
    """Write the images that the models of all folds together are least sure of, to be labelled by hand.

    Those of the highest entropy come first, for multi-label of its mean over the labels, for masks over the pixels.
    `margin` is the other usual measure: how far the two likeliest answers are apart, for multi-label the presence and
    the absence of the least certain label, for masks in the mean of the pixels; the smaller, the less sure. (Settles
    2009, Active Learning Literature Survey, section 3.1.)

    Args:
        runs, test, table: as in `open_teachers`.
        out: the .csv or .parquet file to write.
        count: how many images.

    Returns:
        What is written: id, image, entropy, margin, and one probability a class, of masks its mean over the pixels.

    Raises:
        Refusal: as `pseudo_label`.
    """
    check_suffix(out)
    check_new(out)
    teachers = open_teachers(runs, test, table)
    problems = class_problems(teachers.classes, COLUMNS)
    if problems:
        raise Refusal("\n".join(problems))
    if teachers.task.kind == "maps":
        entropy, margin, probability = map(np.array, zip(*_of_maps(teachers), strict=True))
    else:
        probability = teachers.probability()
        entropy, margin = _uncertainty(probability, teachers.task.exclusive)
    frame = teachers.table.frame[["id", "image"]].assign(entropy=entropy, margin=margin)
    frame = frame.join(pd.DataFrame(probability, columns=teachers.classes))
    frame = frame.sort_values(["entropy", "id"], ascending=[False, True]).head(count).round(6)
    with write_atomic(out) as temporary:
        write_table(temporary, frame)
    return frame


def _of_maps(teachers: Teachers) -> Iterator[tuple[float, float, np.ndarray]]:
    """Entropy, margin and probability (C,) of each image: the means over its pixels."""
    for map in teachers.maps(np.arange(len(teachers.table))):
        pixels = map.reshape(len(map), -1).T
        entropy, margin = _uncertainty(pixels, True)
        yield entropy.mean(), margin.mean(), pixels.mean(axis=0)


def _uncertainty(probability: np.ndarray, exclusive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and margin, (N,) each, of (N, C) probabilities."""
    entropy = cross_entropy(probability, probability, exclusive)
    if exclusive:
        return entropy, np.diff(np.partition(probability, -2, axis=1)[:, -2:], axis=1)[:, 0]
    return entropy, 2 * confidence(probability, False) - 1
