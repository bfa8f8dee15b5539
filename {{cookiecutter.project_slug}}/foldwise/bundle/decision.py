"""The decision of a bundle: compared and fitted, as submit.py does, out of fold on what is bundled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foldwise.bundle.parameters import Decider
from foldwise.bundle.sources import Parts
from foldwise.bundle.values import blended_maps, blended_rows
from foldwise.errors import Refusal
from foldwise.predictions.decisions.deciding import (
    Outcome,
    candidates_for,
    check_wanted,
    choose,
    compare,
    fit_decision,
)
from foldwise.predictions.decisions.masks import CLEANINGS, compare_cleaning, measure_candidates
from foldwise.predictions.decisions.material import exclusive_columns
from foldwise.predictions.decisions.rules import takes_values
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.truth import Truth, check_oof


@dataclass(frozen=True)
class Decided:
    """The decisions that were compared, the place of the one that was chosen, and that one, fitted on all folds."""

    outcomes: list[Outcome]
    place: int
    decider: Decider

    @property
    def score(self) -> float:
        return self.outcomes[self.place].overall


def decide(
    found: Parts, truth: Truth, wanted: str | None = None, exclusive: Sequence[Sequence[str]] | None = None
) -> Decided:
    """Compare the decisions for this task and metric, and fit the simplest within one standard error of the best.

    Args:
        wanted: the name of another one to take.
        exclusive: as in `material.Request`.

    Raises:
        Refusal: there is no such decision, there are fewer than two folds, or predictions and truth do not go
            together.
    """
    for part in found.parts:
        check_oof(part.oof, truth)
    if truth.task.kind == "maps":
        return _decide_maps(found, truth, wanted)
    metric = truth.metric
    if found.blend == "rank" and not takes_values(metric):
        raise Refusal(f"means of ranks are no probabilities, and {type(metric).__name__} decides by probabilities")
    rows, predicted = blended_rows(found, truth)
    scored = by_unit(truth.table, rows, predicted, truth.folds[rows])
    groups = exclusive_columns(exclusive, list(truth.table.classes))
    candidates = candidates_for(metric, found.blend == "rank", groups, wanted)
    outcomes = compare(candidates.calibrators, candidates.rules, metric, scored)
    place = choose(outcomes, metric.greater_is_better, wanted)
    return Decided(outcomes, place, fit_decision(candidates.methods[place], metric, scored))


def _decide_maps(found: Parts, truth: Truth, wanted: str | None) -> Decided:
    check_wanted(wanted, CLEANINGS)
    evidence, folds = [], []
    for mask, probability, fold in blended_maps(found, truth):
        evidence.append(measure_candidates(truth.metric, mask, probability)[0])
        folds.append(fold)
    outcomes, cleanings = compare_cleaning(truth.metric, np.stack(evidence), np.array(folds))
    place = choose(outcomes, truth.metric.greater_is_better, wanted)
    return Decided(outcomes, place, cleanings[place])
