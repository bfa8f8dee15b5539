"""Masks per class from probabilities: a threshold and a minimum area for each class, fitted out of fold."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.decisions.deciding import Chosen, Outcome, check_decision, check_folds, choose
from foldwise.predictions.decisions.masks import choose_cleaning, object_areas
from foldwise.predictions.decisions.presence import Presence
from foldwise.predictions.metrics import MapMetric, count_pixels, score_fold_evidence

Image = tuple[str, np.ndarray, np.ndarray, int]  # id, ground truth, out-of-fold probabilities (C, H, W), fold


@dataclass(frozen=True)
class Unchanged:
    """Unchanged numbers, for metrics that score them."""

    name: ClassVar[str] = "probabilities"

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        return probability

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ClassCuts:
    """A threshold for each class, and removal of its 8-connected objects below a share of the image."""

    thresholds: np.ndarray = field(default_factory=lambda: np.full(1, 0.5))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(1))

    THRESHOLDS: ClassVar[tuple[float, ...]] = (0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)  # 0.5 wins ties
    AREAS: ClassVar[tuple[float, ...]] = (0.0, 0.0002, 0.001, 0.005, 0.02)

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Turn probabilities (C, H, W) into a mask per class, bool."""
        cuts = zip(probability, self.thresholds, self.areas, strict=True)
        return np.stack([cut_layer(layer, threshold, [area])[0] for layer, threshold, area in cuts])

    def __str__(self) -> str:
        cuts = zip(self.thresholds, self.areas, strict=True)
        return " ".join(
            f"{threshold:.2g}" + (f" from {area:.2%} of the image" if area else "") for threshold, area in cuts
        )


def cut_layer(probability: np.ndarray, threshold: float, areas: Iterable[float]) -> list[np.ndarray]:
    """Cut the probability (H, W) of a class at a threshold, and remove small objects, for each of the areas."""
    mask = probability >= threshold
    sizes = object_areas(mask) if any(areas) else None
    return [mask if sizes is None else mask & (sizes >= area * mask.size) for area in areas]


# What is fitted of the cuts: name, thresholds and areas to try; simplest first.
CUTS: dict[str, list[tuple[float, float]]] = {
    "fixed-threshold": [(0.5, 0.0)],
    "class-thresholds": [(threshold, 0.0) for threshold in ClassCuts.THRESHOLDS],
    "minimum-area": [(0.5, area) for area in ClassCuts.AREAS],
    "class-thresholds+minimum-area": list(product(ClassCuts.THRESHOLDS, ClassCuts.AREAS)),
}
CANDIDATES = CUTS["class-thresholds+minimum-area"]


def choose_masks(
    metric: MapMetric, images: Iterable[Image], forced: str | None = None, presence: Presence | None = None
) -> Chosen:
    """Compare the ways of making masks, and fit the chosen one.

    Args:
        forced: name of the way; None: the simplest within one standard error of the best.
        presence: out of fold, see `presence`; for exclusive classes.
    """
    assert metric.task is not None  # set by for_task
    if metric.task.exclusive:
        return choose_cleaning(metric, images, forced, presence)
    if presence is not None:
        raise Refusal(f"--presence is for masks of exclusive classes, but the task is {metric.task.name}")
    return choose_cuts(metric, images, forced) if metric.of_counts else _keep_numbers(metric, images, forced)


def _keep_numbers(metric: MapMetric, images: Iterable[Image], forced: str | None) -> Chosen:
    check_decision(forced, [Unchanged.name])
    evidence, folds, sums = [], [], np.zeros((2, len(metric.classes)))
    for id, mask, probability, fold in images:
        try:
            evidence.append(metric.measure(mask, probability))
        except Refusal as error:
            raise Refusal(f"{id}: {error}") from error
        folds.append(fold)
        valid = mask != metric.ignore_index
        sums += [np.where(valid, layers, 0).sum(axis=(1, 2)) for layers in (mask, probability)]
    scores = score_fold_evidence(metric, np.stack(evidence), np.array(folds))
    shares = dict(zip(("ground truth", "out of fold"), shares_of(sums), strict=True))
    return Chosen([Outcome(Unchanged.name, *scores, np.zeros(len(folds), np.int64))], 0, Unchanged(), shares)


