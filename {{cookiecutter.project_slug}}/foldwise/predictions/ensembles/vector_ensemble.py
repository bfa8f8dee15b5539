"""Ensembles of vectors: put side by side, scaled by the root of the weights, which averages the similarities."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.predictions.ensembles.blending import Blend, Fitted, Method
from foldwise.predictions.ensembles.joining import test_folds
from foldwise.predictions.ensembles.map_ensemble import MapEnsemble, MapExamples
from foldwise.predictions.schema import Header
from foldwise.predictions.search import model_vectors, search_fold
from foldwise.predictions.store import Predictions, write_predictions


class VectorEnsemble(MapEnsemble):
    """Ensemble of vectors in memory; the values of a fold are the ranks of its images."""

    def values(self, fold: int, methods: Sequence[Sequence[Fitted]]) -> list[np.ndarray]:
        return [np.stack([self._ranks(fold, fitted) for fitted in each]) for each in methods]

    def write(self, method: Method, oof: Path, test: Path | None, header: Header) -> None:
        self._write_vectors(method, oof, header, self.oof, self.folds)
        if test is not None:
            self._write_vectors(method, test, replace(header, split="test"), self.tests, test_folds(self.tests[0]))

    def _write_vectors(
        self, method: Method, folder: Path, header: Header, sources: Sequence[Predictions], folds: Sequence[int]
    ) -> None:
        ids = sources[0].frame["id"].drop_duplicates().tolist()
        values = np.concatenate([_join(sources, fold, self.fit(method, frozenset({fold})), ids) for fold in folds])
        columns = [f"e{number}" for number in range(values.shape[1])]
        frame = pd.DataFrame({"id": ids * len(folds), "fold": np.repeat(folds, len(ids))})
        frame = frame.assign(snapshot="mean", view="mean").join(pd.DataFrame(values, columns=columns))
        write_predictions(folder, frame, replace(header, columns=columns))

    def _measure(self, fold: int) -> MapExamples:
        count = len(self.names)
        ranks = np.stack([self._ranks(fold, Blend(weights)) for weights in np.eye(count)])
        hits = (ranks == 1)[:, :, None].astype(np.float32)
        return MapExamples(self.truth.metric, ranks, hits, np.ones_like(hits[0]))

    def _ranks(self, fold: int, fitted: Fitted) -> np.ndarray:
        table, folds = self.truth.table, self.truth.folds
        return search_fold(_join(self.oof, fold, fitted, table.ids), table, folds, fold, 1).rank


def _join(sources: Sequence[Predictions], fold: int, fitted: Fitted, ids: Sequence[str]) -> np.ndarray:
    """Vectors (N, D) of a fold, the sources' side by side."""
    assert fitted.weights is not None
    parts = [
        model_vectors(each.frame[each.frame["fold"] == fold], each.columns, ids) * np.float32(np.sqrt(weight))
        for each, weight in zip(sources, fitted.weights, strict=True)
    ]
    return np.hstack(parts)
