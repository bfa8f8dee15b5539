"""Methods of putting members together, compared on the same folds: which is chosen, and what it gains."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from foldwise.files import plain_number
from foldwise.predictions.ensembles.thresholding import FITTED
from foldwise.predictions.selection import choose_simplest, paired_error

CROSS_FITTED = (
    "cross-fitted: for each fold, weights and second levels were fitted on the out-of-fold predictions of the other "
    "folds only. But the models behind those predictions were trained with this fold's labels, and the method was "
    "chosen by these very scores: the number is a little optimistic, the more so the more is fitted."
)
STRICT = (
    "strict: for each fold, everything was fitted, and the method chosen, on the other folds only. What is left: the "
    "predictions it was fitted on come from models that were trained with this fold's labels. Free of that is only a "
    "table that no run was trained with: predict it with every source (predict.py --table holdout.csv), ensemble with "
    "--test <its name>, then evaluate.py <out> --table holdout.csv."
)


@dataclass(frozen=True)
class Strict:
    """Scores on folds that took no part in fitting or choosing the second level; `chosen` is each fold's method."""

    scores: list[float]
    overall: float
    chosen: list[str]


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        metric: the competition's.
        folds: (K,) their numbers.
        members: names of the sources; `member_scores` (M, K) and `member_overall` (M,) are theirs.
        names, titles: of the methods, the simplest first; `scores` (methods, K) and `overall` (methods,) are theirs.
        weights: of each method (K, M), the weights fitted for each fold; None for a second level.
        correlation: (M, M), of the members' errors.
        forced: the method that was asked for; None takes the simplest within one standard error of the best.
        thresholded: the scores are after a fitted threshold, see `thresholding`.
    """

    metric: Any
    folds: list[int]
    members: list[str]
    member_scores: np.ndarray
    member_overall: np.ndarray
    names: list[str]
    titles: list[str]
    scores: np.ndarray
    overall: np.ndarray
    weights: list[np.ndarray | None]
    correlation: np.ndarray
    forced: str | None = None
    thresholded: bool = False
    strict: Strict | None = None

    @cached_property
    def chosen(self) -> int:
        """The number of the method whose predictions are written."""
        if self.forced is not None:
            return self.names.index(self.forced)
        return choose(self.scores, self.metric)

    def gain(self, method: int, over: str) -> tuple[float, float]:
        """How much better a method is than another by name: mean over the folds and its standard error."""
        sign = 1 if self.metric.greater_is_better else -1
        mean, error = paired_error(sign * self.scores[method], sign * self.scores[self.names.index(over)])
        return mean, error

    @property
    def scores_are(self) -> str:
        """What the numbers are, and are not."""
        return f"{FITTED}; {CROSS_FITTED}" if self.thresholded else CROSS_FITTED

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        title = self.titles[self.chosen]
        (single, single_error), (mean, mean_error) = (self.gain(self.chosen, over) for over in ("single", "mean"))
        if self.names[self.chosen] == "single":
            sign = 1 if self.metric.greater_is_better else -1
            best = self.members[int(np.nanargmax(sign * self.member_overall))]
            return (
                "Not better than the best single source: no blend gains more than one standard error. What is written "
                "is for each fold the source that is best on the other folds, so that its score is honest; to submit "
                f"one source, take it itself: {best} has the best score of all rows."
            )
        if self.names[self.chosen] == "mean":
            better = "better than the best single source" if single > single_error else "not clearly better than one"
            return f"Nothing fitted is better than the mean: the plain mean is written, {better}."
        if mean > mean_error:
            return f"Better than the mean: {title} gains {mean:.4f} ± {mean_error:.4f} over it."
        return f"Not better than the mean: {title} differs from it by {mean:+.4f} ± {mean_error:.4f}."

    def as_json(self) -> dict[str, Any]:
        """Plain values for ensemble.json; a score that does not exist is null."""
        weights = self.weights[self.chosen]
        return {
            "method": self.names[self.chosen],
            "metric": type(self.metric).__name__,
            "greater_is_better": self.metric.greater_is_better,
            "folds": self.folds,
            "members": _table(self.members, self.member_scores, self.member_overall),
            "methods": _table(self.names, self.scores, self.overall),
            "weights": None if weights is None else dict(zip(self.members, weights.T.tolist(), strict=True)),
            "gain_over_single": [*map(plain_number, self.gain(self.chosen, "single"))],
            "gain_over_mean": [*map(plain_number, self.gain(self.chosen, "mean"))],
            "verdict": self.verdict,
            "what_the_scores_are": self.scores_are,
            "strict": self.strict
            and {
                "overall": plain_number(self.strict.overall),
                "folds": [*map(plain_number, self.strict.scores)],
                "chosen": self.strict.chosen,
                "what_it_is": STRICT,
            },
        }


def choose(scores: np.ndarray, metric: Any) -> int:
    """As `choose_simplest`, of (methods, K) scores; what float32 rounds off is no difference."""
    return choose_simplest(np.round(scores, 6), metric.greater_is_better)


def _table(names: Sequence[str], scores: np.ndarray, overall: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"name": name, "overall": value, "folds": [*map(plain_number, row)]}
        for name, row, value in zip(names, scores, [*map(plain_number, overall)], strict=True)
    ]
