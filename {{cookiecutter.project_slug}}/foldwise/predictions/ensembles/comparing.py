"""Methods of combining sources, cross-fitted and compared on the same folds: which is chosen, and what it gains."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from foldwise.files import plain_number
from foldwise.predictions.ensembles.blending import Fitted, Method
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.selection import choose_simplest, paired_error
from foldwise.progress import Progress

THRESHOLDED = "scores are after one threshold for all labels, for each fold the best on the other folds"
CROSS_FITTED = (
    "cross-fitted: for each fold, weights and stacking were fitted on the out-of-fold predictions of the other "
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
    """Scores on folds that took no part in fitting or choosing the method; `chosen` is each fold's."""

    scores: list[float]
    overall: float
    chosen: list[str]


@dataclass(frozen=True)
class Comparison:
    """Scores of sources and methods.

    Attributes:
        metric: the competition's.
        folds: (K,) their numbers.
        sources: their names; `source_scores` (M, K) and `source_overall` (M,) are theirs.
        names, titles: of the methods, the simplest first; `scores` (methods, K) and `overall` (methods,) are theirs.
        weights: of each method (K, M), the weights fitted for each fold; None for stacking.
        correlation: (M, M), of the sources' errors.
        forced: the method that was asked for; None takes the simplest within one standard error of the best.
        thresholded: the scores are after a fitted threshold, see `thresholding`.
    """

    metric: Any
    folds: list[int]
    sources: list[str]
    source_scores: np.ndarray
    source_overall: np.ndarray
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
        """The index of the method whose predictions are written."""
        return choose(self.scores, self.metric) if self.forced is None else self.names.index(self.forced)

    def gain(self, method: int, over: str) -> tuple[float, float]:
        """How much better a method is than another by name: mean over the folds and its standard error."""
        sign = 1 if self.metric.greater_is_better else -1
        return paired_error(sign * self.scores[method], sign * self.scores[self.names.index(over)])

    @property
    def scores_are(self) -> str:
        """How to read the scores."""
        return f"{THRESHOLDED}; {CROSS_FITTED}" if self.thresholded else CROSS_FITTED

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        title = self.titles[self.chosen]
        (single, single_error), (mean, mean_error) = (self.gain(self.chosen, over) for over in ("single", "mean"))
        if self.names[self.chosen] == "single":
            sign = 1 if self.metric.greater_is_better else -1
            best = self.sources[int(np.nanargmax(sign * self.source_overall))]
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
        weights, strict = self.weights[self.chosen], self.strict
        return {
            "method": self.names[self.chosen],
            "metric": type(self.metric).__name__,
            "greater_is_better": self.metric.greater_is_better,
            "folds": self.folds,
            "members": _table(self.sources, self.source_scores, self.source_overall),
            "methods": _table(self.names, self.scores, self.overall),
            "weights": None if weights is None else dict(zip(self.sources, weights.T.tolist(), strict=True)),
            "gain_over_single": [*map(plain_number, self.gain(self.chosen, "single"))],
            "gain_over_mean": [*map(plain_number, self.gain(self.chosen, "mean"))],
            "verdict": self.verdict,
            "what_the_scores_are": self.scores_are,
            "strict": strict
            and {
                "overall": plain_number(strict.overall),
                "folds": [*map(plain_number, strict.scores)],
                "chosen": strict.chosen,
                "what_it_is": STRICT,
            },
        }


