"""Predict the set of labels with the largest expected F-beta of a row, given the probability of each label.

F-beta of one row is (1 + b²) tp / (predicted + b² true). Its expectation over the unknown true labels depends only on
P(i, s), the probability that label i is true and s labels are true in total. The best set of k labels has the k largest
values of  sum over s of P(i, s) (1 + b²) / (k + b² s),  and all k are tried (Dembczyński et al. 2011, "An exact
algorithm for F-measure maximization"). For independent labels, the best set is a prefix of the labels sorted by
probability (Jansche 2007; Ye et al. 2012), and P(i, s) follows from the Poisson-binomial count of the other labels.

A group of mutually exclusive labels counts as one random draw: it adds at most one true label. A label that stands
alone excludes all others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLOCK = 1_000_000  # elements in the largest array of a block of rows, to nearly fit in the CPU cache


class Group(NamedTuple):
    """Column indices of mutually exclusive labels; with `always`, exactly one of them is true in every row."""

    labels: tuple[int, ...]
    always: bool


def best_answers(
    probability: np.ndarray, beta: float, groups: Sequence[Group] = (), empty: float = 1.0, alone: Sequence[int] = ()
) -> np.ndarray:
    """Return the exact labels (N, C) bool of largest expected F-beta, in O(C³) a row; ties go to fewer labels.

    Args:
        probability: (N, C). Within a group it is divided by its sum if that is above 1 or the group is `always`.
        beta: above 1, a missed label costs more than a false one.
        groups: mutually exclusive labels; all other labels are taken as independent given the image.
        empty: score of predicting no label where none is true.
        alone: columns of labels that are never true together with any other.
    """
    rows = max(1, BLOCK // probability.shape[1] ** 2)
    blocks = [
        _best_block(probability[start : start + rows].T.astype(np.float64), beta, groups, empty, alone)
        for start in range(0, len(probability), rows)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(probability.shape, bool)


def find_exclusive(target: np.ndarray) -> list[Group]:
    """Find groups of two or more labels such that every row of the target (N, C) has exactly one label of the group.

    Searches exact covers of the rows by labels, branching on the row with the fewest remaining labels (Knuth 2000,
    algorithm X). Labels that merely never co-occur, such as two rare ones, are not a group.
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
    """Find labels that are never true together with another in the target (N, C), unlikely by chance (p < 0.001).

    Null hypothesis: a row with the label has no other label as often as the remaining rows have at most one.
    """
    rows = np.asarray(target, bool)
    counts = rows.sum(axis=1)
    found = []
    for label, has in enumerate(rows.T):
        if has.any() and not has.all() and (counts[has] == 1).all() and (counts[~has] <= 1).mean() ** has.sum() < 1e-3:
            found.append(label)
    return found


def _cover(rows: np.ndarray, together: np.ndarray, free: np.ndarray) -> list[int]:
    """Find labels among the `free` ones that cover every row exactly once; empty if there are none."""
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
    """Answers (N, C) for probabilities (C, N); rows come last to keep memory access contiguous."""
    classes, _ = probability.shape
    _divide(probability, groups)
    single = probability[list(alone)]
    single /= np.maximum(single.sum(axis=0), 1)
    rest = 1 - single.sum(axis=0)  # P(none of those is true); the probabilities below are conditional on that
    if len(single):
        probability[list(alone)] = 0
        probability = np.minimum(np.divide(probability, rest, out=np.zeros_like(probability), where=rest > 0), 1)
        groups = [Group(tuple(label for label in group.labels if label not in alone), group.always) for group in groups]
        groups = [group for group in groups if group.labels]
        _divide(probability, groups)
    taken = {*alone, *(label for group in groups for label in group.labels)}
    draws = [group.labels for group in groups] + [(label,) for label in range(classes) if label not in taken]
    chance = np.stack([probability[list(labels)].sum(axis=0) for labels in draws])  # P(the draw gives a label)
    draw_of = np.zeros(classes, int)
    for number, labels in enumerate(draws):
        draw_of[list(labels)] = number

    counts = _count_distribution(chance)
    sizes = np.arange(1, classes + 1)
    # A label of draw g is true together with s - 1 labels of the other draws.
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
    """Normalise the probabilities (C, N) of each group to those of one draw, in place."""
    for labels, always in groups:
        columns = list(labels)
        total = probability[columns].sum(axis=0)
        share = np.divide(
            probability[columns], total, out=np.full((len(columns), len(total)), 1 / len(columns)), where=total > 0
        )
        probability[columns] = share * (1 if always else np.minimum(total, 1))


def _count_distribution(chance: np.ndarray) -> np.ndarray:
    """P(s of the G independent draws give a label), (G + 1, N), from their probabilities (G, N)."""
    counts = np.zeros((len(chance) + 1, chance.shape[1]))
    counts[0] = 1
    for number, p in enumerate(chance, start=1):
        counts[1 : number + 1] = counts[1 : number + 1] * (1 - p) + counts[:number] * p
        counts[0] *= 1 - p
    return counts


def _without_each(counts: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Distribution (G, G, N) of the count without draw g, for each g.

    Removes a draw by running the recurrence backwards: upwards it divides by 1 - p, downwards by p. Using the larger
    of the two keeps rounding errors from growing.
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