def choose_cuts(metric: MapMetric, images: Iterable[Image], forced: str | None = None) -> Chosen:
    """As `choose_masks`, for a metric of pixel counts of a mask per class."""
    check_decision(forced, list(CUTS))
    measured, folds = [], []
    for id, mask, probability, fold in images:
        try:
            measured.append(measure_cuts(metric, mask, probability))
        except Refusal as error:
            raise Refusal(f"{id}: {error}") from error
        folds.append(fold)
    counts = np.stack(measured)
    outcomes, fitted = compare_cuts(metric, counts, np.array(folds))
    index = choose(outcomes, metric.greater_is_better, forced)
    before, after = (_select(counts, outcome.answers).sum(axis=0) for outcome in (outcomes[0], outcomes[index]))
    pixels = np.stack([after[:, 2], before[:, 1], after[:, 1]])
    shares = dict(zip(("ground truth", "out of fold", "cleaned"), shares_of(pixels), strict=True))
    return Chosen(outcomes, index, fitted[index], shares)


def measure_cuts(metric: MapMetric, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Count the pixels of an image for each of the CANDIDATES and classes, (K, C, 3)."""
    layers = [
        [each for threshold in ClassCuts.THRESHOLDS for each in cut_layer(layer, threshold, ClassCuts.AREAS)]
        for layer in probability
    ]
    classes = len(probability)
    return np.stack(
        [count_pixels(mask, np.stack(cut), classes, metric.ignore_index) for cut in zip(*layers, strict=True)]
    )


def compare_cuts(metric: MapMetric, counts: np.ndarray, folds: np.ndarray) -> tuple[list[Outcome], list[ClassCuts]]:
    """Score each entry of CUTS, simplest first; each fold uses the cuts that are best on the other folds.

    Takes counts (N, K, C, 3) and folds (N,); returns the outcomes, whose answers (N, C) are candidates, and the cuts
    fitted on all folds.
    """
    check_folds(folds)
    outcomes, fitted = [], []
    with warnings.catch_warnings(action="ignore"):  # about classes missing from a fold; the run's report names them
        for name, cuts in CUTS.items():
            tried = [CANDIDATES.index(cut) for cut in cuts]
            chosen = np.zeros((len(counts), counts.shape[2]), np.int64)
            for fold in np.unique(folds):
                chosen[folds == fold] = fit_cuts(metric, counts[folds != fold], tried)
            outcomes.append(Outcome(name, *score_fold_evidence(metric, _select(counts, chosen), folds), chosen))
            best = np.array([CANDIDATES[index] for index in fit_cuts(metric, counts, tried)])
            fitted.append(ClassCuts(best[:, 0], best[:, 1]))
    return outcomes, fitted


def fit_cuts(metric: MapMetric, counts: np.ndarray, tried: list[int]) -> np.ndarray:
    """Choose the best of the tried candidates for each class (C,), one class after another; the first wins ties."""
    sign, chosen = 1 if metric.greater_is_better else -1, np.full(counts.shape[2], tried[0])
    current = _select(counts, np.broadcast_to(chosen, (len(counts), len(chosen))))
    for number in range(len(chosen)):
        scores = []
        for candidate in tried:
            current[:, number] = counts[:, candidate, number]
            scores.append(sign * metric.reduce(current))
        values = np.array(scores)
        if np.isfinite(values).any():
            chosen[number] = tried[int(np.nanargmax(values))]
        current[:, number] = counts[:, chosen[number], number]
    return chosen


def shares_of(pixels: np.ndarray) -> np.ndarray:
    """Divide sums over the classes (..., C) by their total; 0 without any."""
    return pixels / np.maximum(pixels.sum(axis=-1, keepdims=True), 1e-9)


def class_sums(answer: np.ndarray, classes: int) -> np.ndarray:
    """Pixels, or the sum of numbers, of each class (C,) in class numbers (H, W) or layers (C, H, W)."""
    return answer.sum(axis=(1, 2)) if answer.ndim == 3 else np.bincount(answer.ravel(), minlength=classes)


def _select(counts: np.ndarray, chosen: Any) -> np.ndarray:
    """Take the counts (N, C, 3) of the chosen candidates (N, C) out of (N, K, C, 3)."""
    return np.take_along_axis(counts, np.asarray(chosen)[:, None, :, None], axis=1)[:, 0]
