"""Exact search among vectors: the names of images are the identities of the nearest ones.

Vectors of different models cannot be averaged. They are put side by side, which averages their similarities.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from foldwise.data.table import Table
from foldwise.predictions.schema import PredictionsError
from foldwise.predictions.store import Predictions, average_members

BLOCK = 2**24  # similarities in memory at once: 64 MB


class Found(NamedTuple):
    """Names found for Q images, K each, best first.

    Attributes:
        rows: (Q,) indices of the images.
        names: (Q, K) indices of identities; -1 if there are fewer.
        scores: (Q, K) their similarities, -inf if there are fewer.
        rank: (Q,) of the right name among all, from 1; 0 if no image to search among has it.
        own: (Q,) similarity of the right name; -inf if none.
    """

    rows: np.ndarray
    names: np.ndarray
    scores: np.ndarray
    rank: np.ndarray
    own: np.ndarray

    def take(self, which: np.ndarray) -> "Found":
        """Select images by index or mask."""
        return Found(*(values[which] for values in self))


def search(
    queries: np.ndarray,
    gallery: np.ndarray,
    identity: np.ndarray,
    k: int,
    truth: np.ndarray | None = None,
    itself: np.ndarray | None = None,
    centres: bool = False,
) -> Found:
    """Find the k identities most similar to each vector; equal ones in their order.

    Args:
        queries, gallery: (Q, D) and (G, D), of length 1.
        identity: (G,) of the gallery, from 0.
        truth: (Q,) identities of the queries, if known.
        itself: (Q,) index of each query in the gallery, which is left out of its search.
        centres: compare with the mean of an identity's vectors instead of its most similar one.
    """
    order = np.argsort(identity, kind="stable")
    vectors, (present, starts) = gallery[order], np.unique(identity[order], return_index=True)
    sums = np.add.reduceat(vectors, starts) if centres else vectors
    sizes, place = np.diff(starts, append=len(order)), np.argsort(order)
    parts, step = [], max(1, BLOCK // len(vectors))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        query = queries[block]
        each = np.arange(len(query))
        if centres:
            scores = query @ _unit(sums).T
            if itself is not None:
                column = np.searchsorted(present, identity[itself[block]])
                own = (query * _unit(sums[column] - gallery[itself[block]])).sum(axis=1)
                scores[each, column] = np.where(sizes[column] > 1, own, -np.inf)
        else:
            similar = query @ vectors.T
            if itself is not None:
                similar[each, place[itself[block]]] = -np.inf
            scores = np.maximum.reduceat(similar, starts, axis=1)
        parts.append(_best(scores, present, k, None if truth is None else truth[block]))
    names, scores, rank, own = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Found(np.arange(len(queries)), names, scores, rank, own)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def _best(scores: np.ndarray, present: np.ndarray, k: int, truth: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Names, scores, rank and own similarity from the similarity (B, I) with each identity in `present` (I,)."""
    count, each = min(k, scores.shape[1]), np.arange(len(scores))[:, None]
    floor = np.partition(scores, -count, axis=1)[:, -count, None]
    # Above the k-th score all, of those equal to it the first.
    wanted = np.where(scores > floor, 2, scores == floor)
    top = np.sort(np.argsort(-wanted.astype(np.int8), axis=1, kind="stable")[:, :count], axis=1)
    top = np.take_along_axis(top, np.argsort(-scores[each, top], axis=1, kind="stable"), axis=1)
    spare = ((0, 0), (0, k - count))
    best = np.pad(scores[each, top], spare, constant_values=-np.inf)
    names = np.where(np.isfinite(best), np.pad(present[top], spare, constant_values=-1), -1)
    rank, own = np.zeros(len(scores), np.int64), np.full(len(scores), -np.inf, scores.dtype)
    if truth is not None:
        column = np.searchsorted(present, truth).clip(max=len(present) - 1)
        own = np.where(present[column] == truth, scores[each[:, 0], column], -np.inf)
        before = (scores > own[:, None]) | ((scores == own[:, None]) & (np.arange(scores.shape[1]) < column[:, None]))
        rank = np.where(np.isfinite(own), 1 + before.sum(axis=1), 0)
    return names, best, rank, own


def model_vectors(frame: pd.DataFrame, columns: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """Vectors (N, S D) float32 of a fold's models in the order of `ids`: views averaged, S snapshots side by side."""
    parts = [
        _unit(average_members(of_one, columns).set_index("id").loc[ids].to_numpy(np.float32))
        for _, of_one in frame.groupby("snapshot", sort=True)
    ]
    return np.hstack(parts) / np.float32(np.sqrt(len(parts)))


def keep_apart(identity: np.ndarray, folds: np.ndarray) -> bool:
    """Whether no identity (N,) is in two folds (N,)."""
    scored = folds >= 0
    return len(np.unique(np.stack([identity, folds])[:, scored], axis=1).T) == len(np.unique(identity[scored]))


def search_fold(
    vectors: np.ndarray, table: Table, folds: np.ndarray, fold: int, k: int, centres: bool = False
) -> Found:
    """Search a fold's images with the vectors (N, D) of its model: among the other folds, or, if folds keep identities
    apart, among all other images."""
    assert table.target is not None
    identity, rows = table.target[:, 0], np.flatnonzero(folds == fold)
    apart = keep_apart(identity, folds)
    among = np.arange(len(table)) if apart else np.flatnonzero(folds != fold)
    itself = rows if apart else None
    found = search(vectors[rows], vectors[among], identity[among], k, identity[rows], itself, centres)
    return found._replace(rows=rows)


def search_oof(
    predictions: Sequence[Predictions], table: Table, folds: np.ndarray, k: int, centres: bool = False
) -> Found:
    """Search the images of all folds that `predictions` have, out of fold; in the order of the table."""
    columns = predictions[0].columns
    frame = pd.concat([part.frame for part in predictions])
    parts = [
        search_fold(model_vectors(of_fold, columns, table.ids), table, folds, int(fold), k, centres)
        for fold, of_fold in frame.groupby("fold")
    ]
    joined = Found(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    return joined.take(np.argsort(joined.rows))


def search_test(
    oof: Predictions,
    test: Predictions,
    table: Table,
    ids: Sequence[str],
    k: int,
    centres: bool = False,
    folds: Sequence[int] | None = None,
) -> Found:
    """Search test images among the table's, by the mean similarity of each fold's models; `folds` None: all."""
    assert table.target is not None
    sides = []
    for predictions, names in ((test, ids), (oof, table.ids)):
        of_fold = dict(iter(predictions.frame.groupby("fold")))
        chosen = sorted(set(test.frame["fold"])) if folds is None else folds
        if missing := [fold for fold in chosen if fold not in of_fold]:
            raise PredictionsError(predictions.folder, [f"there are no vectors of fold {missing[0]}"])
        sides.append(np.hstack([model_vectors(of_fold[fold], predictions.columns, names) for fold in chosen]))
    queries, gallery = map(_unit, sides)
    return search(queries, gallery, table.target[:, 0], k, centres=centres)
