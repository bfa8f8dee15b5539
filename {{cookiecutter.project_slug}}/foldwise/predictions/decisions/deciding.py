"""Compare pairs of calibration and decision rule out of fold, choose one, and fit it for the test.

Out of fold, both are fitted on the other folds, so a fold's labels never influence its own answers. On the test, each
fold's model gets the calibrator that was fitted without its fold; the calibrated predictions are averaged, and a rule
that was fitted on all out-of-fold predictions decides.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.decisions.calibration import CALIBRATORS, Calibrator
from foldwise.predictions.decisions.number_rules import read_sums
from foldwise.predictions.decisions.rules import ExpectedF, OneThreshold, Rule, rules_for, takes_values
from foldwise.predictions.metrics import RowMetric, score_folds
from foldwise.predictions.schema import raise_problems
from foldwise.predictions.scoring import Scored
from foldwise.predictions.selection import choose_simplest, paired_error
from foldwise.progress import Progress, silent, stepping


@dataclass(frozen=True)
class Method:
    """A pair of calibrator and decision rule."""

    calibrator: Calibrator
    rule: Rule

    @property
    def name(self) -> str:
        return "+".join(filter(None, [self.calibrator.name, self.rule.name]))


@dataclass(frozen=True)
class Outcome:
    """Out-of-fold scores and answers (N, C) of a method; for masks, answers (N,) or (N, C) are
    indices in `masks.CANDIDATES` or `layers.CANDIDATES`."""

    name: str
    per_fold: dict[int, float]
    overall: float
    answers: np.ndarray

    @property
    def scores(self) -> list[float]:
        return list(self.per_fold.values())


@dataclass(frozen=True)
class Decision:
    """A method fitted for the test: one calibrator per fold's model, and `common` of all folds for the full fit."""

    calibrators: Mapping[int, Calibrator]
    common: Calibrator
    rule: Rule

    def calibrate(self, fold: int, probability: np.ndarray) -> np.ndarray:
        """Calibrate predictions (N, C) of this fold's model."""
        return self.calibrators.get(fold, self.common)(probability)

    def average(self, models: Mapping[int, np.ndarray]) -> np.ndarray:
        """Calibrate each fold's predictions (N, C) and average them, ignoring NaN."""
        with warnings.catch_warnings(action="ignore"):  # about rows without any prediction
            return np.nanmean([self.calibrate(fold, values) for fold, values in models.items()], axis=0)

    def __str__(self) -> str:
        return "+".join(filter(None, [self.common.name, str(self.rule)]))


class Chosen(NamedTuple):
    """The compared methods, and the chosen one fitted for the test.

    Attributes:
        outcomes: of all methods; `chosen_index` is that of the chosen one.
        decision: a `Decision`; for segmentation a `masks.Cleaning`, or a decision of `layers`.
        shares: class shares (C,), in the ground truth and in the answers out of fold.
    """

    outcomes: list[Outcome]
    chosen_index: int
    decision: Any
    shares: dict[str, np.ndarray]

    @property
    def outcome(self) -> Outcome:
        return self.outcomes[self.chosen_index]


def choose_decision(
    metric: RowMetric,
    scored: Scored,
    ranks: bool = False,
    exclusive: Sequence[Sequence[str]] | None = None,
    forced: str | None = None,
    progress: Progress = silent,
    sums: Sequence[Sequence[str]] = (),
) -> Chosen:
    """Compare the methods that suit a metric, and fit the chosen one for the test.

    Args:
        scored: the out-of-fold rows.
        ranks: predictions are mean ranks, which cannot be calibrated.
        exclusive: groups of mutually exclusive labels, by name; None: detect them in the training labels.
        forced: name of the method; None: the simplest within one standard error of the best.
        sums: of numbers: a number or a column, then the columns that add up to it.
    """
    assert metric.task is not None  # set by for_task
    rules = rules_for(metric, _columns(exclusive, metric.classes), read_sums(sums, metric))
    if exclusive is not None and not any(isinstance(rule, ExpectedF) for rule in rules):
        raise Refusal(f"--exclusive is for the rule {ExpectedF.name}, which {metric.name} does not use")
    if ranks and not takes_values(metric):
        raise Refusal(f"mean ranks are not probabilities, which {metric.name} needs")
    calibrators = CALIBRATORS[metric.task.exclusive] if metric.task.probabilities and not ranks else (Calibrator(),)
    methods = [Method(calibrator, rule) for calibrator in calibrators for rule in rules]
    check_decision(forced, [method.name for method in methods])
    outcomes = compare(calibrators, rules, metric, scored, progress)
    index = choose(outcomes, metric.greater_is_better, forced)
    shares = {"ground truth": np.nanmean(scored.target, axis=0), "out of fold": outcomes[index].answers.mean(axis=0)}
    return Chosen(outcomes, index, fit_decision(methods[index], metric, scored), shares)


