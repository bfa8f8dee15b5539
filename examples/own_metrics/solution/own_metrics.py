"""Your own metrics: of masks, by the things in them; and a published one that reads other columns."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import label

from foldwise.predictions.metrics import MapMetric


@dataclass(frozen=True, kw_only=True)
class ThingF1(MapMetric):
    """F1 of connected things of a class: a true one is found if some predicted one overlaps it by more than `overlap`.

    It is no function of pixel counts: moving pixels from one thing to another changes it.

    Args:
        thing: number of the class.
        overlap: intersection over union above which two things are the same.
    """

    thing: int = 1
    overlap: float = 0.5

    def measure(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """(3,) found, predicted and true things of one image."""
        valid = mask != self.ignore_index
        true, n_true = label((mask == self.thing) & valid)
        said, n_said = label((probability.argmax(axis=0) == self.thing) & valid)
        pairs = np.bincount((true * (n_said + 1) + said).ravel(), minlength=(n_true + 1) * (n_said + 1))
        pairs = pairs.reshape(n_true + 1, n_said + 1)
        areas = pairs.sum(axis=1, keepdims=True) + pairs.sum(axis=0, keepdims=True) - pairs
        found = (pairs / np.maximum(areas, 1) > self.overlap)[1:, 1:].any(axis=1).sum()
        return np.array([found, n_said, n_true], np.float64)

    def reduce(self, evidence: np.ndarray, weight: np.ndarray | None = None) -> float:
        weight = np.ones(len(evidence)) if weight is None else weight
        found, said, true = weight @ evidence
        return float(2 * found / (said + true)) if said + true else float("nan")


def region_accuracy(solution: pd.DataFrame, submission: pd.DataFrame, row_id_column_name: str) -> float:
    """A published metric that reads the column `region`: the worst region's accuracy. Rows are joined by their ids."""
    classes = [name for name in submission if name != row_id_column_name]
    both = solution.merge(submission, on=row_id_column_name, suffixes=("_true", "_said"))
    true = both[[f"{name}_true" for name in classes]].to_numpy().argmax(axis=1)
    said = both[[f"{name}_said" for name in classes]].to_numpy().argmax(axis=1)
    return float(pd.Series(true == said, dtype=float).groupby(both["region"].to_numpy()).mean().min())
