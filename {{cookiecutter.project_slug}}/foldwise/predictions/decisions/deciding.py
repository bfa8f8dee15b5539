"""Calibration and decision rule together: compared out of fold, chosen, and applied to each fold's model.

For fold k both are fitted on the other folds, so that no label of fold k has a part in its answers. A test image has
a prediction of every fold's model: each is calibrated by what was fitted without its fold, then they are averaged,
then the rule that was fitted on all out-of-fold predictions decides.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.decisions.calibration import CALIBRATORS, Calibrator
from foldwise.predictions.decisions.rules import ExpectedF, OneThreshold, Rule, rules_for, takes_values
from foldwise.predictions.metrics import RowMetric, score_folds
from foldwise.predictions.schema import raise_problems
from foldwise.predictions.scoring import Scored
from foldwise.predictions.selection import choose_simplest, paired_error
from foldwise.progress import Progress, silent, stepping


@dataclass(frozen=True)
class Method:
    """A calibrator and a rule, fitted or not."""

    calibrator: Calibrator
    rule: Rule

    @property
    def name(self) -> str:
        return "+".join(filter(None, [self.calibrator.name, self.rule.name]))


@dataclass(frozen=True)
class Outcome:
    """Out-of-fold scores and answers of a method: `answers` is (N, C), of masks (N,) indices of `masks.CANDIDATES`."""

    name: str
    per_fold: dict[int, float]
    overall: float
    answers: np.ndarray

    @property
    def scores(self) -> list[float]:
        """The scores of the folds, in their order."""
        return list(self.per_fold.values())


@dataclass(frozen=True)
class Decision:
    """A method ready for test predictions.

    `calibrators` belong to the folds' models; `common` was fitted on all folds, for models of no fold.
    """

    calibrators: Mapping[int, Calibrator]
    common: Calibrator
    rule: Rule

    def calibrate(self, fold: int, probability: np.ndarray) -> np.ndarray:
        """Calibrated predictions (N, C) of the model of this fold."""
        return self.calibrators.get(fold, self.common)(probability)

    def average(self, models: Mapping[int, np.ndarray]) -> np.ndarray:
        """The mean (N, C) of the calibrated predictions (N, C) of each fold's model; NaN takes no part in it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows that no model predicted
            return np.nanmean([self.calibrate(fold, values) for fold, values in models.items()], axis=0)

    def __str__(self) -> str:
        return "+".join(filter(None, [self.common.name, str(self.rule)]))


class Chosen(NamedTuple):
    """The methods that were compared, and the chosen one, fitted on all folds.

    Attributes:
        outcomes: of all methods, out of fold; `place` is the index of the chosen one.
        decision: a `Decision`, of masks a `masks.Cleaning`.
        shares: (C,) of each class, in the ground truth and in the answers out of fold.
    """

    outcomes: list[Outcome]
    place: int
    decision: Any
    shares: dict[str, np.ndarray]

    @property
    def outcome(self) -> Outcome:
        return self.outcomes[self.place]


def choose_decision(
    metric: RowMetric,
    scored: Scored,
    ranks: bool = False,
    exclusive: Sequence[Sequence[str]] | None = None,
    wanted: str | None = None,
    progress: Progress = silent,
) -> Chosen:
    """Compare the methods that suit a metric, and fit the simplest within one standard error of the best.

    Args:
        scored: the out-of-fold rows.
        ranks: the predictions are means of ranks, which have nothing to calibrate.
        exclusive: names of labels that exclude each other, a group each; None: those that the labels show.
        wanted: the name of a method to take whatever the scores say.

    Raises:
        Refusal: there is no `wanted`, `exclusive` or ranks do not suit the metric, or there are fewer than two folds.
    """
    assert metric.task is not None  # set by for_task
    rules = rules_for(metric, _columns(exclusive, metric.classes))
    if exclusive is not None and not any(isinstance(rule, ExpectedF) for rule in rules):
        raise Refusal(f"--exclusive is for the expected F-beta, which {type(metric).__name__} does not have")
    if ranks and not takes_values(metric):
        raise Refusal(f"means of ranks are no probabilities, and {type(metric).__name__} decides by probabilities")
    calibrators = CALIBRATORS[metric.task.exclusive] if metric.task.probabilities and not ranks else (Calibrator(),)
    methods = [Method(calibrator, rule) for calibrator in calibrators for rule in rules]
    check_wanted(wanted, [method.name for method in methods])
    outcomes = compare(calibrators, rules, metric, scored, progress)
    place = choose(outcomes, metric.greater_is_better, wanted)
    shares = {"ground truth": scored.target.mean(axis=0), "out of fold": outcomes[place].answers.mean(axis=0)}
    return Chosen(outcomes, place, fit_decision(methods[place], metric, scored), shares)