def compare(
    calibrators: Sequence[Calibrator],
    rules: Sequence[Rule],
    metric: RowMetric,
    scored: Scored,
    progress: Progress = silent,
) -> list[Outcome]:
    """Score each calibrator with each rule, cross-fitted; in the order of the calibrators, then of the rules."""
    target, probability, folds, rows = scored
    check_folds(folds)
    done = stepping(progress, "post-processing out of fold", len(calibrators) * len(np.unique(folds)))
    outcomes = []
    with warnings.catch_warnings(action="ignore"):  # about classes missing from a fold; the run's report names them
        for calibrator in calibrators:
            answers = [np.zeros(target.shape) for _ in rules]
            for fold in np.unique(folds):
                held = folds == fold
                fitted = calibrator.fit(target[~held], probability[~held])
                others, held_out = fitted(probability[~held]), fitted(probability[held])
                for rule, answer in zip(rules, answers, strict=True):
                    answer[held] = rule.fit(metric, target[~held], others, rows[~held]).decide(held_out)
                done()
            for rule, answer in zip(rules, answers, strict=True):
                name = Method(calibrator, rule).name
                outcomes.append(Outcome(name, *score_folds(metric, target, answer, folds, rows), answer))
    return outcomes


def check_folds(folds: np.ndarray) -> None:
    if len(np.unique(folds)) < 2:
        raise Refusal("post-processing is fitted out of fold, which needs at least two folds")


def fit_decision(method: Method, metric: RowMetric, scored: Scored) -> Decision:
    """Fit a method for the test: one calibrator per fold's model, and the rule on all out-of-fold rows."""
    target, probability, folds, rows = scored
    calibrators, calibrated = {}, np.zeros(probability.shape)
    for fold in np.unique(folds).tolist():
        held = folds == fold
        calibrators[fold] = method.calibrator.fit(target[~held], probability[~held])
        calibrated[held] = calibrators[fold](probability[held])
    with warnings.catch_warnings(action="ignore"):  # as in `compare`
        rule = method.rule.fit(metric, target, calibrated, rows)
    return Decision(calibrators, method.calibrator.fit(target, probability), rule)


def choose(outcomes: Sequence[Outcome], greater_is_better: bool, forced: str | None = None) -> int:
    """Return the index of the outcome named `forced`, or else of the simplest within one standard error of the best."""
    if forced is not None:
        return [outcome.name for outcome in outcomes].index(forced)
    return choose_simplest(np.array([outcome.scores for outcome in outcomes]), greater_is_better)


def check_decision(name: str | None, names: Sequence[str]) -> None:
    if name is not None and name not in names:
        raise Refusal(f"there is no --decision {name}; choose one of {', '.join(names)}")


def bayes_notes(outcomes: Sequence[Outcome], greater_is_better: bool) -> list[str]:
    """Warn of each calibration with which the expected F-beta rule scores below one tuned threshold."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    notes = []
    for name, outcome in by_name.items():
        other = by_name.get(name.removesuffix(ExpectedF.name) + OneThreshold.name)
        if not name.endswith(ExpectedF.name) or other is None:
            continue
        loss, error = paired_error(other.scores, outcome.scores)
        loss = loss if greater_is_better else -loss
        if loss > 0:
            verdict = "do not trust its probabilities" if loss > error else "within one standard error"
            notes.append(f"{name} (the Bayes rule) scores {loss:.4f} ± {error:.4f} below {other.name}: {verdict}")
    return notes


def _columns(groups: Sequence[Sequence[str]] | None, classes: Sequence[str]) -> list[tuple[int, ...]] | None:
    """Return the column indices of groups of labels; refuse unknown and repeated labels, and groups of one."""
    if groups is None:
        return None
    named = [name for group in groups for name in group]
    problems = [f"there is no class {name}" for name in named if name not in classes]
    problems += [f"{name} is named twice" for name in sorted({name for name in named if named.count(name) > 1})]
    problems += [
        f"{' '.join(group)} is a single label; a group needs two or more" for group in groups if len(group) < 2
    ]
    raise_problems("--exclusive", problems)
    return [tuple(classes.index(name) for name in group) for group in groups]
