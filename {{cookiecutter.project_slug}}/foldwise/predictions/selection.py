"""Choice between methods compared on the same folds."""

from collections.abc import Sequence

import numpy as np

from foldwise.errors import Refusal


def paired_error(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error of `first` - `second` over folds; with one fold the error is infinite.

    Both methods see the same easy and hard folds, so the difference is much less uncertain than either score.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if len(difference) < 2:
        return float(difference.mean()), float("inf")
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def choose_simplest(scores: np.ndarray, greater_is_better: bool) -> int:
    """Return the index of the simplest method within one standard error of the best.

    This rule (Breiman et al. 1984, section 3.4.3, here with the paired error) rarely picks a method that was best by
    chance.

    Args:
        scores: (methods, folds), simplest method first; a method with a NaN is never chosen. Refusal if all have one.
    """
    values = np.asarray(scores, np.float64) * (1 if greater_is_better else -1)
    usable = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(usable):
        raise Refusal("no method has a score in every fold")
    best = usable[np.argmax(values[usable].mean(axis=1))]
    for method in usable:
        loss, error = paired_error(values[best], values[method])
        if (loss <= error and np.isfinite(error)) or method == best:
            return int(method)
    return int(best)
