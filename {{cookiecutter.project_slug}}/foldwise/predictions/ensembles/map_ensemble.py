"""Ensembles of maps: they are blended one image at a time, so memory does not grow with images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data.images import read_mask
from foldwise.errors import Refusal
from foldwise.predictions.ensembles.blending import (
    GEOMETRIC,
    MEAN,
    SIMPLEX,
    SINGLE,
    Blend,
    equal_weights,
    geometric,
    one_hot,
    simplex_weights,
)
from foldwise.predictions.ensembles.comparing import Comparison, Strict, choose
from foldwise.predictions.ensembles.examples import Method
from foldwise.predictions.ensembles.joining import check_test, output_header
from foldwise.predictions.ensembles.row_ensemble import error_correlation
from foldwise.predictions.ground_truth import GroundTruth, check_predictions
from foldwise.predictions.metrics import MapMetric, score_fold_evidence
from foldwise.predictions.schema import Header, PredictionsError, raise_problems
from foldwise.predictions.sources import Source
from foldwise.predictions.store import Predictions, iter_side_by_side, read_predictions, size_problems
from foldwise.predictions.writers import PredictionWriter
from foldwise.progress import Progress

PIXELS = 400  # of an image, for fitting weights: neighbours say the same, so more of them add little
MAP_EDGE = 0.5 / 255  # maps are stored in 8 bits: 0 means less than this
NO_METADATA = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class MapExamples:
    """What a blend of maps is fitted on.

    Attributes:
        evidence: (N, M, ...) of the members by themselves, see `MapMetric.measure`.
        pixels: (M, P) the members' probability of the true class in some pixels.
    """

    metric: MapMetric
    evidence: np.ndarray
    pixels: np.ndarray


def _single(examples: MapExamples) -> Blend:
    sign = 1 if examples.metric.greater_is_better else -1
    members = examples.evidence.shape[1]
    scores = [sign * examples.metric.reduce(examples.evidence[:, member]) for member in range(members)]
    return Blend(one_hot(int(np.argmax(np.nan_to_num(scores, nan=-np.inf))), members))


def _mean(examples: MapExamples) -> Blend:
    return Blend(equal_weights(len(examples.pixels)))


def _geometric(examples: MapExamples) -> Blend:
    return Blend(equal_weights(len(examples.pixels)), GEOMETRIC_OF_MAPS)


def _simplex(examples: MapExamples) -> Blend:
    true_class = examples.pixels[:, :, None]
    return Blend(simplex_weights(true_class, np.ones(true_class.shape[1:], np.float32), exclusive=True))


GEOMETRIC_OF_MAPS = partial(geometric, exclusive=True, axis=0, edge=MAP_EDGE)
MAP_BLENDS = (
    replace(SINGLE, fit=_single),
    replace(MEAN, fit=_mean),
    replace(GEOMETRIC, fit=_geometric),
    replace(SIMPLEX, fit=_simplex),
)


class MapEnsemble:
    """The members' maps, on disk. Weights are fitted on some pixels of each image; scores are those of all pixels.

    Raises:
        Refusal: sources that do not go together, each by its name.
    """

    def __init__(self, sources: Sequence[Source], names: Sequence[str], truth: GroundTruth) -> None:
        self.names, self.truth = list(names), truth
        self.oof, self.tests = _read(sources, truth)
        self.folds: list[int] = sorted(set(truth.folds.tolist()) - {-1})
        ids = truth.table.frame["id"].to_numpy()
        self.ids = {fold: ids[truth.folds == fold].tolist() for fold in self.folds}
        self.examples: dict[int, MapExamples] = {}
        self.fitted: dict[tuple[str, frozenset[int]], Blend] = {}

    def compare(self, methods: Sequence[Method], forced: str | None, strict: bool, progress: Progress) -> Comparison:
        """As `RowEnsemble.compare`: one pass over the maps for the members and their pixels, and one for the blends."""
        total = 2 * len(self.folds)
        for done, fold in enumerate(self.folds):
            progress(f"members of fold {fold}", done, total)
            self.examples[fold] = self._look_at(fold)
        evidence: dict[frozenset[int], dict[int, np.ndarray]] = {}
        for done, fold in enumerate(self.folds, len(self.folds)):
            progress(f"blends of fold {fold}", done, total)
            without = [frozenset({fold})]
            without += [frozenset({fold, held}) for held in self.folds if strict and held != fold]
            blends = [[self._fit(method, folds) for method in methods] for folds in without]
            for folds, values in zip(without, self._measure(fold, blends), strict=True):
                evidence.setdefault(folds, {})[fold] = values
        cross_fitted = {fold: evidence[frozenset({fold})][fold] for fold in self.folds}
        member_scores, member_overall = self._score({fold: self.examples[fold].evidence for fold in self.folds})
        scores, overall = self._score(cross_fitted)
        pixels = np.concatenate([self.examples[fold].pixels for fold in self.folds], axis=1)[:, :, None]
        return Comparison(
            metric=self.truth.metric,
            folds=self.folds,
            members=self.names,
            member_scores=member_scores,
            member_overall=member_overall,
            names=[method.name for method in methods],
            titles=[method.title for method in methods],
            scores=scores,
            overall=overall,
            weights=[
                np.array([self._fit(method, frozenset({fold})).weights for fold in self.folds]) for method in methods
            ],
            correlation=error_correlation(pixels, np.ones(pixels.shape[1:])),
            forced=forced,
            strict=self._strict(methods, forced, evidence) if strict else None,
        )

    def write(self, method: Method, oof: Path, test: Path | None, run: str) -> None:
        """Write the cross-fitted maps, and each fold's blend of its models' test maps, one image at a time."""
        header = output_header(self.truth, run)
        self._write(method, oof, header, self.oof, self.ids)
        if test is not None:
            ids = self.tests[0].frame["id"].drop_duplicates().tolist()
            folds = sorted(set(self.tests[0].frame["fold"].tolist()))  # FULL too: nothing is left out of its fit
            self._write(method, test, replace(header, split="test"), self.tests, dict.fromkeys(folds, ids))

    def _write(
        self, method: Method, folder: Path, header: Header, members: Sequence[Predictions], ids: dict[int, list[str]]
    ) -> None:
        with PredictionWriter(folder, header) as writer:
            for fold, own in ids.items():
                blend = self._fit(method, frozenset({fold}))
                for id, maps in iter_side_by_side(members, own, fold):
                    writer.add(id, fold, "mean", "mean", blend.predict(maps, NO_METADATA))

    def _images(self, fold: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The mask (H, W) and the members' maps (M, C, H, W) of every image of a fold."""
        for id, maps in iter_side_by_side(self.oof, self.ids[fold], fold):
            yield read_mask(self.truth.table.mask_path(self.truth.table.row_of[id])), maps

    def _look_at(self, fold: int) -> MapExamples:
        metric = self.truth.metric
        evidence, pixels = [], []
        for mask, maps in self._images(fold):
            evidence.append([metric.measure(mask, member) for member in maps])
            valid = np.flatnonzero(mask != metric.ignore_index)
            chosen = np.random.default_rng(0).permutation(valid)[:PIXELS]
            pixels.append(maps.reshape(*maps.shape[:2], -1)[:, mask.ravel()[chosen], chosen])
        return MapExamples(metric, np.array(evidence), np.concatenate(pixels, axis=1))

    def _fit(self, method: Method, without: frozenset[int]) -> Blend:
        """The blend that a method makes of the folds but these."""
        if (method.name, without) not in self.fitted:
            parts = [self.examples[fold] for fold in self.folds if fold not in without]
            evidence = np.concatenate([part.evidence for part in parts])
            pixels = np.concatenate([part.pixels for part in parts], axis=1)
            fitted = method.fit(MapExamples(self.truth.metric, evidence, pixels))
            assert isinstance(fitted, Blend)
            self.fitted[method.name, without] = fitted
        return self.fitted[method.name, without]

    def _measure(self, fold: int, blends: Sequence[Sequence[Blend]]) -> list[np.ndarray]:
        """For each list of blends, the evidence (N, blends, ...) of the images of a fold."""
        evidence: list[list[list[np.ndarray]]] = [[] for _ in blends]
        for mask, maps in self._images(fold):
            known: dict[Any, np.ndarray] = {}  # most lists have the same means and the same best member
            for one, images in zip(blends, evidence, strict=True):
                keys = [(blend.mean, blend.weights.tobytes()) for blend in one]
                for key, blend in zip(keys, one, strict=True):
                    if key not in known:
                        known[key] = self.truth.metric.measure(mask, blend.predict(maps, NO_METADATA))
                images.append([known[key] for key in keys])
        return [np.array(images) for images in evidence]

    def _score(self, evidence: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(methods, K) scores of the folds and (methods,) overall, of each fold's evidence (N, methods, ...)."""
        folds = np.concatenate([np.full(len(evidence[fold]), fold) for fold in self.folds])
        every = np.concatenate([evidence[fold] for fold in self.folds])
        scored = [score_fold_evidence(self.truth.metric, every[:, m], folds) for m in range(every.shape[1])]
        return np.array([list(per_fold.values()) for per_fold, _ in scored]), np.array([total for _, total in scored])

    def _strict(
        self, methods: Sequence[Method], forced: str | None, evidence: dict[frozenset[int], dict[int, np.ndarray]]
    ) -> Strict:
        metric, names = self.truth.metric, [method.name for method in methods]
        held_out, chosen = {}, []
        for held in self.folds:
            inner = [evidence[frozenset({fold, held})][fold] for fold in self.folds if fold != held]
            scores = np.array([[metric.reduce(values[:, m]) for values in inner] for m in range(len(methods))])
            best = names.index(forced) if forced else choose(scores, metric)
            held_out[held] = evidence[frozenset({held})][held][:, [best]]
            chosen.append(names[best])
        scores, overall = self._score(held_out)
        return Strict(scores[0].tolist(), float(overall[0]), chosen)


def _read(sources: Sequence[Source], truth: GroundTruth) -> tuple[list[Predictions], list[Predictions]]:
    """The out-of-fold predictions of the sources, and the test ones where there are such."""
    oof: list[Predictions] = []
    tests: list[Predictions] = []
    problems = []
    for source in sources:
        try:
            oof.append(read_predictions(source.oof))
            check_predictions(oof[-1], truth)
            raise_problems(source.oof, size_problems(oof[-1], oof[0]))
            if source.test is not None:
                tests.append(read_predictions(source.test))
                check_test(tests[-1], truth, tests[0].folder, tests[0].frame["id"].unique().tolist())
                raise_problems(source.test, size_problems(tests[-1], tests[0]))
        except PredictionsError as error:
            problems.append(str(error))
    if problems:
        raise Refusal("\n".join(problems))
    return oof, tests
