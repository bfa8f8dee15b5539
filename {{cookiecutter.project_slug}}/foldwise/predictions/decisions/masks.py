"""Cleaning of masks: fill holes, remove absent classes and small objects, by thresholds that are fitted out of fold.

Class 0 is the background; it has holes but no objects. Areas are shares of the image, independent of its size.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.decisions.deciding import Chosen, Outcome, check_decision, check_folds, choose
from foldwise.predictions.decisions.presence import Presence, without_absent
from foldwise.predictions.metrics import MapMetric, pixel_confusion, pixel_counts, score_fold_evidence


@dataclass(frozen=True)
class Cleaning:
    """Argmax of the class probabilities, then cleaning.

    Args:
        fill: fill background holes that are enclosed by a single class with that class.
        area: remove 8-connected objects below this share of the image; their pixels get their second-best class.
        presence: remove classes that are less present in the image than this, see `presence`.
    """

    fill: bool = False
    area: float = 0.0
    presence: float = 0.0

    AREAS: ClassVar[tuple[float, ...]] = (0.0002, 0.001, 0.005)  # few, because each adds another mask to score
    PRESENCES: ClassVar[tuple[float, ...]] = (0.02, 0.1, 0.3)

    @property
    def name(self) -> str:
        steps = {"hole-filling": self.fill, "minimum-area": self.area, "presence": self.presence}
        return "+".join([name for name, used in steps.items() if used] or ["argmax"])

    def __str__(self) -> str:
        area = f" {self.area:.2%} of the image" if self.area else ""
        return f"{self.name}{area}" + (f" from {self.presence:g}" if self.presence else "")

    def __call__(self, probability: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
        """Turn probabilities (C, H, W), and the presence (C,) of the classes, into a clean mask (H, W) int64."""
        if self.presence and present is not None:
            probability = without_absent(probability, present, self.presence)
        answer = probability.argmax(axis=0)
        return self.clean(answer, probability, object_areas(answer) if self.area else None)

    def clean(self, answer: np.ndarray, probability: np.ndarray, areas: np.ndarray | None) -> np.ndarray:
        """Clean an argmax mask `answer` (H, W); `areas` are its `object_areas`, needed if `area` is not 0."""
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
WITH_PRESENCE = [replace(each, presence=least) for least in (0.0, *Cleaning.PRESENCES) for each in CANDIDATES]


def choose_cleaning(
    metric: MapMetric,
    images: Iterable[tuple[str, np.ndarray, np.ndarray, int]],
    forced: str | None = None,
    presence: Presence | None = None,
) -> Chosen:
    """Compare the ways of cleaning, and fit the chosen one.

    Args:
        images: id, ground truth (H, W), out-of-fold probabilities (C, H, W) and fold of each image.
        forced: name of the cleaning; None: the simplest within one standard error of the best.
        presence: out of fold, to compare cleaning by it as well.
    """
    candidates = CANDIDATES if presence is None else WITH_PRESENCE
    check_decision(forced, list(dict.fromkeys(cleaning.name for cleaning in candidates)))
    measured = []
    for id, mask, probability, fold in images:
        try:
            present = None if presence is None else presence[id]
            measured.append((*measure_candidates(metric, mask, probability, present), fold))
        except Refusal as error:
            raise Refusal(f"{id}: {error}") from error
    evidence, counts, folds = (np.array(each) for each in zip(*measured, strict=True))
    outcomes, cleanings = compare_cleaning(metric, evidence, folds, candidates)
    index = choose(outcomes, metric.greater_is_better, forced)
    rows = np.arange(len(counts))
    before, after = (counts[rows, outcome.answers].sum(axis=0) for outcome in (outcomes[0], outcomes[index]))
    pixels = {"ground truth": after[:, 2], "out of fold": before[:, 1], "cleaned": after[:, 1]}
    shares = {name: count / count.sum() for name, count in pixels.items()}
    return Chosen(outcomes, index, cleanings[index], shares)


def measure_candidates(
    metric: MapMetric, mask: np.ndarray, probability: np.ndarray, present: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Measure an image: evidence (candidates, ...), see `MapMetric.measure`, and pixel counts (candidates, C, 3)."""
    classes, masks = np.arange(len(probability))[:, None, None], []
    for least in (0.0,) if present is None else (0.0, *Cleaning.PRESENCES):
        maps = probability if present is None else without_absent(probability, present, least)
        answer = maps.argmax(axis=0)
        areas = object_areas(answer)
        masks += [cleaning.clean(answer, maps, areas) for cleaning in CANDIDATES]
    confusions = (pixel_confusion(mask, cleaned, len(classes), metric.ignore_index) for cleaned in masks)
    counts = np.stack([pixel_counts(confusion) for confusion in confusions])
    if metric.of_counts:
        return counts, counts
    return np.stack([metric.measure(mask, (classes == cleaned).astype(np.float32)) for cleaned in masks]), counts


