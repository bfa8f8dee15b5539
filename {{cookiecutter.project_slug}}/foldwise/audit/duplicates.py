"""Find images that are in the data more than once: equal files, copies of one image, and views of one scene.

`exact`: the bytes are equal. `copy`: after shifting and scaling, the thumbnails correlate; re-encoded, re-lit,
resized and slightly cropped images. `near`: a network finds them much more alike than either is to its surroundings;
neighbouring frames of a video.

The thresholds are measured on 4404 tiles (120 x 120) of three driving videos, 367 frames a second apart, in five
random folds of whole frames. A frame counts as found when a tile of it pairs with a tile of a neighbouring frame in
another fold; any pair across two videos is a false alarm:

                                           frames found    frames with a false alarm
    near: cosine 0.8  and margin 0.25         97.8 %          2
          cosine 0.8  and margin 0.30         95.8 %          0    (here)
          cosine 0.85 and margin 0.33         86.5 %          0
          cosine 0.973 alone                  29.2 %          0    (skies, roads and trees are alike everywhere)
    copy: correlation 0.96                    46.1 %          2    (candidates from pixels alone)
          0.96 and cosine 0.8, or 0.98        41.0 %          0    (here)
          correlation 0.98                    31.5 %          0

With `near` and `copy` together, 96.6 % and none. Of 100 copies planted among 243 photographs, pixels alone find
all that were re-encoded, re-lit, made grey or shrunk, 99 shifted by a twelfth, 85 cropped by a tenth, 17 by a fifth
and none flipped; with a network it is 100, 100, 88 and 89. Of the photographs themselves, pixels flag none and the
network one pair, two of one photographer in the same white frame. Images of little content remain doubtful: of 1597
handwritten digits of 8 x 8 pixels, 7 pairs are flagged (without the cosine, 75).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from foldwise.audit.descriptors import Descriptors
from foldwise.files import sha256_file

COLUMNS = ["id_a", "id_b", "kind", "similarity", "where"]
SAME_FOLD, BETWEEN_FOLDS, TRAIN_AND_TEST = "same fold", "between folds", "train and test"

NEIGHBOURS = 30
SURROUNDINGS = 10  # the nearest ones are left out of an image's surroundings: they may be duplicates themselves
CHECKED = 5  # candidates an image whose thumbnails are compared
COSINE = 0.8  # of 243 unrelated photographs, 95 % have their nearest neighbour below 0.72
NEAR_MARGIN = 0.3
COPY_CORRELATION = 0.96  # together with COSINE: two handwritten sevens correlate as well as a cropped copy does
SURE_CORRELATION = 0.98
# Grey levels: of what hardly varies (sky, a blank page) every two look alike, so that nothing can be said.
FLAT = 8.0
# From a copy that was cropped by a fifth to one whose original was; 5 % beside the right one costs 0.03 to 0.05.
SCALES = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.11, 1.18, 1.25)


def find_duplicates(
    ids: Sequence[str], files: Sequence[Path], fold: np.ndarray, descriptors: Descriptors
) -> pd.DataFrame:
    """List the pairs of duplicates that have at least one training image, the worst leaks first.

    Args:
        ids: of the N images, those of the training table first; files and descriptors likewise.
        fold: int (M,), of the M training images; the other N - M are the test table's.

    Returns:
        A row a pair with the columns id_a, id_b, kind (exact, copy, near), similarity (of copies the correlation,
        of near ones the cosine) and where (same fold, between folds, train and test). Of many equal files each is
        paired once with each fold and the test table, not with every other one.
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
    """Pairs of rows whose files have the same bytes: each with the first such row of every `part` (a fold, test)."""
    sizes = pd.Series([file.stat().st_size for file in files])
    rows = np.flatnonzero(sizes.duplicated(keep=False)).tolist()  # no other file needs to be read
    digests = {file: sha256_file(file) for file in {files[row] for row in rows}}
    pairs = set()
    for _, same in pd.Series(rows, index=[digests[files[row]] for row in rows], dtype=int).groupby(level=0):
        members = same.to_numpy()
        firsts = members[np.unique(part[members], return_index=True)[1]]
        pairs |= {(int(min(a, b)), int(max(a, b))) for a in members for b in firsts if a != b}
    return sorted(pairs)


