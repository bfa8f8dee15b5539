"""Retrieval: an image becomes a vector, and the identities of the nearest vectors are its answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.fields import Field
from foldwise.data.problems import has_stray_spaces
from foldwise.errors import Refusal
from foldwise.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from foldwise.data.problems import Check

SHORTEST = 1e-6  # length of a vector that still has a direction


class Retrieval(Task):
    """Identities of animals, people or things; the values are vectors (D,) of length 1, compared by their cosine.

    Targets (N, 1) int64 are indices of identities: one column each would not fit into memory.
    """

    name, column, metric, kind = "retrieval", "label", "map_at_k", "vectors"
    exclusive, fewest = True, 2
    field = Field("codes", train_only=True)
    metrics = ("map_at_k", "recall_at_k")

    def read_target(
        self, raw: pd.DataFrame, columns: Sequence[str], soft: bool, names: list[str] | None, check: "Check"
    ) -> tuple[list[str] | None, np.ndarray | None]:
        if soft:
            check.problems.append("retrieval needs one column, with the names: set data.columns.target to that name")
            return names, None
        labels = text_column(raw[columns[0]])
        check.rows(labels == "", "the label is empty")
        stray = has_stray_spaces(labels)
        check.rows(stray, lambda row: f"the label {labels.iat[row]!r} has whitespace at its ends or two in a row")
        names = sorted(set(labels)) if names is None else names
        if absent := sorted(set(names) - set(labels)):
            check.problems.append(f"data.classes has names without an image, such as {absent[0]!r}: set it to null")
        codes = pd.Index(names).get_indexer(labels)
        check.rows(
            codes < 0, lambda row: f"unknown label {labels.iat[row]!r}: add it to data.classes, or set that null"
        )
        if len(names) < self.fewest:
            check.problems.append(f"the table has {len(names)} identities; {self.name} needs {self.fewest} or more")
        return names, codes[:, None].astype(np.int64)

    def activate(self, raw: "Tensor") -> "Tensor":
        return _unit(raw.float(), 1)

    def average(self, values: "Tensor", mean: str) -> "Tensor":
        return _unit(values.nanmean(0), 1)

    def problems(self, values: np.ndarray) -> dict[str, np.ndarray]:
        return {**super().problems(values), "have vectors of length 0": np.linalg.norm(values, axis=1) < SHORTEST}

    def clip(self, values: np.ndarray) -> np.ndarray:
        """Scale vectors (N, D) to length 1."""
        return values / np.linalg.norm(values, axis=1, keepdims=True).clip(SHORTEST)

    def count(self, target: np.ndarray) -> np.ndarray:
        """Which identity each row has, (N, C) bool."""
        return target == np.arange(target.max() + 1)

    def strata(self, target: np.ndarray) -> np.ndarray:
        return self.count(target)

    def fallback(self, target: np.ndarray | None, columns: int) -> np.ndarray:
        raise Refusal("retrieval has no vector for an image that cannot be read: leave it out of the table")


def _unit(values: "Tensor", axis: int) -> "Tensor":
    return values / values.norm(dim=axis, keepdim=True).clamp(min=SHORTEST)
