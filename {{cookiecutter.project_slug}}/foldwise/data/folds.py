"""Folds: one algorithm for plain, stratified, multi-label, grouped, and grouped multi-label tables.

What is placed is a unit: a group, or a single row where there are no groups. A unit carries its rows per class.
Following iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011), the class with the fewest rows left
is placed first, since a frequent class can still be evened out afterwards and a rare one cannot. Each unit goes
to the fold that holds least of what the unit brings.

The order in which units are placed comes from a hash of seed and name, never from their position, so that the
folds do not depend on the order of the rows.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.problems import some
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.files import write_atomic


def make_folds(
    ids: Sequence[str],
    n_folds: int,
    target: np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Assign every row to one of the folds 0..n_folds-1.

    Args:
        ids: unique names of the rows.
        target: (N, C) class memberships, 0 or 1; None balances sizes only.
        groups: (N,) names; a group is never split. Beside a group's name only its rows' targets count.
        seed: another seed gives other folds of the same quality.

    Returns:
        int64 (N,). Without groups the fold sizes differ by at most one.

    Raises:
        Refusal: fewer than two folds, more folds than rows or groups, repeated ids, lengths that differ.
    """
    return extend_folds({}, ids, n_folds, target, groups, seed)


def extend_folds(
    known: Mapping[str, int],
    ids: Sequence[str],
    n_folds: int,
    target: np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Like `make_folds`, but the ids in `known` keep their folds and the others join them.

    New rows of a known group go to its fold; the rest evens out what is there. A known fold of -1 (always train)
    is kept and not balanced.

    Raises:
        Refusal: as `make_folds`; or a group has known rows in several folds, or a known fold is not in range.
    """
    names_of_rows = np.asarray(ids, dtype=object)
    counts = np.zeros((len(ids), 0)) if target is None else np.asarray(target, dtype=np.float64)
    if n_folds < 2:
        raise Refusal(f"{n_folds} folds: there must be at least 2")
    if counts.ndim != 2 or len(counts) != len(ids) or (groups is not None and len(groups) != len(ids)):
        raise Refusal("ids, target and groups must have one entry a row, and target one column a class")
    unit_of_row, names = pd.factorize(names_of_rows if groups is None else np.asarray(groups, dtype=object))
    if groups is None and len(names) < len(ids):
        raise Refusal("the ids are not unique")
    if (unit_of_row < 0).any():
        raise Refusal("a group is missing")
    if len(names) < n_folds:
        raise Refusal(
            f"{n_folds} folds need at least as many {'rows' if groups is None else 'groups'}; there are {len(names)}"
        )

    # The size of a unit is one more class, the most frequent one.
    counts = np.hstack([counts, np.ones((len(ids), 1))])
    if groups is not None:
        # bincount adds in the order of the rows; whole numbers have no rounding that could depend on it.
        counts = np.stack([np.bincount(unit_of_row, column, len(names)) for column in counts.T], axis=1)
    fold = _known_folds(known, names_of_rows, unit_of_row, names, n_folds)
    _place(counts, fold, _hashes(names, seed), n_folds)
    return fold[unit_of_row]


def read_folds(path: Path | str) -> dict[str, int]:
    """Read a `folds.csv` (`id,fold`).

    Raises:
        Refusal: it is not such a file, an id is repeated, or a fold is not a whole number of -1 or more.
    """
    try:
        frame = pd.read_csv(path, dtype=str, na_filter=False)
    except ValueError as error:  # pandas' own are, and UnicodeDecodeError
        raise Refusal(f"{path} cannot be read as CSV ({str(error).strip()})") from error
    if list(frame.columns) != ["id", "fold"]:
        raise Refusal(f"{path} has the columns {', '.join(frame.columns)}; folds are a CSV with id,fold")
    bad = ~frame["fold"].str.fullmatch(r"-1|\d+") | frame["id"].duplicated(keep=False)
    if bad.any():
        lines = ", ".join(str(row + 2) for row in np.flatnonzero(bad)[:20])
        raise Refusal(f"{path} has a repeated id or a fold that is not a whole number of -1 or more: lines {lines}")
    return dict(zip(frame["id"].tolist(), frame["fold"].astype(int).tolist(), strict=True))


def write_folds(path: Path | str, ids: Sequence[str], folds: Sequence[int]) -> None:
    """Write a `folds.csv`, sorted by id so that versions compare well."""
    frame = pd.DataFrame({"id": list(ids), "fold": np.asarray(folds, dtype=int)}).sort_values("id")
    with write_atomic(Path(path)) as temporary:
        frame.to_csv(temporary, index=False)


def folds_hash(folds: Mapping[str, int]) -> str:
    """The name of these folds: 16 hexadecimal digits of SHA-256 over the sorted lines `id,fold`."""
    lines = sorted(f"{name},{fold}" for name, fold in folds.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def table_folds(table: Table, data: Mapping[str, Any]) -> dict[str, int]:
    """The fold of each id of a table, -1 for rows that are never scored: its own column, or folds.csv.

    Args:
        data: the `data` part of the config that the table was read by.

    Raises:
        Refusal: there is no folds.csv, or it lacks rows.
    """
    if "fold" in table.frame:
        return dict(zip(table.ids, table.frame["fold"].tolist(), strict=True))
    path, command = Path(data["prepared"]) / "folds.csv", f"python prepare.py --data {data['name']}"
    if not path.exists():
        raise Refusal(f"{path} does not exist; make it with: {command}")
    stored = read_folds(path)
    missing = [id for id in table.ids if id not in stored]
    if missing:
        raise Refusal(f"{len(missing)} rows have no fold in {path}: {some(missing)}; {command} adds them")
    return {id: stored[id] for id in table.ids}


def _hashes(names: np.ndarray, seed: int) -> np.ndarray:
    """A number a name, the same on every machine; it orders units that are otherwise alike."""
    prefix = f"{seed}:"
    digests = b"".join(hashlib.blake2b(f"{prefix}{name}".encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _known_folds(
    known: Mapping[str, int], ids: np.ndarray, unit_of_row: np.ndarray, names: np.ndarray, n_folds: int
) -> np.ndarray:
    """The fold of each unit: what is known, else -2."""
    fold = np.full(len(names), -2, dtype=np.int64)
    if not known:
        return fold
    row_fold = np.array([known.get(name, -2) for name in ids], dtype=np.int64)
    if row_fold.max() >= n_folds:
        raise Refusal(f"the known folds go up to {row_fold.max()}, but there are only {n_folds} folds")
    rows = np.flatnonzero(row_fold > -2)
    fold[unit_of_row[rows]] = row_fold[rows]
    split = np.unique(unit_of_row[rows[fold[unit_of_row[rows]] != row_fold[rows]]])
    if len(split):
        raise Refusal(f"the known folds split groups: {', '.join(str(name) for name in names[split][:20])}")
    return fold


def _place(counts: np.ndarray, fold: np.ndarray, hashes: np.ndarray, n_folds: int) -> None:
    """Give each unit whose `fold` is -2 a fold, in place; `counts` is (units, classes + 1), the last the size."""
    balanced = fold != -1
    totals = counts[balanced].sum(axis=0)
    held = np.zeros((n_folds, counts.shape[1]))
    for number in range(n_folds):
        held[number] = counts[fold == number].sum(axis=0)
    share = np.ceil(totals / n_folds)
    single = bool((counts[:, -1] == 1).all())
    # How far a unit of these counts moves the folds apart, in relative terms: the derivative of
    # sum over classes and folds of (held / total)^2.
    costs = counts / np.maximum(totals, 1) ** 2

    left = counts[fold == -2].sum(axis=0)
    columns = counts.T.copy()
    while (waiting := np.flatnonzero(fold == -2)).size:
        present = np.flatnonzero(left > 0)
        rarest = present[np.argmin(left[present])]
        units = waiting[columns[rarest, waiting] > 0]
        # Large ones first: the small ones fill up what they leave.
        units = units[np.lexsort((hashes[units], -counts[units, -1], -counts[units, rarest]))]
        for unit in units:
            open_to = held[:, -1] + counts[unit, -1] <= share[-1]
            if single and (held[:, -1] < totals[-1] // n_folds).any():
                open_to = held[:, -1] < totals[-1] // n_folds
            even = open_to & (held[:, rarest] + counts[unit, rarest] <= share[rarest])
            candidates = even if even.any() else open_to
            cost = held @ costs[unit]
            if candidates.any():
                cost[~candidates] = np.inf
            chosen = int(np.argmin(cost))
            fold[unit] = chosen
            held[chosen] += counts[unit]
        left = left - counts[units].sum(axis=0)