def alike_pairs(descriptors: Descriptors, train: int) -> list[tuple[int, int, str, float]]:
    """Pairs (a, b, kind, similarity) of the kinds copy and near, a < b, a among the first `train` images.

    A pair is near by the cosine c of its vectors and by its margin over its surroundings, 2 c - r(a) - r(b), where
    r is an image's mean cosine to its neighbours in ranks 11 to 30: the criterion CSLS (Conneau et al. 2018,
    section 2.3), in which images that resemble everything are near nothing.
    """
    vectors = standardize(descriptors.vectors)
    index, cosine = nearest(vectors, train, NEIGHBOURS)
    if not index.shape[1]:
        return []
    around = cosine[:, min(SURROUNDINGS, index.shape[1] // 3) :].mean(axis=1)
    a = np.repeat(np.arange(len(vectors)), index.shape[1])
    b, cosine = index.ravel(), cosine.ravel()
    candidate = np.tile(np.arange(index.shape[1]) < CHECKED, len(vectors))
    flat = descriptors.thumbnails.reshape(len(vectors), -1).std(axis=1) < FLAT
    near = (cosine >= COSINE) & (2 * cosine - around[a] - around[b] >= NEAR_MARGIN) & descriptors.learned
    kept = (near | candidate) & ~flat[a] & ~flat[b]
    frame = pd.DataFrame(
        {"a": np.minimum(a, b), "b": np.maximum(a, b), "cosine": cosine, "near": near, "at": candidate}
    )
    frame = frame[kept].groupby(["a", "b"], as_index=False).max()
    at = frame["at"].to_numpy()
    correlation = np.zeros(len(frame))
    correlation[at] = _correlations(
        descriptors.thumbnails, frame.loc[at, "a"].to_numpy(), frame.loc[at, "b"].to_numpy()
    )
    alike = frame["cosine"].to_numpy() >= COSINE
    copy = (correlation >= SURE_CORRELATION) | ((correlation >= COPY_CORRELATION) & alike)
    frame["kind"] = np.where(copy, "copy", "near")
    frame["similarity"] = np.where(copy, correlation, frame["cosine"])
    found = frame[copy | frame["near"]]
    return list(found[["a", "b", "kind", "similarity"]].itertuples(index=False, name=None))


def standardize(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) with each column's mean 0 and variance 1, then of length 1; constant columns become 0."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    std = centred.std(axis=0)
    centred = centred / np.where(std > 1e-6 * std.max(initial=0), std, np.inf)
    return (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def nearest(vectors: np.ndarray, train: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The K = min(count, train - 1) nearest of the first `train` vectors to each vector but itself, nearest first.

    Args:
        vectors: (N, D), each of length 1 or 0.

    Returns:
        index (N, K) and cosine (N, K).
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(count, train - 1)
    if count < 1:
        return np.empty((len(vectors), 0), np.int64), np.empty((len(vectors), 0), np.float32)
    # Of vectors of length 1, by Euclidean distance: scikit-learn searches it in blocks and threads.
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(vectors[:train])
    found = [search.kneighbors()]
    if len(vectors) > train:
        found.append(search.kneighbors(vectors[train:]))
    distance, index = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return index, (1 - distance**2 / 2) * vectors.any(axis=1, keepdims=True)


def aligned_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """The largest normalised correlation of the centre of one thumbnail, uint8 (S, S), with any part of another.

    The centre, three quarters of the side, is tried at the SCALES. 1: equal up to brightness, contrast and cropping.
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
    """The aligned correlations of pairs; those that differ at half the size are not refined."""
    half = thumbnails.reshape(len(thumbnails), thumbnails.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4)).astype(np.uint8)
    with ThreadPoolExecutor() as pool:  # OpenCV computes outside of Python's lock
        result = np.fromiter(pool.map(aligned_correlation, half[a], half[b]), float, len(a))
        close = np.flatnonzero(result >= COPY_CORRELATION - 0.05)  # the finer one is hardly ever larger
        result[close] = np.fromiter(
            pool.map(aligned_correlation, thumbnails[a[close]], thumbnails[b[close]]), float, len(close)
        )
    return result