class Ensemble:
    """Sources that belong together, on which methods are cross-fitted; `RowEnsemble` and `MapEnsemble` hold them.

    Values of a fold are (methods, N, ...): what `score` needs of its N rows or images for each method.
    """

    thresholded = False

    def __init__(self, names: Sequence[str], truth: GroundTruth) -> None:
        self.names, self.truth = list(names), truth
        self.folds: list[int] = sorted(set(truth.folds.tolist()) - {-1})
        self._fitted: dict[tuple[str, frozenset[int]], Fitted] = {}

    def examples(self, folds: Sequence[int]) -> Any:
        """What a method is fitted on: these folds, with nothing of the others."""
        raise NotImplementedError

    def source_values(self) -> dict[int, np.ndarray]:
        """The values of each fold, of the sources by themselves."""
        raise NotImplementedError

    def values(self, fold: int, methods: Sequence[Sequence[Fitted]]) -> list[np.ndarray]:
        """The values of a fold, of each list of fitted methods."""
        raise NotImplementedError

    def score(self, values: Mapping[int, np.ndarray]) -> tuple[list[float], float]:
        """The score of each fold, and overall, of one method's values (N, ...) of these folds."""
        raise NotImplementedError

    def correlation(self) -> np.ndarray:
        """(M, M), of the sources' errors."""
        raise NotImplementedError

    def fit(self, method: Method, without: frozenset[int]) -> Fitted:
        """The method fitted on the folds but these; each is fitted once."""
        key = method.name, without
        if key not in self._fitted:
            self._fitted[key] = method.fit(self.examples([fold for fold in self.folds if fold not in without]))
        return self._fitted[key]

    def compare(self, methods: Sequence[Method], forced: str | None, strict: bool, progress: Progress) -> Comparison:
        """Cross-fit every method and score it.

        Args:
            forced: the method to write whatever the scores say; None chooses.
            strict: also choose and fit without a fold, for every fold, and score there.
        """
        held_out = [frozenset({fold}) for fold in self.folds]
        if strict:
            held_out += [frozenset(pair) for pair in combinations(self.folds, 2)]
        values: dict[frozenset[int], dict[int, np.ndarray]] = {folds: {} for folds in held_out}
        for fold in self.folds:
            without = [folds for folds in held_out if fold in folds]
            for folds in without:
                for method in methods:
                    progress(f"{method.title}, fold {fold}", len(self._fitted), len(methods) * len(held_out))
                    self.fit(method, folds)
            fitted = [[self.fit(method, folds) for method in methods] for folds in without]
            for folds, each in zip(without, self.values(fold, fitted), strict=True):
                values[folds][fold] = each
        cross_fitted = {fold: values[frozenset({fold})][fold] for fold in self.folds}
        of_sources = self.source_values()
        sources = [self.score({fold: each[m] for fold, each in of_sources.items()}) for m in range(len(self.names))]
        weights = [[self.fit(method, frozenset({fold})).weights for fold in self.folds] for method in methods]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that a fold lacks: those of the sources were shown
            scored = self._score_each(cross_fitted)
            comparison = Comparison(
                metric=self.truth.metric,
                folds=self.folds,
                sources=self.names,
                source_scores=np.array([scores for scores, _ in sources]),
                source_overall=np.array([overall for _, overall in sources]),
                names=[method.name for method in methods],
                titles=[method.title for method in methods],
                scores=np.array([scores for scores, _ in scored]),
                overall=np.array([overall for _, overall in scored]),
                weights=[None if each[0] is None else np.array(each) for each in weights],
                correlation=self.correlation(),
                forced=forced,
                thresholded=self.thresholded,
            )
            return replace(comparison, strict=self._strict(comparison.names, forced, values)) if strict else comparison

    def _score_each(self, values: Mapping[int, np.ndarray]) -> list[tuple[list[float], float]]:
        count = len(next(iter(values.values())))
        return [self.score({fold: each[method] for fold, each in values.items()}) for method in range(count)]

    def _strict(
        self, names: list[str], forced: str | None, values: dict[frozenset[int], dict[int, np.ndarray]]
    ) -> Strict:
        """Choose among the methods without a fold, and score there what was chosen."""
        chosen, held_out = [], {}
        for held in self.folds:
            inner = {fold: values[frozenset({fold, held})][fold] for fold in self.folds if fold != held}
            scores = np.array([scores for scores, _ in self._score_each(inner)])
            best = names.index(forced) if forced else choose(scores, self.truth.metric)
            held_out[held] = values[frozenset({held})][held][best]
            chosen.append(names[best])
        return Strict(*self.score(held_out), chosen)


def choose(scores: np.ndarray, metric: Any) -> int:
    """As `choose_simplest`, of (methods, K) scores; what float32 rounds off is no difference."""
    return choose_simplest(np.round(scores, 6), metric.greater_is_better)


def error_correlation(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(M, M) Pearson correlation of the sources' errors (probability - target) over all rows and classes.

    Of errors and not of probabilities, which agree already because the ground truth is in all of them.
    """
    sources, rows, classes = probability.shape
    products, totals = np.zeros((sources, sources)), np.zeros(sources)
    for index in range(classes):  # a class at a time: no second copy of all sources
        errors = probability[:, :, index] - target[:, index].astype(np.float32)
        products += errors @ errors.T
        totals += errors.sum(axis=1, dtype=np.float64)
    covariance = products / (rows * classes) - np.outer(totals, totals) / (rows * classes) ** 2
    deviation = np.sqrt(np.maximum(covariance.diagonal(), 1e-12))
    return (covariance / np.outer(deviation, deviation)).clip(-1, 1)


def _table(names: Sequence[str], scores: np.ndarray, overall: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"name": name, "overall": plain_number(value), "folds": [*map(plain_number, row)]}
        for name, row, value in zip(names, scores, overall, strict=True)
    ]
