"""The answer with the largest expected F-beta of a row, given the probability of each label.

F-beta of one row is (1 + b²) tp / (predicted + b² true). Its expectation over the unknown true labels needs of their
distribution only P(label i and s labels in all); the best answer of k labels then consists of the k labels with the
largest  sum over s of P(i, s) (1 + b²) / (k + b² s),  and k is found by trying all (Dembczyński et al. 2011, "An exact
algorithm for F-measure maximization"). With independent labels that is a prefix of the labels sorted by probability
(Jansche 2007; Ye et al. 2012), and P(i, s) follows from the Poisson-binomial distribution of the count of the others.

Labels that exclude each other are one draw and not several: a group adds at most one to the count. A label that
stands alone excludes all others: either it is the only true one, or all true ones are of the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 1_000_000  # numbers in the largest array of a block of rows: what fits in a processor's cache, or nearly


class Group(NamedTuple):
    """Labels of which at most one is true, or with `always` exactly one; `labels` are column numbers."""

    labels: tuple[int, ...]
    always: bool


def best_answers(
    probability: np.ndarray, beta: float, groups: Sequence[Group] = (), empty: float = 1.0, alone: Sequence[int] = ()
) -> np.ndarray:
    """The answers of largest expected F-beta, exact; O(C³) a row, all rows at once.

    Args:
        probability: (N, C), P(label) of each row. In a group they are divided by their sum where that is above 1, or
            where one label is always true: they are taken as the distribution of the one draw.
        beta: above 1, a missed label costs more than one too many.
        groups: labels that exclude each other; the others are independent given the picture.
        empty: what an empty answer scores where no label is true.
        alone: column numbers of labels that are never true together with another, of the same group or not.

    Returns:
        (N, C) bool. Between equally good answers, the shorter one.
    """
    rows = max(1, BLOCK // probability.shape[1] ** 2)
    blocks = [
        _best_block(probability[start : start + rows].T.astype(np.float64), beta, groups, empty, alone)
        for start in range(0, len(probability), rows)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(probability.shape, bool)


def find_exclusive(target: np.ndarray) -> list[Group]:
    """Groups of two or more labels of which every row of the target (N, C) has exactly one.

    It is an exact cover of the rows by labels, searched by always taking the row with the fewest labels left to cover
    it (Knuth 2000, algorithm X). Labels that merely never meet, such as two rare ones, are no group.
    """
    rows = np.unique(np.asarray(target, bool), axis=0)
    together = rows.T.astype(np.float64) @ rows > 0
    groups: list[Group] = []
    free = np.logical_and(rows.any(axis=0), ~rows.all(axis=0))
    while labels := _cover(rows, together, free):
        groups.append(Group(tuple(sorted(labels)), True))
        free[labels] = False
    return groups


def find_alone(target: np.ndarray) -> list[int]:
    """Labels that are never true together with another in the target (N, C), and in more rows than by accident.

    By accident: if rows with the label had no further one as often as the others have at most one, so many rows would
    all lack it with a chance below 1 in 1,000.
    """
    rows = np.asarray(target, bool)
    counts = rows.sum(axis=1)
    found = []
    for label, own in enumerate(rows.T):
        if own.any() and not own.all() and (counts[own] == 1).all() and (counts[~own] <= 1).mean() ** own.sum() < 1e-3:
            found.append(label)
    return found


def _cover(rows: np.ndarray, together: np.ndarray, free: np.ndarray) -> list[int]:
    """Labels out of the `free` ones that cover every row exactly once; empty where there are none."""
    if not len(rows):
        return []
    choices = (rows & free).sum(axis=1)
    for label in np.flatnonzero(rows[choices.argmin()] & free):
        uncovered = rows[~rows[:, label]]
        if not len(uncovered):
            return [int(label)]
        if further := _cover(uncovered, together, free & ~together[label]):
            return [int(label), *further]
    return []


def _best_block(
    probability: np.ndarray, beta: float, groups: Sequence[Group], empty: float, alone: Sequence[int]
) -> np.ndarray:
    """(N, C) answers to (C, N) probabilities: rows come last, so that every step is over contiguous memory."""
    classes, _ = probability.shape
    _divide(probability, groups)
    single = probability[list(alone)]
    single /= np.maximum(single.sum(axis=0), 1)
    rest = 1 - single.sum(axis=0)  # the chance that none of those is true; what follows is given that
    if len(single):
        probability[list(alone)] = 0
        probability = np.minimum(np.divide(probability, rest, out=np.zeros_like(probability), where=rest > 0), 1)
        groups = [Group(tuple(label for label in group.labels if label not in alone), group.always) for group in groups]
        groups = [group for group in groups if group.labels]
        _divide(probability, groups)
    taken = {*alone, *(label for group in groups for label in group.labels)}
    draws = [group.labels for group in groups] + [(label,) for label in range(classes) if label not in taken]
    chance = np.stack([probability[list(labels)].sum(axis=0) for labels in draws])  # that the draw gives a label at all
    draw_of = np.zeros(classes, int)
    for number, labels in enumerate(draws):
        draw_of[list(labels)] = number

    counts = _count_distribution(chance)
    sizes = np.arange(1, classes + 1)
    # A label of the draw g is true together with s - 1 others, of the other draws.
    weight = (1 + beta**2) / (sizes[:, None] + beta**2 * np.arange(1, len(draws) + 1))  # (sizes, s)
    value = (weight @ _without_each(counts, chance))[draw_of] * (probability * rest)[:, None]  # (C, sizes, N)
    value[list(alone)] = single[:, None] * ((1 + beta**2) / (sizes + beta**2))[:, None]
    expected = np.empty((classes + 1, probability.shape[1]))
    expected[0] = empty * counts[0] * rest
    ranked = np.sort(value, axis=0)[::-1]
    for size in sizes:
        expected[size] = ranked[:size, size - 1].sum(axis=0)
    best = expected.argmax(axis=0)
    of_best = np.take_along_axis(value, np.maximum(best - 1, 0)[None, None], axis=1)[:, 0]
    order = np.argsort(-of_best, axis=0, kind="stable")
    answer = np.zeros(probability.shape, bool)
    np.put_along_axis(answer, order, np.arange(classes)[:, None] < best, axis=0)
    return answer.T


def _divide(probability: np.ndarray, groups: Sequence[Group]) -> None:
    """Make the probabilities (C, N) of each group those of one draw, in place."""
    for labels, always in groups:
        columns = list(labels)
        total = probability[columns].sum(axis=0)
        share = np.divide(
            probability[columns], total, out=np.full((len(columns), len(total)), 1 / len(columns)), where=total > 0
        )
        probability[columns] = share * (1 if always else np.minimum(total, 1))


def _count_distribution(chance: np.ndarray) -> np.ndarray:
    """(G + 1, N): P(s of the G independent draws give a label), of their chances (G, N)."""
    counts = np.zeros((len(chance) + 1, chance.shape[1]))
    counts[0] = 1
    for number, p in enumerate(chance, start=1):
        counts[1 : number + 1] = counts[1 : number + 1] * (1 - p) + counts[:number] * p
        counts[0] *= 1 - p
    return counts


def _without_each(counts: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """(G, G, N): the distribution of the count without draw g, for each g.

    A draw is taken out by running the recurrence backwards. From below that divides by 1 - p and from above by p; the
    larger of the two keeps rounding errors from growing.
    """
    low = chance < 0.5
    small = np.where(low, chance, 1 - chance)
    others = np.empty((len(chance), *chance.shape))
    for s in range(len(chance)):
        value = np.where(low, counts[s], counts[len(chance) - s])
        if s:
            value -= small * others[:, s - 1]
        others[:, s] = value / (1 - small)
    return np.where(low[:, None], others, others[:, ::-1])