def compare(
    calibrators: Sequence[Calibrator],
    rules: Sequence[Rule],
    metric: RowMetric,
    scored: Scored,
    progress: Progress = silent,
) -> list[Outcome]:
    """The score of each calibrator with each rule, fitted for each fold on the others; simple calibrators first.

    Raises:
        Refusal: there are fewer than two folds.
    """
    target, probability, folds, rows = scored
    check_folds(folds)
    done = stepping(progress, "deciding out of fold", len(calibrators) * len(np.unique(folds)))
    outcomes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that a fold lacks: the run's report names them
        for calibrator in calibrators:
            answers = [np.zeros(target.shape) for _ in rules]
            for fold in np.unique(folds):
                own = folds == fold
                fitted = calibrator.fit(target[~own], probability[~own])
                known, new = fitted(probability[~own]), fitted(probability[own])
                for rule, answer in zip(rules, answers, strict=True):
                    answer[own] = rule.fit(metric, target[~own], known, rows[~own]).decide(new)
                done()
            for rule, answer in zip(rules, answers, strict=True):
                name = Method(calibrator, rule).name
                outcomes.append(Outcome(name, *score_folds(metric, target, answer, folds, rows), answer))
    return outcomes


def check_folds(folds: np.ndarray) -> None:
    """Refuse fewer than two folds."""
    if len(np.unique(folds)) < 2:
        raise Refusal("post-processing is fitted out of fold, for which there must be two folds or more")


def fit_decision(method: Method, metric: RowMetric, scored: Scored) -> Decision:
    """Fit a method for the test: a calibrator for each fold's model, and one rule on all out-of-fold rows."""
    target, probability, folds, rows = scored
    calibrators, calibrated = {}, np.zeros(probability.shape)
    for fold in np.unique(folds).tolist():
        own = folds == fold
        calibrators[fold] = method.calibrator.fit(target[~own], probability[~own])
        calibrated[own] = calibrators[fold](probability[own])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rule = method.rule.fit(metric, target, calibrated, rows)
    return Decision(calibrators, method.calibrator.fit(target, probability), rule)


def choose(outcomes: Sequence[Outcome], greater_is_better: bool, wanted: str | None = None) -> int:
    """The index of the simplest outcome within one standard error of the best, or of the one that is wanted.

    Raises:
        Refusal: none has a score in every fold.
    """
    if wanted is not None:
        return [outcome.name for outcome in outcomes].index(wanted)
    return choose_simplest(np.array([outcome.scores for outcome in outcomes]), greater_is_better)


def check_wanted(wanted: str | None, names: Sequence[str]) -> None:
    """Refuse a --decision that is none of the names."""
    if wanted is not None and wanted not in names:
        raise Refusal(f"there is no decision {wanted}; here there are {', '.join(names)}")


def bayes_notes(outcomes: Sequence[Outcome], greater_is_better: bool) -> list[str]:
    """A sentence for each calibration with which the expected F-beta rule loses to one tuned threshold."""
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
            notes.append(f"{name}, the Bayes rule, loses {loss:.4f} ± {error:.4f} to {other.name}: {verdict}")
    return notes


def _columns(groups: Sequence[Sequence[str]] | None, classes: Sequence[str]) -> list[tuple[int, ...]] | None:
    """The column numbers of groups of labels; None stays None."""
    if groups is None:
        return None
    named = [name for group in groups for name in group]
    problems = [f"there is no class {name}" for name in named if name not in classes]
    problems += [f"{name} is named twice" for name in sorted({name for name in named if named.count(name) > 1})]
    problems += [f"{' '.join(group)} is one label, which excludes nothing" for group in groups if len(group) < 2]
    raise_problems("--exclusive", problems)
    return [tuple(classes.index(name) for name in group) for group in groups]
