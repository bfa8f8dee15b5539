"""Held-out folds of a model: one (cross-validation), none (full fit) or two (distillation teachers)."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from foldwise.errors import Refusal

# The "fold" of a full fit in predictions: trained on every row, so nothing can score it. (-1 in a table or in folds.csv
# marks a row that always trains.)
FULL = -2
GOLD = -3  # the "fold" of gold rows: never trained, and scored by the models of all folds


@dataclass(frozen=True)
class Holdout:
    """The folds that a model is not trained on, ascending; rows of fold -1 always train, gold rows never."""

    folds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the model's folder in a run: fold3, full or without-1-3."""
        return fold_name(*self.folds) if len(self.folds) < 2 else "without-" + "-".join(map(str, self.folds))

    @property
    def title(self) -> str:
        return self.name.replace("-", " ").replace("fold", "fold ")

    @property
    def fold(self) -> int:
        """The fold of its predictions and of its student: the held-out fold, or FULL."""
        return self.folds[0] if self.folds else FULL

    def trained(self, folds: np.ndarray) -> np.ndarray:
        """Indices of the training rows, given the fold of each row (N,)."""
        return np.flatnonzero(~np.isin(folds, (*self.folds, GOLD)))

    def held(self, folds: np.ndarray) -> np.ndarray:
        """Indices of the held-out rows, given the fold of each row (N,)."""
        return np.flatnonzero(np.isin(folds, self.folds))


def fold_name(fold: int = FULL) -> str:
    return "full" if fold == FULL else f"fold{fold}"


def choose_holdouts(chosen: Any, existing: list[int]) -> list[Holdout]:
    """Parse `fold=`: "all", a fold, a list of folds, "full" or "pairs"; returns one holdout per model to train."""
    if chosen == "full":
        return [Holdout(())]
    if chosen == "pairs":
        if len(existing) < 3:
            raise Refusal(f"fold=pairs holds out two folds at a time, so it needs three; the folds are {existing}")
        return [Holdout(pair) for pair in combinations(existing, 2)]
    folds = existing if chosen == "all" else chosen if isinstance(chosen, list) else [chosen]
    if not folds or any(fold not in existing for fold in folds):
        raise Refusal(
            f"fold={chosen}: the folds are {existing}; use one of them, a list such as fold=[0,1], fold=all, fold=full "
            "for a full fit, or fold=pairs for distillation teachers"
        )
    return [Holdout((fold,)) for fold in sorted(set(folds))]
