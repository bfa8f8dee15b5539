"""Cleaning of predicted masks: holes filled, small objects removed; how small is fitted out of fold.

Class 0 is the background: it has no objects, only holes. Areas are shares of the picture, so that they hold for
pictures of any size.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.decisions.deciding import Chosen, Outcome, check_folds, check_wanted, choose
from foldwise.predictions.metrics import MapMetric, pixel_confusion, pixel_counts, score_fold_evidence


@dataclass(frozen=True)
class Cleaning:
    """From probabilities to a mask: the most probable class of each pixel, then cleaned.

    Args:
        fill: background that one class encloses, and that class alone, becomes that class.
        area: connected objects (diagonals count) of less than this share of the picture go; their pixels become the
            next probable class.
    """

    fill: bool = False
    area: float = 0.0

    AREAS: ClassVar[tuple[float, ...]] = (0.0002, 0.001, 0.005)  # few: each is a mask more to count

    @property
    def name(self) -> str:
        steps = {"hole-filling": self.fill, "minimum-area": self.area}
        return "+".join([name for name, used in steps.items() if used] or ["argmax"])

    def __str__(self) -> str:
        return f"{self.name} {self.area:.2%} of the picture" if self.area else self.name

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """The mask (H, W) int64 of a probability (C, H, W)."""
        answer = probability.argmax(axis=0)
        return self.clean(answer, probability, object_areas(answer) if self.area else None)

    def clean(self, answer: np.ndarray, probability: np.ndarray, areas: np.ndarray | None) -> np.ndarray:
        """As a call, of the answer (H, W) before cleaning and its `object_areas`, needed where `area` is not 0."""
        mask = answer.copy()
        if areas is not None and self.area:
            small = areas < self.area * mask.size
            others = probability[:, small]
            others[mask[small], np.arange(others.shape[1])] = -1
            mask[small] = others.argmax(axis=0)
        if self.fill:
            _fill_holes(mask)
        return mask


CANDIDATES = [Cleaning(fill, area) for area in (0.0, *Cleaning.AREAS) for fill in (False, True)]
CLEANINGS = [cleaning.name for cleaning in CANDIDATES[:4]]  # every name, the simplest first


def choose_cleaning(
    metric: MapMetric, images: Iterable[tuple[str, np.ndarray, np.ndarray, int]], wanted: str | None = None
) -> Chosen:
    """Compare the ways of cleaning, and fit the simplest within one standard error of the best.

    Args:
        images: id, ground truth (H, W), out-of-fold probability (C, H, W) and fold of each.
        wanted: the name of a cleaning to take whatever the scores say.

    Raises:
        Refusal: there is no `wanted`, a mask and its probability do not fit, or there are fewer than two folds.
    """
    check_wanted(wanted, CLEANINGS)
    measured = []
    for id, mask, probability, fold in images:
        try:
            measured.append((*measure_candidates(metric, mask, probability), fold))
        except Refusal as error:
            raise Refusal(f"{id}: {error}") from error
    evidence, counts, folds = (np.array(each) for each in zip(*measured, strict=True))
    outcomes, cleanings = compare_cleaning(metric, evidence, folds)
    place = choose(outcomes, metric.greater_is_better, wanted)
    every = np.arange(len(counts))
    before, after = (counts[every, outcome.answers].sum(axis=0) for outcome in (outcomes[0], outcomes[place]))
    pixels = {"ground truth": after[:, 2], "out of fold": before[:, 1], "cleaned": after[:, 1]}
    shares = {name: count / count.sum() for name, count in pixels.items()}
    return Chosen(outcomes, place, cleanings[place], shares)


def measure_candidates(metric: MapMetric, mask: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The evidence (candidates, ...) of an image, see `MapMetric.measure`, and its pixel counts (candidates, C, 3)."""
    answer = probability.argmax(axis=0)
    areas, classes = object_areas(answer), np.arange(len(probability))[:, None, None]
    masks = [cleaning.clean(answer, probability, areas) for cleaning in CANDIDATES]
    confusions = (pixel_confusion(mask, cleaned, len(classes), metric.ignore_index) for cleaned in masks)
    counts = np.stack([pixel_counts(confusion) for confusion in confusions])
    if metric.of_counts:
        return counts, counts
    return np.stack([metric.measure(mask, (classes == cleaned).astype(np.float32)) for cleaned in masks]), counts


def compare_cleaning(
    metric: MapMetric, evidence: np.ndarray, folds: np.ndarray
) -> tuple[list[Outcome], list[Cleaning]]:
    """The score of each way of cleaning, the simplest first; for fold k the area is the best of the other folds.

    Args:
        evidence: (N, candidates, ...) of `measure_candidates`.
        folds: (N,).

    Returns:
        The outcomes, and the cleaning of each fitted on all folds.

    Raises:
        Refusal: there are fewer than two folds.
    """
    check_folds(folds)
    sign = 1 if metric.greater_is_better else -1

    def best(fill: bool, areas: Sequence[float], rows: np.ndarray) -> int:
        tried = [CANDIDATES.index(Cleaning(fill, area)) for area in areas]
        return max(tried, key=lambda candidate: sign * metric.reduce(evidence[rows, candidate]))

    outcomes, fitted = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that a fold lacks: the run's report names them
        for areas in ((0.0,), Cleaning.AREAS):
            for fill in (False, True):
                chosen = np.zeros(len(folds), np.int64)
                for fold in np.unique(folds):
                    chosen[folds == fold] = best(fill, areas, folds != fold)
                own = evidence[np.arange(len(folds)), chosen]
                fitted.append(CANDIDATES[best(fill, areas, folds >= 0)])
                outcomes.append(Outcome(fitted[-1].name, *score_fold_evidence(metric, own, folds), chosen))
    return outcomes, fitted


def object_areas(mask: np.ndarray) -> np.ndarray:
    """(H, W) int64: for each pixel the pixels of its object, connected by sides or corners.

    The background is one object as large as the picture.
    """
    import cv2

    areas = np.full(mask.shape, mask.size)
    for label in np.unique(mask):
        if label:
            own = mask == label
            _, pieces, statistics, _ = cv2.connectedComponentsWithStats(own.astype(np.uint8), connectivity=8)
            areas[own] = statistics[pieces[own], cv2.CC_STAT_AREA]
    return areas


def _fill_holes(mask: np.ndarray) -> None:
    """Give background that one class encloses, away from the edge of the picture, to that class."""
    from scipy.ndimage import label

    holes, count = label(mask == 0)
    # The smallest and the largest class beside each hole; the edge counts as a class below all others.
    edged, classes = np.pad(holes, 1), np.pad(mask, 1, constant_values=-1)
    lowest, highest = np.full(count + 1, np.iinfo(np.int64).max), np.zeros(count + 1, np.int64)
    for axis in (0, 1):
        for step in (-1, 1):
            beside = np.roll(classes, step, axis)
            met = (edged > 0) & (beside != 0)
            np.minimum.at(lowest, edged[met], beside[met])
            np.maximum.at(highest, edged[met], beside[met])
    enclosed = lowest == highest
    enclosed[0] = False  # what is not background
    inside = enclosed[holes]
    mask[inside] = highest[holes[inside]]