def compare_cleaning(
    metric: MapMetric, evidence: np.ndarray, folds: np.ndarray, candidates: Sequence[Cleaning] = CANDIDATES
) -> tuple[list[Outcome], list[Cleaning]]:
    """Score each way of cleaning, simplest first; each fold uses the thresholds that are best on the other folds.

    Takes evidence (N, candidates, ...) and folds (N,); returns the outcomes, and each cleaning fitted on all folds.
    """
    check_folds(folds)
    sign = 1 if metric.greater_is_better else -1
    groups: dict[str, list[int]] = {}
    for place, cleaning in enumerate(candidates):
        groups.setdefault(cleaning.name, []).append(place)

    def best(group: Sequence[int], rows: np.ndarray) -> int:
        return max(group, key=lambda candidate: sign * metric.reduce(evidence[rows, candidate]))

    outcomes, fitted = [], []
    with warnings.catch_warnings(action="ignore"):  # about classes missing from a fold; the run's report names them
        for name, group in groups.items():
            chosen = np.zeros(len(folds), np.int64)
            for fold in np.unique(folds):
                chosen[folds == fold] = best(group, folds != fold)
            cleaned = evidence[np.arange(len(folds)), chosen]
            fitted.append(candidates[best(group, folds >= 0)])
            outcomes.append(Outcome(name, *score_fold_evidence(metric, cleaned, folds), chosen))
    return outcomes, fitted


def object_areas(mask: np.ndarray) -> np.ndarray:
    """Map each pixel to the area of its 8-connected object in pixels, (H, W) int64; background: the whole image.

    `mask` has class numbers, or is bool.
    """
    import cv2

    areas = np.full(mask.shape, mask.size)
    for label in np.unique(mask):
        if label:
            inside = mask == label
            _, pieces, statistics, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
            areas[inside] = statistics[pieces[inside], cv2.CC_STAT_AREA]
    return areas


def _fill_holes(mask: np.ndarray) -> None:
    """Fill holes enclosed by a single class, in place; background at the edge of the image is not a hole."""
    from scipy.ndimage import label

    holes, count = label(mask == 0)
    # Smallest and largest neighbouring class of each hole; the edge of the image counts as class -1.
    edged, classes = np.pad(holes, 1), np.pad(mask, 1, constant_values=-1)
    lowest, highest = np.full(count + 1, np.iinfo(np.int64).max), np.zeros(count + 1, np.int64)
    for axis in (0, 1):
        for step in (-1, 1):
            neighbour = np.roll(classes, step, axis)
            touching = (edged > 0) & (neighbour != 0)
            np.minimum.at(lowest, edged[touching], neighbour[touching])
            np.maximum.at(highest, edged[touching], neighbour[touching])
    enclosed = lowest == highest
    enclosed[0] = False  # 0 labels everything but background
    inside = enclosed[holes]
    mask[inside] = highest[holes[inside]]
