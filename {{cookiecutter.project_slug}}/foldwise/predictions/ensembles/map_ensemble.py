"""Ensembles of maps, blended one image at a time to bound memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from foldwise.predictions.ensembles.blending import (
    GEOMETRIC,
    MAP_EDGE,
    MEAN,
    SIMPLEX,
    SINGLE,
    Blend,
    Fitted,
    Method,
    equal,
    geometric,
    simplex_weights,
)
from foldwise.predictions.ensembles.comparing import Ensemble, error_correlation
from foldwise.predictions.ensembles.joining import iter_checked, test_folds
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.metrics import MapMetric, score_fold_evidence
from foldwise.predictions.schema import Header
from foldwise.predictions.sources import Source
from foldwise.predictions.store import Predictions, iter_side_by_side
from foldwise.predictions.writers import PredictionWriter
from foldwise.progress import Progress

PIXELS = 400  # per image, to fit weights; neighbouring pixels are so similar that more add little


@dataclass(frozen=True)
class MapExamples:
    """Data that a blend of maps is fitted on.

    Attributes:
        evidence: (M, N, ...) of the single sources on N images, see `MapMetric.measure`.
        probability: (M, P, 1) in P sampled pixels: each source's probability of the true class, of target 1; with a
            mask per class, of a random class.
        target: (P, 1) float32.
    """

    metric: MapMetric
    evidence: np.ndarray
    probability: np.ndarray
    target: np.ndarray


def _single(examples: MapExamples) -> Blend:
    sign = 1 if examples.metric.greater_is_better else -1
    scores = [sign * examples.metric.reduce(source) for source in examples.evidence]
    return Blend(np.eye(len(scores))[np.argmax(np.nan_to_num(scores, nan=-np.inf))])


def _simplex(examples: MapExamples) -> Blend:
    assert examples.metric.task is not None  # set by for_task
    return Blend(simplex_weights(examples.probability, examples.target, examples.metric.task.exclusive))


# By whether the classes are exclusive.
GEOMETRIC_OF_MAPS = {each: partial(geometric, exclusive=each, axis=0, edge=MAP_EDGE) for each in (True, False)}
MAP_BLENDS = {
    exclusive: (
        replace(SINGLE, fit=_single),
        MEAN,
        replace(GEOMETRIC, fit=partial(equal, mean=mean)),
        replace(SIMPLEX, fit=_simplex),
    )
    for exclusive, mean in GEOMETRIC_OF_MAPS.items()
}


class MapEnsemble(Ensemble):
    """Ensemble of maps on disk; weights are fitted on sampled pixels, the values of a fold are evidence."""

    def __init__(self, sources: Sequence[Source], names: Sequence[str], truth: GroundTruth, progress: Progress) -> None:
        super().__init__(names, truth)
        self.oof = list(iter_checked(sources, truth))
        self.tests = [] if sources[0].test is None else list(iter_checked(sources, truth, test=True))
        ids = truth.table.frame["id"].to_numpy()
        self.ids = {fold: ids[truth.folds == fold].tolist() for fold in self.folds}
        self.of_fold: dict[int, MapExamples] = {}
        for done, fold in enumerate(self.folds):
            progress(f"sources of fold {fold}", done, len(self.folds))
            self.of_fold[fold] = self._measure(fold)

    def examples(self, folds: Sequence[int]) -> MapExamples:
        parts = [self.of_fold[fold] for fold in folds]
        evidence = np.concatenate([part.evidence for part in parts], axis=1)
        probability = np.concatenate([part.probability for part in parts], axis=1)
        return MapExamples(self.truth.metric, evidence, probability, np.concatenate([part.target for part in parts]))

    def source_values(self) -> dict[int, np.ndarray]:
        return {fold: each.evidence for fold, each in self.of_fold.items()}

    def values(self, fold: int, methods: Sequence[Sequence[Fitted]]) -> list[np.ndarray]:
        evidence: list[list[list[np.ndarray]]] = [[] for _ in methods]
        for mask, maps in self._images(fold):
            cache: dict[tuple[object, bytes], np.ndarray] = {}  # many lists share the same blends
            for blends, images in zip(methods, evidence, strict=True):
                keys = []
                for blend in blends:
                    assert isinstance(blend, Blend)
                    keys.append((blend.mean, blend.weights.tobytes()))
                    if keys[-1] not in cache:
                        cache[keys[-1]] = self.truth.metric.measure(mask, blend.predict(maps))
                images.append([cache[key] for key in keys])
        return [np.array(images).swapaxes(0, 1) for images in evidence]

    def score(self, values: Mapping[int, np.ndarray]) -> tuple[list[float], float]:
        folds = np.concatenate([np.full(len(each), fold) for fold, each in values.items()])
        per_fold, overall = score_fold_evidence(self.truth.metric, np.concatenate(list(values.values())), folds)
        return list(per_fold.values()), overall

    def correlation(self) -> np.ndarray:
        examples = self.examples(self.folds)
        return error_correlation(examples.probability, examples.target)

    def write(self, method: Method, oof: Path, test: Path | None, header: Header) -> None:
        """Write cross-fitted maps, and test maps blended fold by fold; a full fit gets the blend of all folds."""
        self._write(method, oof, header, self.oof, self.ids)
        if test is not None:
            ids = self.tests[0].frame["id"].drop_duplicates().tolist()
            folds = dict.fromkeys(test_folds(self.tests[0]), ids)
            self._write(method, test, replace(header, split="test"), self.tests, folds)

    def _write(
        self, method: Method, folder: Path, header: Header, sources: Sequence[Predictions], ids: dict[int, list[str]]
    ) -> None:
        with PredictionWriter(folder, header) as writer:
            for fold, fold_ids in ids.items():
                blend = self.fit(method, frozenset({fold}))
                assert isinstance(blend, Blend)
                for id, maps in iter_side_by_side(sources, fold_ids, fold):
                    writer.add(id, fold, "mean", "mean", blend.predict(maps))

    def _images(self, fold: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Iterate over a fold's images: the true mask and the sources' maps (M, C, H, W)."""
        for id, maps in iter_side_by_side(self.oof, self.ids[fold], fold):
            yield self.truth.table.read_mask(self.truth.table.row_of[id]), maps

    def _measure(self, fold: int) -> MapExamples:
        metric = self.truth.metric
        evidence, pixels, targets = [], [], []
        for mask, maps in self._images(fold):
            evidence.append([metric.measure(mask, source) for source in maps])
            valid = np.flatnonzero(mask != metric.ignore_index)
            chosen = np.random.default_rng(0).permutation(valid)[:PIXELS]
            if mask.ndim == 2:
                pixels.append(maps.reshape(*maps.shape[:2], -1)[:, mask.ravel()[chosen], chosen])
                targets.append(np.ones(len(chosen), np.float32))
            else:
                pixels.append(maps.reshape(len(maps), -1)[:, chosen])
                targets.append(mask.ravel()[chosen].astype(np.float32))
        values, target = np.concatenate(pixels, axis=1)[:, :, None], np.concatenate(targets)[:, None]
        return MapExamples(metric, np.array(evidence).swapaxes(0, 1), values, target)
