"""Split rows into folds: plain, stratified, multi-label, grouped, and grouped multi-label, all by one algorithm.

What is placed is a block: a group, or a single row where there are no groups. A block carries its rows per class.
Following iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011), the class with the fewest rows left
is placed first, since a frequent class can still be evened out afterwards and a rare one cannot. Each block goes
to the fold that holds least of what the block brings.

The order in which blocks are placed comes from a hash of seed and name, never from their position, so that the
folds do not depend on the order of the rows.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from foldwise.errors import Refusal

OPEN = -2  # a block that has no fold yet


def make_folds(
    ids: Sequence[str],
    n_folds: int,
    target: np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    known: Mapping[str, int] | None = None,
) -> np.ndarray:
    """Assign every row to one of the folds 0..n_folds-1.

    Args:
        ids: unique names of the rows.
        target: (N, C) class memberships, 0 or 1; None balances sizes only.
        groups: (N,) names; a group is never split. Beside a group's name only its rows' targets count.
        seed: another seed gives other folds of the same quality.
        known: ids that keep their folds, which new rows of their groups join; the rest evens out what is there. A
            known fold of -1 (always train) is kept and not balanced.

    Returns:
        int64 (N,). Without groups and known folds the fold sizes differ by at most one.

    Raises:
        Refusal: fewer than two folds, more folds than rows or groups, repeated ids, lengths that differ; known folds
            that split a group or are not in range.
    """
    names_of_rows = np.asarray(ids, dtype=object)
    counts = np.zeros((len(ids), 0)) if target is None else np.asarray(target, dtype=np.float64)
    if n_folds < 2:
        raise Refusal(f"{n_folds} folds: there must be at least 2")
    if counts.ndim != 2 or len(counts) != len(ids) or (groups is not None and len(groups) != len(ids)):
        raise Refusal("ids, target and groups must have one entry a row, and target one column a class")
    block_of_row, names = pd.factorize(names_of_rows if groups is None else np.asarray(groups, dtype=object))
    if groups is None and len(names) < len(ids):
        raise Refusal("the ids are not unique")
    if (block_of_row < 0).any():
        raise Refusal("a group is missing")
    if len(names) < n_folds:
        raise Refusal(
            f"{n_folds} folds need at least as many {'rows' if groups is None else 'groups'}; there are {len(names)}"
        )
    # The size of a block is one more class, the most frequent one.
    counts = np.hstack([counts, np.ones((len(ids), 1))])
    if groups is not None:
        # bincount adds in the order of the rows; whole numbers have no rounding that could depend on it.
        counts = np.stack([np.bincount(block_of_row, column, len(names)) for column in counts.T], axis=1)
    fold = _known_folds(known or {}, names_of_rows, block_of_row, names, n_folds)
    _place(counts, fold, _hashes(names, seed), n_folds)
    return fold[block_of_row]


def _hashes(names: np.ndarray, seed: int) -> np.ndarray:
    """A number a name, the same on every machine; it orders blocks that are otherwise alike."""
    digests = b"".join(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _known_folds(
    known: Mapping[str, int], ids: np.ndarray, block_of_row: np.ndarray, names: np.ndarray, n_folds: int
) -> np.ndarray:
    """The fold of each block: what is known, else OPEN."""
    fold = np.full(len(names), OPEN, dtype=np.int64)
    row_fold = np.array([known.get(name, OPEN) for name in ids], dtype=np.int64)
    if row_fold.max() >= n_folds:
        raise Refusal(f"the known folds go up to {row_fold.max()}, but there are only {n_folds} folds")
    rows = np.flatnonzero(row_fold > OPEN)
    fold[block_of_row[rows]] = row_fold[rows]
    split = np.unique(block_of_row[rows[fold[block_of_row[rows]] != row_fold[rows]]])
    if len(split):
        raise Refusal(f"the known folds split groups: {', '.join(str(name) for name in names[split][:20])}")
    return fold


def _place(counts: np.ndarray, fold: np.ndarray, hashes: np.ndarray, n_folds: int) -> None:
    """Give each block that is OPEN a fold, in place; `counts` is (blocks, classes + 1), the last the size."""
    balanced = fold != -1
    totals = counts[balanced].sum(axis=0)
    held = np.stack([counts[fold == number].sum(axis=0) for number in range(n_folds)])
    share = np.ceil(totals / n_folds)
    single = bool((counts[:, -1] == 1).all())
    # How far a block of these counts moves the folds apart, in relative terms: the derivative of
    # sum over classes and folds of (held / total)^2.
    costs = counts / np.maximum(totals, 1) ** 2

    left = counts[fold == OPEN].sum(axis=0)
    columns = counts.T.copy()
    while (waiting := np.flatnonzero(fold == OPEN)).size:
        present = np.flatnonzero(left > 0)
        rarest = present[np.argmin(left[present])]
        blocks = waiting[columns[rarest, waiting] > 0]
        # Large ones first: the small ones fill up what they leave.
        blocks = blocks[np.lexsort((hashes[blocks], -counts[blocks, -1], -counts[blocks, rarest]))]
        for block in blocks:
            open_to = held[:, -1] + counts[block, -1] <= share[-1]
            if single and (held[:, -1] < totals[-1] // n_folds).any():
                open_to = held[:, -1] < totals[-1] // n_folds
            even = open_to & (held[:, rarest] + counts[block, rarest] <= share[rarest])
            candidates = even if even.any() else open_to
            cost = held @ costs[block]
            if candidates.any():
                cost[~candidates] = np.inf
            chosen = int(np.argmin(cost))
            fold[block] = chosen
            held[chosen] += counts[block]
        left = left - counts[blocks].sum(axis=0)
