"""The decision of a bundle: compared and fitted, as submit.py does, out of fold on what is bundled."""

from collections.abc import Sequence

from foldwise.bundle.sources import Parts
from foldwise.bundle.values import blended_maps, blended_rows
from foldwise.predictions.decisions.deciding import Chosen, choose_decision
from foldwise.predictions.decisions.masks import choose_cleaning
from foldwise.predictions.ground_truth import GroundTruth, check_predictions
from foldwise.predictions.scoring import by_unit


def decide(
    found: Parts, truth: GroundTruth, wanted: str | None = None, exclusive: Sequence[Sequence[str]] | None = None
) -> Chosen:
    """Compare the decisions for this task and metric, and fit the simplest within one standard error of the best.

    Args:
        wanted: the name of another one to take.
        exclusive: as in `choose_decision`.

    Raises:
        Refusal: there is no such decision, there are fewer than two folds, or predictions and truth do not go
            together.
    """
    for part in found.parts:
        check_predictions(part.oof, truth)
    if truth.task.kind == "maps":
        return choose_cleaning(truth.metric, blended_maps(found, truth), wanted)
    rows, predicted = blended_rows(found, truth)
    scored = by_unit(truth.table, rows, predicted, truth.folds[rows])
    return choose_decision(truth.metric, scored, found.blend == "rank", exclusive, wanted)
