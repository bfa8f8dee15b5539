"""Split rows into folds with one algorithm: plain, stratified, multi-label, grouped, and grouped multi-label.

It assigns blocks: groups, or single rows without groups. As in iterative stratification (Sechidis, Tsoumakas and
Vlahavas 2011), the class with the fewest rows left goes first: a frequent class can still be balanced later, a rare one
cannot. Each block goes to the fold with the fewest rows of the block's classes.

Ties are ordered by a hash of seed and name, so the folds do not depend on the order of the rows.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from foldwise.errors import Refusal

OPEN = -2  # a block without a fold yet


def make_folds(
    ids: Sequence[str],
    n_folds: int,
    target: np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    known: Mapping[str, int] | None = None,
) -> np.ndarray:
    """Assign every row to a fold, 0 to n_folds - 1: int64 (N,).

    Without groups and known folds, fold sizes differ by at most one.

    Args:
        target: class memberships (N, C), 0 or 1; None balances sizes only.
        groups: names (N,); groups are never split. The ids of grouped rows have no effect.
        known: ids that keep their fold; new rows of their groups get the same, all others balance the folds. A known
            fold of -1 (always train) is kept and not balanced.
    """
    row_ids = np.asarray(ids, dtype=object)
    counts = np.zeros((len(ids), 0)) if target is None else np.asarray(target, dtype=np.float64)
    if n_folds < 2:
        raise Refusal(f"{n_folds} folds: there must be at least 2")
    if counts.ndim != 2 or len(counts) != len(ids) or (groups is not None and len(groups) != len(ids)):
        raise Refusal("ids, target and groups must have one entry per row, and target one column per class")
    block_of_row, names = pd.factorize(row_ids if groups is None else np.asarray(groups, dtype=object))
    if groups is None and len(names) < len(ids):
        raise Refusal("the ids are not unique")
    if (block_of_row < 0).any():
        raise Refusal("a group is missing")
    if len(names) < n_folds:
        raise Refusal(
            f"{n_folds} folds need at least as many {'rows' if groups is None else 'groups'}; there are {len(names)}"
        )
    # A block's size is one more class, which every row has.
    counts = np.hstack([counts, np.ones((len(ids), 1))])
    if groups is not None:
        # Sums of whole numbers are exact, so the order of the rows does not matter.
        counts = np.stack([np.bincount(block_of_row, column, len(names)) for column in counts.T], axis=1)
    fold = _known_folds(known or {}, row_ids, block_of_row, names, n_folds)
    _assign(counts, fold, _hashes(names, seed), n_folds)
    return fold[block_of_row]


def _hashes(names: np.ndarray, seed: int) -> np.ndarray:
    """Hash each name to order blocks that are otherwise equal; the same on every machine."""
    digests = b"".join(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _known_folds(
    known: Mapping[str, int], ids: np.ndarray, block_of_row: np.ndarray, names: np.ndarray, n_folds: int
) -> np.ndarray:
    """Return the known fold of each block, else OPEN."""
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


def _assign(counts: np.ndarray, fold: np.ndarray, hashes: np.ndarray, n_folds: int) -> None:
    """Assign the OPEN blocks in place; `counts` is (blocks, classes + 1), block sizes last."""
    balanced = fold != -1
    totals = counts[balanced].sum(axis=0)
    held = np.stack([counts[fold == number].sum(axis=0) for number in range(n_folds)])
    share = np.ceil(totals / n_folds)
    single = bool((counts[:, -1] == 1).all())
    # Derivative of the imbalance, the sum over classes and folds of (held / total)^2.
    costs = counts / np.maximum(totals, 1) ** 2

    left = counts[fold == OPEN].sum(axis=0)
    columns = counts.T.copy()
    while (waiting := np.flatnonzero(fold == OPEN)).size:
        present = np.flatnonzero(left > 0)
        rarest = present[np.argmin(left[present])]
        blocks = waiting[columns[rarest, waiting] > 0]
        # Large blocks first; small ones fill the gaps.
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
