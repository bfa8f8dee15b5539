"""Decision rules: turn probabilities into the answers that a metric scores.

To add a rule, write a class with `fit` and `decide` and list it in `rules_for`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from foldwise.predictions.decisions.expected_f import Group, best_answers, find_alone, find_exclusive
from foldwise.predictions.metrics import FBeta, LogLoss, MacroF1, QuadraticKappa, RowMetric

if TYPE_CHECKING:
    from foldwise.predictions.decisions.number_rules import Sum

COARSE = np.arange(0.05, 0.96, 0.05)
FINE = np.arange(-0.04, 0.05, 0.01)
ROUNDS = 10  # of coordinate ascent; more than four are rare

Rows = np.ndarray | None  # records (N,) of the rows, see `metrics.base.row_records`


@dataclass(frozen=True)
class Rule:
    """Unchanged probabilities, for metrics that score them; base of the rules."""

    name: ClassVar[str] = "probabilities"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        """Return a copy fitted to targets and probabilities (N, C)."""
        return self

    def decide(self, probability: np.ndarray) -> np.ndarray:
        """Return answers (N, C): bool, or probabilities."""
        return probability

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Argmax(Rule):
    """Most probable class."""

    name: ClassVar[str] = "argmax"

    def decide(self, probability: np.ndarray) -> np.ndarray:
        return np.arange(probability.shape[1]) == probability.argmax(axis=1)[:, None]


@dataclass(frozen=True)
class AdjustedArgmax(Argmax):
    """Argmax of p / share^strength, where share is the class frequency.

    Strength 1 removes the class prior, which metrics such as macro F1 favour in part (Menon et al. 2021, "Long-tail
    learning via logit adjustment"). The strength is the only fitted parameter, however many classes there are.
    """

    strength: float = 0.0
    share: np.ndarray = field(default_factory=lambda: np.ones(1))
    name: ClassVar[str] = "adjusted-argmax"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        share = (target.sum(axis=0) + 1) / (len(target) + target.shape[1])
        tried = [replace(self, strength=strength, share=share) for strength in np.arange(0, 1.01, 0.05).tolist()]
        return tried[_best(metric, [score(metric, target, rule.decide(probability), rows) for rule in tried])]

    def decide(self, probability: np.ndarray) -> np.ndarray:
        return super().decide(probability / self.share**self.strength)

    def __str__(self) -> str:
        return f"{self.name} (strength {self.strength:.2f})"


@dataclass(frozen=True)
class FixedThreshold(Rule):
    """The metric's own threshold for all labels; nothing is fitted."""

    threshold: float = 0.5
    name: ClassVar[str] = "fixed-threshold"

    def decide(self, probability: np.ndarray) -> np.ndarray:
        return probability >= self.threshold

    def __str__(self) -> str:
        return f"{self.name} {self.threshold:.2f}"


@dataclass(frozen=True)
class OneThreshold(FixedThreshold):
    """One threshold for all labels, searched in steps of 0.05, then of 0.01 around the best."""

    name: ClassVar[str] = "one-threshold"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        def best(thresholds: np.ndarray) -> float:
            scores = [score(metric, target, probability >= threshold, rows) for threshold in thresholds]
            return float(thresholds[_best(metric, scores)])

        return replace(self, threshold=best(best(COARSE) + FINE))


@dataclass(frozen=True)
class ClassThresholds(Rule):
    """One threshold per label, each the exact optimum given the others.

    F-beta of rows: coordinate ascent from the best single threshold. Macro F1: labels are independent, so one round is
    enough.
    """

    thresholds: np.ndarray = field(default_factory=lambda: np.full(1, 0.5))
    name: ClassVar[str] = "class-thresholds"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        true, curve = metric.hard(target), _CUT_CURVES[type(metric)]
        answer = OneThreshold().fit(metric, target, probability, rows).decide(probability)
        thresholds = np.zeros(true.shape[1])
        for _ in range(ROUNDS):
            before = answer.copy()
            for c in range(true.shape[1]):
                thresholds[c] = _best_cut(probability[:, c], partial(curve, metric, true, answer, c))
                answer[:, c] = probability[:, c] >= thresholds[c]
            if (answer == before).all():
                break
        return replace(self, thresholds=thresholds)

    def decide(self, probability: np.ndarray) -> np.ndarray:
        return probability >= self.thresholds

    def __str__(self) -> str:
        return f"{self.name} {' '.join(f'{t:.2f}' for t in self.thresholds)}"


@dataclass(frozen=True)
class ExpectedF(Rule):
    """Labels of largest expected F-beta in each row (`expected_f`); optimal for calibrated probabilities.

    Args:
        empty: score of predicting no label where none is true.
        exclusive: groups of mutually exclusive labels, by column; None: detect them in the training labels.
        groups: set by `fit` from `exclusive`.
        alone: columns of labels that exclude all others, set by `fit`.
    """

    beta: float = 2.0
    empty: float = 1.0
    exclusive: Sequence[tuple[int, ...]] | None = None
    groups: tuple[Group, ...] = ()
    alone: tuple[int, ...] = ()
    name: ClassVar[str] = "expected-f"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        true = metric.hard(target)
        if self.exclusive is None:
            groups = find_exclusive(true)
        else:
            groups = [Group(labels, bool(true[:, labels].any(axis=1).all())) for labels in self.exclusive]
        return replace(self, groups=tuple(groups), alone=tuple(find_alone(true)))

    def decide(self, probability: np.ndarray) -> np.ndarray:
        return best_answers(probability, self.beta, self.groups, self.empty, self.alone)

    def __str__(self) -> str:
        parts = [f"{len(self.groups)} exclusive groups"] if self.groups else []
        parts += [f"{len(self.alone)} labels that stand alone"] if self.alone else []
        return ", ".join([self.name, *parts])


def takes_values(metric: RowMetric) -> bool:
    """Check whether the metric scores probabilities or other values, which need no decision rule.

    Tests it on random rows: a metric that thresholds gives probabilities and thresholded answers the same score.
    """
    assert metric.task is not None  # set by for_task
    if not metric.task.probabilities:
        return True
    rng = np.random.default_rng(0)
    classes = len(metric.classes)
    target = Argmax().decide(rng.random((50 * classes, classes))).astype(np.float64)
    exclusive = metric.task.exclusive
    probability = rng.dirichlet(np.ones(classes), len(target)) if exclusive else rng.random(target.shape)
    rows = metric.example_rows(len(target))
    with warnings.catch_warnings(action="ignore"):
        decided = score(metric, target, metric.hard(probability, _threshold(metric)), rows)
        return not np.isclose(metric(target, probability, rows=rows), decided, rtol=1e-12)


def rules_for(
    metric: Any, exclusive: Sequence[tuple[int, ...]] | None = None, sums: Sequence["Sum"] = ()
) -> list[Rule]:
    """List the unfitted rules that suit a metric, simplest first; `exclusive` as in `ExpectedF`, `sums` for numbers."""
    from foldwise.predictions.decisions.clipping import Clip  # circular at module level
    from foldwise.predictions.decisions.number_rules import ExpectedGrade, number_rules

    exclude = metric.task.exclusive
    if not metric.task.probabilities:
        return number_rules(metric, sums)
    if takes_values(metric):
        return [Rule(), *([Clip(exclusive=exclude)] if isinstance(metric, LogLoss) else [])]
    if exclude:
        return [Argmax(), AdjustedArgmax(), *([ExpectedGrade()] if isinstance(metric, QuadraticKappa) else [])]
    rules: list[Rule] = [FixedThreshold(_threshold(metric)), OneThreshold()]
    if isinstance(metric, FBeta):
        nothing = np.zeros((1, len(metric.classes)))
        rules.append(ExpectedF(metric.beta, metric(nothing, nothing), exclusive))
    if type(metric) in _CUT_CURVES:
        rules.append(ClassThresholds())
    return rules


def score(metric: RowMetric, target: np.ndarray, answers: np.ndarray, rows: Rows = None) -> float:
    """Score answers (N, C) as probabilities 0 and 1, which any threshold of the metric leaves unchanged."""
    return metric(target, answers.astype(np.float64), rows=rows)


def _threshold(metric: Any) -> float:
    return getattr(metric, "threshold", 0.5)


def _best(metric: RowMetric, scores: Sequence[float]) -> int:
    """Return the index of the best score; of equally good ones the middle, farthest from a change."""
    values = np.array(scores) * (1 if metric.greater_is_better else -1)
    equal = np.flatnonzero(values == np.nanmax(values)) if np.isfinite(values).any() else np.arange(1)
    return int(equal[len(equal) // 2])


def _best_cut(probability: np.ndarray, curve: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the threshold of probabilities (N,) at the maximum of a curve, half-way between two neighbours.

    `curve(order)` is (N + 1,): the value of predicting the first 0, 1, ... N rows of the order.
    """
    order = np.argsort(-probability, kind="stable")
    edges = np.concatenate([[1.1], probability[order], [0.0]])  # above 1, nothing is predicted
    possible = edges[:-1] > edges[1:]  # equal probabilities cannot be separated
    value = np.where(possible, curve(order), -np.inf)
    cut = int(value.argmax())
    return float((edges[cut] + edges[cut + 1]) / 2)


def _f_beta_curve(metric: Any, true: np.ndarray, answer: np.ndarray, c: int, order: np.ndarray) -> np.ndarray:
    """Sum of the rows' F-beta, up to a constant, if label c is predicted for the first 0 to N rows of the order."""
    square = metric.beta**2
    others = np.arange(true.shape[1]) != c
    correct = (true & answer & others).sum(axis=1)
    below = (answer & others).sum(axis=1) + square * true.sum(axis=1)
    without = np.divide((1 + square) * correct, below, out=np.ones(len(below)), where=below > 0)
    having = (1 + square) * (correct + true[:, c]) / (below + 1)
    return np.concatenate([[0.0], np.cumsum((having - without)[order])])


def _macro_f1_curve(metric: Any, true: np.ndarray, answer: np.ndarray, c: int, order: np.ndarray) -> np.ndarray:
    """F1 of class c if it is predicted for the first 0 to N rows of the order."""
    correct = np.concatenate([[0], np.cumsum(true[order, c])])
    return 2 * correct / np.maximum(np.arange(len(true) + 1) + correct[-1], 1)


# Curves for `_best_cut`, for metrics where one pass over the sorted rows yields all values.
_CUT_CURVES = {FBeta: _f_beta_curve, MacroF1: _macro_f1_curve}
