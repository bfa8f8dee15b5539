"""Metrics of boxes. Evidence is gathered one picture at a time, then reduced to the score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foldwise.errors import Refusal
from foldwise.files import is_number
from foldwise.predictions.metrics.base import Metric, Score

if TYPE_CHECKING:
    from foldwise.predictions.boxes import Boxes

COCO = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, kw_only=True)
class BoxMetric(Metric):
    """Base class of metrics of boxes."""

    kind = "boxes"
    probabilities = None

    def measure(self, true: "Boxes", found: "Boxes") -> Any:
        """Return the evidence of one picture, any object."""
        raise NotImplementedError

    def reduce(self, evidence: np.ndarray) -> float:
        """Compute the score from the evidence (N,) object of all pictures."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Hits:
    """Found boxes (D,) of a picture, best score first, with `hit` (D, T) by threshold; `true` (C,) counts."""

    label: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    true: np.ndarray


@dataclass(frozen=True, kw_only=True)
class DetectionMap(BoxMetric):
    """Mean average precision of COCO (`COCOeval`, all areas, no crowds).

    Args:
        thresholds: least IoU of a hit; the score is the mean over them and the classes with ground truth.
        most: boxes of a class in a picture that count, the best-scored.
    """

    thresholds: Sequence[float] = COCO
    most: int = 100

    def __post_init__(self) -> None:
        if not self.thresholds or not all(is_number(each) and 0 < each < 1 for each in self.thresholds):
            raise Refusal(f"metric.thresholds is {self.thresholds!r}; it must be a list of numbers between 0 and 1")
        if type(self.most) is not int or self.most < 1:
            raise Refusal(f"metric.most is {self.most!r}; it must be a whole number from 1")

    def measure(self, true: "Boxes", found: "Boxes") -> Hits:
        from foldwise.predictions.boxes import overlaps

        kept, hits = [], []
        order = np.argsort(-found.score, kind="stable")
        for label in np.unique(found.label):
            rows = order[found.label[order] == label][: self.most]
            kept.append(rows)
            hits.append(self._hits(overlaps(found.edges[rows], true.edges[true.label == label])))
        best = found.take(np.concatenate([np.zeros(0, np.int64), *kept]))
        empty = np.zeros((0, len(self.thresholds)), bool)
        return Hits(
            best.label,
            best.score,
            np.concatenate([empty, *hits]),
            np.bincount(true.label, minlength=len(self.classes)),
        )

    def _hits(self, iou: np.ndarray) -> np.ndarray:
        """Which of D boxes, best first, hit a true box (D, T): each takes the one that it overlaps most and is free."""
        least = np.array(self.thresholds)
        hit, taken = np.zeros((len(iou), len(least)), bool), np.zeros((len(least), iou.shape[1]), bool)
        for row in np.flatnonzero((iou >= least.min()).any(axis=1)):
            possible = np.where(~taken & (iou[row] >= least[:, None]), iou[row], -1)
            chosen = iou.shape[1] - 1 - possible[:, ::-1].argmax(axis=1)  # of equal ones the last, as in COCO
            hit[row] = possible[np.arange(len(least)), chosen] >= 0
            taken[hit[row], chosen[hit[row]]] = True
        return hit

    def per_class(self, evidence: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Average precision (C,), the mean over the thresholds; NaN for a class without ground truth."""
        return self._precision(evidence)(np.ones(len(evidence)) if weight is None else weight)

    def reduce(self, evidence: np.ndarray) -> float:
        return self.mean_of_classes(self.per_class(evidence), "not in the ground truth")

    def prepare(self, evidence: np.ndarray) -> Score:
        of_weights = self._precision(evidence)
        return lambda weight: self.mean_of_classes(of_weights(weight), "not in the ground truth")

    def _precision(self, evidence: np.ndarray) -> Any:
        """Average precision (C,) as a function of the pictures' weights (N,)."""
        if not len(evidence):
            return lambda weight: np.full(len(self.classes), np.nan)
        picture = np.repeat(np.arange(len(evidence)), [len(each.label) for each in evidence])
        label, score, hit = (np.concatenate([getattr(e, name) for e in evidence]) for name in ("label", "score", "hit"))
        true = np.stack([each.true for each in evidence])
        order = np.argsort(-score, kind="stable")
        of_class = [order[label[order] == number] for number in range(len(self.classes))]

        def average(weight: np.ndarray) -> np.ndarray:
            counts, result = weight @ true, np.full(len(of_class), np.nan)
            for number in np.flatnonzero(counts > 0):
                rows = of_class[number]
                result[number] = _area(hit[rows], weight[picture[rows]], counts[number])
            return result

        return average


@dataclass(frozen=True, kw_only=True)
class DetectionMap50(DetectionMap):
    """`DetectionMap` where an IoU of 0.5 is a hit."""

    thresholds: Sequence[float] = (0.5,)
    prepare = DetectionMap.prepare


def _area(hit: np.ndarray, weight: np.ndarray, true: float) -> float:
    """Mean over thresholds of the precision at 101 recalls, from hits (D, T) in the order of their scores."""
    right = np.cumsum(weight[:, None] * hit, axis=0)
    precision = right / (np.cumsum(weight)[:, None] + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall, padded = right / true, np.vstack([precision, np.zeros((1, hit.shape[1]))])
    places = [np.searchsorted(of_threshold, RECALLS) for of_threshold in recall.T]
    return float(np.mean([padded[place, number] for number, place in enumerate(places)]))
