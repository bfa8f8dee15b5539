"""From what the members said to the answers of a submission."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from foldwise.bundle.recipe import Recipe
from foldwise.predictions.decisions.deciding import Decision
from foldwise.predictions.decisions.masks import Cleaning


def decide_rows(recipe: Recipe, values: np.ndarray, units: Sequence[str] | None) -> np.ndarray:
    """Answers (U, C) of units, or of the images where there are none, in the order of their first images.

    As ensemble.py and submit.py do: runs are blended within each fold, images of a unit averaged, each fold's blend
    calibrated by its own, the folds averaged, and that is decided. A unit none of whose images could be used is
    answered by the prior.

    Args:
        values: (N, members, C) of the members of the recipe, NaN where one did not predict.
        units: (N,) names.
    """
    decision, members = recipe.decider, recipe.members
    assert isinstance(decision, Decision)
    places, _ = pd.factorize(np.arange(len(values)) if units is None else np.asarray(units, object))
    predicted = np.isfinite(values).all(axis=2)
    by_fold = {fold: np.full((len(values), values.shape[2]), np.nan) for _, fold in members}
    for pattern in np.unique(predicted, axis=0):  # rows of the same members; more than one only where time was short
        rows = (predicted == pattern).all(axis=1)
        present = [member for member, there in zip(members, pattern, strict=True) if there]
        blended = recipe.blend_folds(present, values[rows][:, pattern].transpose(1, 0, 2))
        for fold, probability in blended.items():
            by_fold[fold][rows] = probability
    units_by_fold = {fold: pd.DataFrame(each).groupby(places).mean().to_numpy() for fold, each in by_fold.items()}
    mean = decision.average(units_by_fold)
    return decision.rule.decide(np.where(np.isfinite(mean), mean, recipe.prior))


def decide_mask(recipe: Recipe, members: Sequence[tuple[int, int]], maps: np.ndarray) -> np.ndarray:
    """The mask (H, W) of the maps (A, C, H, W) of these members: blended within folds, averaged, cleaned."""
    cleaning = recipe.decider
    assert isinstance(cleaning, Cleaning)
    blended = recipe.blend_folds(members, maps)
    return cleaning(sum(blended.values(), np.zeros(maps.shape[1:], np.float32)) / len(blended))
