"""Ensembles of row predictions."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.predictions.ensembles.blending import Examples, Fitted, Method
from foldwise.predictions.ensembles.comparing import Ensemble, error_correlation
from foldwise.predictions.ensembles.extra import Encoder, Extra
from foldwise.predictions.ensembles.joining import iter_checked, test_folds
from foldwise.predictions.ensembles.stack import Stack, Stacks
from foldwise.predictions.ensembles.thresholding import has_threshold, score_thresholded, score_thresholds
from foldwise.predictions.ground_truth import GroundTruth, align
from foldwise.predictions.metrics import score_folds
from foldwise.predictions.schema import Header
from foldwise.predictions.scoring import Scored, by_unit
from foldwise.predictions.sources import Source
from foldwise.predictions.store import read_predictions, write_predictions


class RowEnsemble(Ensemble):
    """Ensemble of row predictions in memory; the values of a fold are predictions (N, C).

    `metadata` and `features` read further inputs of stacking for test ids and folds, see `read_metadata` and
    `read_features`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        names: Sequence[str],
        truth: GroundTruth,
        metadata: Callable[[Sequence[str] | None], tuple[Encoder, str | None, Extra, Extra]],
        features: Callable[[Sequence[str], list[int]], tuple[np.ndarray, np.ndarray]],
    ) -> None:
        super().__init__(names, truth)
        self.sources = sources
        rows = np.flatnonzero(truth.folds >= 0)
        probability = np.empty((len(sources), len(rows), len(truth.table.classes)), np.float32)
        for index, predictions in enumerate(iter_checked(sources, truth)):
            probability[index] = align(predictions, truth)[1]
        self.test_ids: list[str] = []
        self.test_folds: list[int] = []
        if sources[0].test is not None:
            for predictions in iter_checked(sources, truth, test=True):
                self.test_ids = self.test_ids or predictions.frame["id"].drop_duplicates().tolist()
                self.test_folds = test_folds(predictions)
        self.encoder, self.group, extra, test_extra = metadata(self.test_ids if self.test_folds else None)
        more, test_more = features(self.test_ids, self.test_folds)
        extra, self.test_extra = extra.beside(more).take(rows), [test_extra.beside(each) for each in test_more]
        self.thresholded = has_threshold(truth.metric)
        self.all_rows = Examples(truth.table, truth.metric, rows, truth.folds[rows], probability, extra, {})
        scores = np.stack([self._source_scores(source) for source in probability])  # (M, K, T)
        self.all_rows = replace(self.all_rows, source_scores=dict(zip(self.folds, scores.swapaxes(0, 1), strict=True)))

    def examples(self, folds: Sequence[int]) -> Examples:
        return self.all_rows.take(list(folds))

    def source_values(self) -> dict[int, np.ndarray]:
        return {fold: self.all_rows.probability[:, self.all_rows.folds == fold] for fold in self.folds}

    def values(self, fold: int, methods: Sequence[Sequence[Fitted]]) -> list[np.ndarray]:
        held = self.examples([fold])
        return [np.stack([fitted.predict(held.probability, held.extra) for fitted in each]) for each in methods]

    def score(self, values: Mapping[int, np.ndarray]) -> tuple[list[float], float]:
        of_folds = self.examples(list(values))
        probability = np.empty(of_folds.probability.shape[1:], np.float32)
        for fold, each in values.items():
            probability[of_folds.folds == fold] = each
        scored = by_unit(self.truth.table, of_folds.rows, probability, of_folds.folds)
        per_fold, overall = self._score(scored)
        return list(per_fold.values()), overall

    def correlation(self) -> np.ndarray:
        return error_correlation(self.all_rows.probability, self.all_rows.target)

    def write(self, method: Method, oof: Path, test: Path | None, header: Header) -> None:
        """As `MapEnsemble.write`, for rows; also saves the stacks beside the folder `oof`."""
        folds, ids = self.all_rows.folds, self.truth.table.frame["id"].to_numpy()[self.all_rows.rows]
        probability = np.empty(self.all_rows.probability.shape[1:], np.float32)
        for fold in self.folds:
            (predicted,) = self.values(fold, [[self.fit(method, frozenset({fold}))]])
            probability[folds == fold] = predicted[0]
        write_predictions(oof, _rows(ids.tolist(), folds, probability, header), header)
        stacks = {fold: self.fit(method, frozenset({fold})) for fold in self.folds}
        if found := {fold: each for fold, each in stacks.items() if isinstance(each, Stack)}:
            Stacks(found, self.encoder, self.group).save(oof.parent)
        if test is None:
            return
        frames = []
        with tempfile.TemporaryDirectory() as scratch:
            values = self._read_tests(Path(scratch) / "test.npy")
            for fold, of_fold, extra in zip(self.test_folds, values, self.test_extra, strict=True):
                predicted = self.fit(method, frozenset({fold})).predict(of_fold, extra)
                frames.append(_rows(self.test_ids, fold, predicted, header))
            del values, of_fold  # Windows cannot delete a mapped file
        write_predictions(test, pd.concat(frames), replace(header, split="test"))

    def _score(self, scored: Scored) -> tuple[dict[int, float], float]:
        metric = self.truth.metric
        return score_thresholded(metric, scored) if self.thresholded else score_folds(metric, *scored)

    def _source_scores(self, probability: np.ndarray) -> np.ndarray:
        """Scores (K, T) of a source (N, C) per fold and threshold; T = 1 without thresholds."""
        scored = by_unit(self.truth.table, self.all_rows.rows, probability, self.all_rows.folds)
        if self.thresholded:
            return score_thresholds(self.truth.metric, scored)
        return np.array(list(score_folds(self.truth.metric, *scored)[0].values()))[:, None]

    def _read_tests(self, path: Path) -> np.ndarray:
        """Test predictions (K, M, T, C) float32 of each fold and source, averaged over snapshots, in a mapped file."""
        classes = self.truth.table.classes
        shape = (len(self.test_folds), len(self.sources), len(self.test_ids), len(classes))
        values = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        ids = pd.Index(self.test_ids)
        for source_index, source in enumerate(self.sources):
            assert source.test is not None
            frame = read_predictions(source.test).frame
            cell = np.searchsorted(self.test_folds, frame["fold"]) * len(ids) + ids.get_indexer(frame["id"])
            rows = np.bincount(cell)
            for index, name in enumerate(classes):
                total = np.bincount(cell, weights=frame[name])
                values[:, source_index, :, index] = (total / rows).reshape(len(self.test_folds), len(ids))
        return values


def _rows(ids: Sequence[str], fold: np.ndarray | int, probability: np.ndarray, header: Header) -> pd.DataFrame:
    frame = pd.DataFrame({"id": ids, "fold": fold, "snapshot": "mean", "view": "mean"})
    return pd.concat([frame, pd.DataFrame(probability, columns=header.columns)], axis=1)
