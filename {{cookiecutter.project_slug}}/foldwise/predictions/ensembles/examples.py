"""What methods of putting members together are fitted on, and what a fitted one can do."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from foldwise.data.table import Table
from foldwise.predictions.metrics import RowMetric
from foldwise.tasks import find_task


@dataclass(frozen=True)
class Examples:
    """What a method is fitted on, or predicts: N rows of the table.

    Attributes:
        rows, folds: (N,) row numbers in the table and their folds.
        probability: (M, N, C) float32.
        extra: (N, F) float32 metadata; F is often 0.
        member_scores: of each fold, the (M,) scores of the members by themselves.
    """

    table: Table
    metric: RowMetric
    rows: np.ndarray
    folds: np.ndarray
    probability: np.ndarray
    extra: np.ndarray
    member_scores: dict[int, np.ndarray]

    @property
    def target(self) -> np.ndarray:
        assert self.table.target is not None
        return self.table.target[self.rows]

    @property
    def exclusive(self) -> bool:
        return find_task(self.table.task).exclusive

    def take(self, folds: list[int]) -> Self:
        """The rows of these folds, with nothing of the others."""
        which = np.isin(self.folds, folds)
        return replace(
            self,
            rows=self.rows[which],
            folds=self.folds[which],
            probability=self.probability[:, which],
            extra=self.extra[which],
            member_scores={fold: self.member_scores[fold] for fold in folds},
        )

    def ranking(self) -> np.ndarray:
        """The members (M,), best first, by the mean of their scores over the folds; equals in their order."""
        scores = np.mean(list(self.member_scores.values()), axis=0)
        sign = -1 if self.metric.greater_is_better else 1
        return np.argsort(np.where(np.isnan(scores), np.inf, sign * scores), kind="stable")


class Fitted(Protocol):
    """A method that was fitted; `weights` (M,) are None where there is no one weight a member."""

    @property
    def weights(self) -> np.ndarray | None: ...

    def predict(self, probability: np.ndarray, extra: np.ndarray) -> np.ndarray:
        """(N, C) from members (M, N, C) and metadata (N, F) of rows that one fold's models predicted."""
        ...


@dataclass(frozen=True)
class Method:
    """A way of putting members together: `fit` takes `Examples`, or `MapExamples` for maps. `title` is for people."""

    name: str
    title: str
    fit: Callable[[Any], Fitted]
