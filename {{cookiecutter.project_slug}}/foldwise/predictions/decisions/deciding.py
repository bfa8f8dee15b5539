"""Calibration and decision together: compared out of fold, chosen, and applied to each fold's model.

For fold k both are fitted on the other folds, so that no label of fold k has a part in its answers. A test image has
a prediction from every fold's model: each is calibrated by what was fitted without its fold, then they are averaged,
then the rule that was fitted on all out-of-fold predictions decides.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.decisions.calibration import CALIBRATORS, Calibrator
from foldwise.predictions.decisions.rules import ExpectedF, OneThreshold, Rule, rules_for
from foldwise.predictions.metrics import RowMetric, score_folds
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
class Candidates:
    """What is compared: each calibrator with each rule, none fitted, the simplest first."""

    calibrators: Sequence[Calibrator]
    rules: Sequence[Rule]

    @property
    def methods(self) -> list[Method]:
        """In the order of `compare`'s outcomes."""
        return [Method(calibrator, rule) for calibrator in self.calibrators for rule in self.rules]


def candidates_for(
    metric: RowMetric,
    ranks: bool = False,
    exclusive: Sequence[tuple[int, ...]] | None = None,
    wanted: str | None = None,
) -> Candidates:
    """The calibrators and rules that suit a metric, ready for its task.

    Args:
        ranks: the predictions are ranks, which have nothing to calibrate.
        exclusive: as in `ExpectedF`.
        wanted: the name of the one that will be taken; None: it is chosen.

    Raises:
        Refusal: there is no `wanted`, or `exclusive` has no use here.
    """
    rules = rules_for(metric, exclusive)
    if exclusive is not None and not any(isinstance(rule, ExpectedF) for rule in rules):
        raise Refusal(f"--exclusive is for the expected F-beta, which {type(metric).__name__} does not have")
    assert metric.task is not None  # set by for_task
    nothing = ranks or not metric.task.probabilities
    candidates = Candidates(CALIBRATORS[metric.task.exclusive][: 1 if nothing else None], rules)
    check_wanted(wanted, [method.name for method in candidates.methods])
    return candidates


@dataclass(frozen=True)
class Outcome:
    """What a method scored and answered out of fold.

    `answers` is (N, C), of masks (N,) which of the `masks.CANDIDATES` each is.
    """

    name: str
    per_fold: dict[int, float]
    overall: float
    answers: np.ndarray

    @property
    def scores(self) -> list[float]:
        """Those of the folds, in their order."""
        return list(self.per_fold.values())


@dataclass(frozen=True)
class Decision:
    """A method ready for test predictions.

    `calibrators` belong to the models of the folds; `common` was fitted on all folds, for models of no fold.
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
    """The outcomes that were compared, the place of the chosen one, and its decision, fitted on all folds: a
    `Decision`, or of masks a `masks.Cleaning`."""

    outcomes: list[Outcome]
    place: int
    decision: Any

    @property
    def outcome(self) -> Outcome:
        return self.outcomes[self.place]


def choose_decision(
    metric: RowMetric,
    scored: Scored,
    ranks: bool = False,
    exclusive: Sequence[tuple[int, ...]] | None = None,
    wanted: str | None = None,
    progress: Progress = silent,
) -> Chosen:
    """Compare the decisions that suit a metric, choose one, and fit it; arguments as in `candidates_for`.

    Raises:
        Refusal: there is no `wanted`, `exclusive` has no use here, or there are fewer than two folds.
    """
    candidates = candidates_for(metric, ranks, exclusive, wanted)
    done = stepping(progress, "deciding out of fold", len(candidates.calibrators) * len(np.unique(scored.folds)))
    outcomes = compare(candidates.calibrators, candidates.rules, metric, scored, done)
    place = choose(outcomes, metric.greater_is_better, wanted)
    return Chosen(outcomes, place, fit_decision(candidates.methods[place], metric, scored))


def compare(
    calibrators: Sequence[Calibrator],
    rules: Sequence[Rule],
    metric: RowMetric,
    scored: Scored,
    done: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """The score of each calibrator with each rule, fitted for each fold on the others; simple calibrators first.

    Args:
        scored: the out-of-fold rows.
        done: called after each fold of each calibrator, for a progress bar.

    Raises:
        Refusal: there are fewer than two folds.
    """
    target, probability, folds, rows = scored
    check_folds(folds)
    outcomes = []
    with warnings.catch_warnings():  # the run's report has said which classes a fold lacks
        warnings.simplefilter("ignore")
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
        raise Refusal("decisions are fitted out of fold, for which there must be two folds or more")


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
    """The place of the simplest outcome within one standard error of the best, or of the one that is wanted.

    Raises:
        Refusal: none has a score in every fold.
    """
    if wanted is not None:
        return [outcome.name for outcome in outcomes].index(wanted)
    return choose_simplest(np.array([outcome.scores for outcome in outcomes]), greater_is_better)


def check_wanted(wanted: str | None, names: Sequence[str]) -> None:
    """Refuse a decision that is none of the names.

    Raises:
        Refusal: it is none.
    """
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
            told = "its probabilities are not to be trusted" if loss > error else "within one standard error"
            notes.append(f"{name}, the Bayes rule, loses {loss:.4f} ± {error:.4f} to {other.name}: {told}")
    return notes
