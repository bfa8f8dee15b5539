"""Cross-fit ensemble methods, compare them on the same folds, and choose one."""

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

THRESHOLDED = "scores use one threshold for all labels; each fold gets the one that is best on the other folds"
CROSS_FITTED = (
    "cross-fitted: for each fold, weights and stacking were fitted only on the out-of-fold predictions of the other "
    "folds. The score is still slightly optimistic, more so for methods with more parameters: the models behind those "
    "predictions were trained on this fold's labels, and the method was chosen by the same scores."
)
STRICT = (
    "strict: for each fold, the method was chosen and fitted only on the other folds. One leak remains: the models "
    "behind those predictions were trained on this fold's labels. To avoid it too, use a table that no run was trained "
    "on: predict it with every source (predict.py --table holdout.csv), ensemble with --test <its name>, then run "
    "evaluate.py <out> --table holdout.csv."
)


@dataclass(frozen=True)
class Strict:
    """Scores on folds that were not used to fit or choose the method; `chosen` names the method of each fold."""

    scores: list[float]
    overall: float
    chosen: list[str]


@dataclass(frozen=True)
class Comparison:
    """Scores of sources and methods.

    Attributes:
        sources: M names, with `source_scores` (M, K folds) and `source_overall` (M,).
        names, titles: of the methods, simplest first, with `scores` (methods, K) and `overall` (methods,).
        weights: per method (K, M), fitted for each fold; None for stacking.
        correlation: (M, M) of the sources' errors.
        forced: the method that the user asked for; None: the simplest within one standard error of the best.
        thresholded: scores use a fitted threshold, see `thresholding`.
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
        return choose(self.scores, self.metric) if self.forced is None else self.names.index(self.forced)

    def gain(self, method: int, over: str) -> tuple[float, float]:
        """Gain of a method over the one named `over`: mean over the folds and its standard error."""
        sign = 1 if self.metric.greater_is_better else -1
        return paired_error(sign * self.scores[method], sign * self.scores[self.names.index(over)])

    @property
    def scores_are(self) -> str:
        return f"{THRESHOLDED}; {CROSS_FITTED}" if self.thresholded else CROSS_FITTED

    @property
    def verdict(self) -> str:
        title = self.titles[self.chosen]
        (single, single_error), (mean, mean_error) = (self.gain(self.chosen, over) for over in ("single", "mean"))
        if self.names[self.chosen] == "single":
            sign = 1 if self.metric.greater_is_better else -1
            best = self.sources[int(np.nanargmax(sign * self.source_overall))]
            return (
                "Not better than the best single source: no blend gains more than one standard error. To keep the "
                "score honest, the output has for each fold the source that is best on the other folds. To submit a "
                f"single source, use it directly: {best} has the best overall score."
            )
        if self.names[self.chosen] == "mean":
            better = "" if single > single_error else "not clearly "
            return (
                "Nothing fitted is better than the mean: the plain mean was written. "
                f"It is {better}better than the best single source."
            )
        if mean > mean_error:
            return f"Better than the mean: {title} gains {mean:.4f} ± {mean_error:.4f} over it."
        return f"Not better than the mean: {title} differs from it by {mean:+.4f} ± {mean_error:.4f}."

    def as_json(self) -> dict[str, Any]:
        """Plain values for ensemble.json; a score that does not exist is null."""
        weights, strict = self.weights[self.chosen], self.strict
        return {
            "method": self.names[self.chosen],
            "metric": self.metric.name,
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
    """Base of `RowEnsemble` and `MapEnsemble`: cross-fits methods on matching sources.

    The values of a fold are (methods, N, ...): what `score` needs for each method and each of the N rows or images.
    """

    thresholded = False

    def __init__(self, names: Sequence[str], truth: GroundTruth) -> None:
        self.names, self.truth = list(names), truth
        self.folds = truth.scored_folds
        self._fitted: dict[tuple[str, frozenset[int]], Fitted] = {}

    def examples(self, folds: Sequence[int]) -> Any:
        """Return what a method is fitted on, of these folds only."""
        raise NotImplementedError

    def source_values(self) -> dict[int, np.ndarray]:
        """Return the values of each fold for the single sources."""
        raise NotImplementedError

    def values(self, fold: int, methods: Sequence[Sequence[Fitted]]) -> list[np.ndarray]:
        """Return the values of a fold for each list of fitted methods."""
        raise NotImplementedError

    def score(self, values: Mapping[int, np.ndarray]) -> tuple[list[float], float]:
        """Score one method's values (N, ...) of these folds: per fold, and overall."""
        raise NotImplementedError

    def correlation(self) -> np.ndarray:
        """Return the correlation (M, M) of the sources' errors."""
        raise NotImplementedError

    def fit(self, method: Method, without: frozenset[int]) -> Fitted:
        """Fit a method on all folds except these, at most once."""
        key = method.name, without
        if key not in self._fitted:
            self._fitted[key] = method.fit(self.examples([fold for fold in self.folds if fold not in without]))
        return self._fitted[key]

    def compare(self, methods: Sequence[Method], forced: str | None, strict: bool, progress: Progress) -> Comparison:
        """Cross-fit and score every method; see `ensembling.ensemble` for `forced` (`use`) and `strict`."""
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
        with warnings.catch_warnings(action="ignore"):  # about classes missing from a fold; shown before
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
        """For each fold, choose a method on the other folds and score it on this one."""
        chosen, held_out = [], {}
        for held in self.folds:
            inner = {fold: values[frozenset({fold, held})][fold] for fold in self.folds if fold != held}
            scores = np.array([scores for scores, _ in self._score_each(inner)])
            best = names.index(forced) if forced else choose(scores, self.truth.metric)
            held_out[held] = values[frozenset({held})][held][best]
            chosen.append(names[best])
        return Strict(*self.score(held_out), chosen)


def choose(scores: np.ndarray, metric: Any) -> int:
    """`choose_simplest` on (methods, K) scores, ignoring float32 rounding."""
    return choose_simplest(np.round(scores, 6), metric.greater_is_better)


def error_correlation(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Pearson correlation (M, M) of the sources' errors (probability - target) over all rows and classes.

    Probabilities themselves always correlate, because all of them follow the ground truth.
    """
    sources, rows, classes = probability.shape
    products, totals = np.zeros((sources, sources)), np.zeros(sources)
    for index in range(classes):  # one class at a time, to save memory
        errors = np.nan_to_num(probability[:, :, index] - target[:, index].astype(np.float32))  # NaN: unknown target
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
