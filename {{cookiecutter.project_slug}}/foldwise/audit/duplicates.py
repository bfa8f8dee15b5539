"""Find duplicates: equal files, copies of an image, and views of the same scene.

- `exact`: the bytes are equal.
- `copy`: the thumbnails correlate after shifting and scaling. Finds re-encoded, re-lit, resized or slightly cropped
  images.
- `near`: a network's vectors are much more alike than those of their neighbours. Finds neighbouring frames of a video.

The thresholds were chosen on frames of driving videos: docs/benchmarks.md of the template.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from foldwise.audit.descriptors import Descriptors
from foldwise.files import equal_files

COLUMNS = ["id_a", "id_b", "kind", "similarity", "where"]
SAME_FOLD, BETWEEN_FOLDS, TRAIN_AND_TEST = "same fold", "between folds", "train and test"

NEIGHBOURS = 30
SURROUNDINGS = 10  # nearest neighbours left out of an image's surroundings: they may be duplicates themselves
CHECKED = 5  # neighbours per image whose thumbnails are compared
COSINE = 0.8  # of 243 unrelated photographs, 95 % have their nearest neighbour below 0.72
NEAR_MARGIN = 0.3
COPY_CORRELATION = 0.96  # together with COSINE: two handwritten sevens correlate as well as a cropped copy does
SURE_CORRELATION = 0.98
# Standard deviation in grey levels; images below it (sky, a blank page) all look alike and are skipped.
FLAT = 8.0
# Either image of a pair may be cropped by a fifth. A scale off by 5 % lowers the correlation by 0.03 to 0.05.
SCALES = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.11, 1.18, 1.25)


def find_duplicates(
    ids: Sequence[str], files: Sequence[Path], fold: np.ndarray, descriptors: Descriptors
) -> pd.DataFrame:
    """List duplicate pairs with at least one training image, the worst leaks first.

    Args:
        ids, files, descriptors: of N images, the training images first.
        fold: of the M training images, int (M,); the other N - M are test images.

    Returns:
        One row per pair: id_a, id_b, kind (exact, copy, near), similarity (correlation of copies, cosine of near
        duplicates), where (same fold, between folds, train and test). Among many equal files, each is paired once with
        every fold and the test table, not with every other file.
    """
    part = np.concatenate([fold, np.full(len(ids) - len(fold), fold.min(initial=0) - 1)])
    pairs = [(a, b, "exact", 1.0) for a, b in exact_pairs(files, part) if a < len(fold)]
    exact = {(a, b) for a, b, *_ in pairs}
    pairs += [pair for pair in alike_pairs(descriptors, len(fold)) if pair[:2] not in exact]
    frame = pd.DataFrame(pairs, columns=["a", "b", "kind", "similarity"])
    a, b = frame["a"].to_numpy(int), frame["b"].to_numpy(int)
    names = np.asarray(ids, dtype=object)
    frame["id_a"], frame["id_b"] = names[a], names[b]
    where = np.where(part[a] == part[b], SAME_FOLD, BETWEEN_FOLDS)
    where = np.where(b >= len(fold), TRAIN_AND_TEST, where)
    frame["where"] = pd.Categorical(where, [BETWEEN_FOLDS, TRAIN_AND_TEST, SAME_FOLD])
    frame["kind"] = pd.Categorical(frame["kind"], ["exact", "copy", "near"])
    frame = frame.sort_values(["where", "kind", "similarity", "a", "b"], ascending=[True, True, False, True, True])
    return frame[COLUMNS].astype({"where": object, "kind": object}).round({"similarity": 4}).reset_index(drop=True)


def exact_pairs(files: Sequence[Path], part: np.ndarray) -> list[tuple[int, int]]:
    """Pair rows whose files have equal bytes: each row with the first equal one of every `part` (a fold, or test)."""
    pairs = set()
    for members in map(np.array, equal_files(files)):
        firsts = members[np.unique(part[members], return_index=True)[1]]
        pairs |= {(int(min(a, b)), int(max(a, b))) for a in members for b in firsts if a != b}
    return sorted(pairs)


def alike_pairs(descriptors: Descriptors, train: int) -> list[tuple[int, int, str, float]]:
    """Find `copy` and `near` pairs (a, b, kind, similarity) with a < b and a among the first `train` images.

    A near pair needs a high cosine c and a margin over its surroundings, 2 c - r(a) - r(b), where r is an image's mean
    cosine to its neighbours 11 to 30. This is CSLS (Conneau et al. 2018, section 2.3): an image that resembles
    everything has no near duplicates.
    """
    vectors = standardize(descriptors.vectors)
    index, cosine = nearest(vectors, train, NEIGHBOURS)
    if not index.shape[1]:
        return []
    around = cosine[:, min(SURROUNDINGS, index.shape[1] // 3) :].mean(axis=1)
    a = np.repeat(np.arange(len(vectors)), index.shape[1])
    b, cosine = index.ravel(), cosine.ravel()
    closest = np.tile(np.arange(index.shape[1]) < CHECKED, len(vectors))
    flat = descriptors.thumbnails.reshape(len(vectors), -1).std(axis=1) < FLAT
    near = (cosine >= COSINE) & (2 * cosine - around[a] - around[b] >= NEAR_MARGIN) & descriptors.learned
    candidate = (near | closest) & ~flat[a] & ~flat[b]
    frame = pd.DataFrame(
        {"a": np.minimum(a, b), "b": np.maximum(a, b), "cosine": cosine, "near": near, "closest": closest}
    )
    frame = frame[candidate].groupby(["a", "b"], as_index=False).max()
    closest = frame["closest"].to_numpy()
    correlation = np.zeros(len(frame))
    correlation[closest] = _correlations(
        descriptors.thumbnails, frame.loc[closest, "a"].to_numpy(), frame.loc[closest, "b"].to_numpy()
    )
    alike = frame["cosine"].to_numpy() >= COSINE
    copy = (correlation >= SURE_CORRELATION) | ((correlation >= COPY_CORRELATION) & alike)
    frame["kind"] = np.where(copy, "copy", "near")
    frame["similarity"] = np.where(copy, correlation, frame["cosine"])
    found = frame[copy | frame["near"]]
    return list(found[["a", "b", "kind", "similarity"]].itertuples(index=False, name=None))


def standardize(vectors: np.ndarray) -> np.ndarray:
    """Scale the columns of vectors (N, D) to mean 0 and variance 1 (constant ones to 0), then the rows to length 1."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    std = centred.std(axis=0)
    centred = centred / np.where(std > 1e-6 * std.max(initial=0), std, np.inf)
    return (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def nearest(vectors: np.ndarray, train: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest of the first `train` vectors to each vector (N, D) of length 1 or 0, excluding itself.

    Returns index and cosine, (N, min(count, train - 1)) each, nearest first.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(count, train - 1)
    if count < 1:
        return np.empty((len(vectors), 0), np.int64), np.empty((len(vectors), 0), np.float32)
    # For unit vectors, Euclidean distance ranks like the cosine, and scikit-learn computes it in blocks and threads.
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(vectors[:train])
    results = [search.kneighbors()]
    if len(vectors) > train:
        results.append(search.kneighbors(vectors[train:]))
    distance, index = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return index, (1 - distance**2 / 2) * vectors.any(axis=1, keepdims=True)


def aligned_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest normalised correlation of the first thumbnail's centre with any part of the second.

    The centre, three quarters of the side, is tried at all SCALES. 1: equal up to brightness, contrast and cropping.
    """
    size = len(first)
    margin = size // 8
    centre = first[margin : size - margin, margin : size - margin]
    if centre.std() < FLAT / 2:
        return 0.0
    best = 0.0
    for scale in SCALES:
        side = round(len(centre) * scale)
        part = cv2.resize(centre, (side, side), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        scores = cv2.matchTemplate(second, part, cv2.TM_CCOEFF_NORMED)
        best = max(best, float(scores[np.isfinite(scores)].max(initial=0)))
    return min(best, 1.0)


def _correlations(thumbnails: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlate pairs at half size, and at full size if they are close."""
    half = thumbnails.reshape(len(thumbnails), thumbnails.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4)).astype(np.uint8)
    with ThreadPoolExecutor() as pool:  # OpenCV releases the GIL
        result = np.fromiter(pool.map(aligned_correlation, half[a], half[b]), float, len(a))
        close = np.flatnonzero(result >= COPY_CORRELATION - 0.05)  # the one at full size is hardly ever larger
        result[close] = np.fromiter(
            pool.map(aligned_correlation, thumbnails[a[close]], thumbnails[b[close]]), float, len(close)
        )
    return result
