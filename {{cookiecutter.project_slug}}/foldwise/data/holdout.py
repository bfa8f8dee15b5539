"""Held-out folds of a model: one (cross-validation), none (full fit) or two (distillation teachers)."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from foldwise.errors import Refusal

# In place of a fold in predictions: a full fit, trained on every row, which nothing can score. (-1 in a table or in
# folds.csv is a row that always trains.)
FULL = -2


@dataclass(frozen=True)
class Holdout:
    """The folds that a model never sees, ascending; rows of fold -1 are always trained."""

    folds: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of its folder in a run: fold3, full, or without-1-3."""
        return fold_name(*self.folds) if len(self.folds) < 2 else "without-" + "-".join(map(str, self.folds))

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        return self.name.replace("-", " ").replace("fold", "fold ")

    @property
    def fold(self) -> int:
        """Its number in predictions and among students: that of its one fold, or FULL."""
        return self.folds[0] if self.folds else FULL

    def trained(self, folds: np.ndarray) -> np.ndarray:
        """The rows that it is trained on, of rows with these folds (N,)."""
        return np.flatnonzero(~np.isin(folds, self.folds))

    def held(self, folds: np.ndarray) -> np.ndarray:
        """The rows that it never sees, of rows with these folds (N,)."""
        return np.flatnonzero(np.isin(folds, self.folds))


def fold_name(fold: int = FULL) -> str:
    """The folder of a fold in a run."""
    return "full" if fold == FULL else f"fold{fold}"


def choose_holdouts(chosen: Any, existing: list[int]) -> list[Holdout]:
    """The models that `fold=` asks for: each fold ("all"), a fold, a list of folds, "full", or "pairs".

    Raises:
        Refusal: a fold that does not exist, or pairs that would leave no row to train on.
    """
    if chosen == "full":
        return [Holdout(())]
    if chosen == "pairs":
        if len(existing) < 3:
            raise Refusal(f"fold=pairs holds out two folds at a time, which needs three; the folds are {existing}")
        return [Holdout(pair) for pair in combinations(existing, 2)]
    wanted = existing if chosen == "all" else chosen if isinstance(chosen, list) else [chosen]
    if not wanted or any(fold not in existing for fold in wanted):
        raise Refusal(
            f"fold={chosen}: the folds are {existing}; give one, a list such as fold=[0,1], fold=all, fold=full for a "
            "full fit, or fold=pairs for teachers"
        )
    return [Holdout((fold,)) for fold in sorted(set(wanted))]
