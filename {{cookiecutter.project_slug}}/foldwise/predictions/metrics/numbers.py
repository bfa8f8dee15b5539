"""Metrics of numbers: computed for each column, whose mean is the score; rows without a known target are left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from foldwise.errors import Refusal
from foldwise.predictions.metrics.base import RowMetric, Score, weighted_mean

if TYPE_CHECKING:
    from foldwise.data.table import Table

EQUAL = "all targets or predictions are equal"


@dataclass(frozen=True, kw_only=True)
class NumberMetric(RowMetric):
    """Base of metrics of numbers."""

    greater_is_better = False
    probabilities = False


@dataclass(frozen=True, kw_only=True)
class Rmse(NumberMetric):
    """Root of the mean squared error."""

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        return self.of_columns(target, probability, _rmse)


@dataclass(frozen=True, kw_only=True)
class Mae(NumberMetric):
    """Mean absolute error."""

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        return self.of_columns(target, probability, lambda true, predicted: weighted_mean(np.abs(true - predicted)))


@dataclass(frozen=True, kw_only=True)
class Rmsle(NumberMetric):
    """Root of the mean squared error of log(1 + x); predictions below 0 count as 0."""

    def for_task(self, task: str, classes: Sequence[str], table: "Table | None" = None) -> Self:
        """As `Metric.for_task`; also refuse targets below 0."""
        ready = super().for_task(task, classes, table)
        if table is not None and table.target is not None and np.nanmin(table.target, initial=0) < 0:
            raise Refusal("RMSLE is for numbers from 0, and the table has targets below: choose metric=rmse or mae")
        return ready

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        return self.of_columns(
            target, probability, lambda true, predicted: _rmse(np.log1p(true), np.log1p(predicted.clip(0)))
        )


@dataclass(frozen=True, kw_only=True)
class Mape(NumberMetric):
    """Mean of the absolute error divided by the target's size; targets of 0 are left out."""

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        def column(true: np.ndarray, predicted: np.ndarray) -> Score:
            return weighted_mean(np.abs(true - predicted) / np.abs(true))

        return self.of_columns(np.where(target == 0, np.nan, target), probability, column, "all targets are 0")


@dataclass(frozen=True, kw_only=True)
class R2(NumberMetric):
    """Coefficient of determination: 1 minus the squared error divided by that of the mean target."""

    greater_is_better = True

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        def column(true: np.ndarray, predicted: np.ndarray) -> Score:
            def score(weight: np.ndarray) -> float:
                if not _differ(true, weight):
                    return float("nan")
                error, spread = (true - predicted) ** 2, (true - weight @ true / weight.sum()) ** 2
                return float(1 - weight @ error / (weight @ spread))

            return score

        return self.of_columns(target, probability, column, "all targets are equal")


@dataclass(frozen=True, kw_only=True)
class Pearson(NumberMetric):
    """Pearson's correlation."""

    greater_is_better = True
    pooled = False

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        return self.of_columns(target, probability, _pearson, EQUAL)


@dataclass(frozen=True, kw_only=True)
class Spearman(NumberMetric):
    """Spearman's rank correlation; equal numbers share the mean of their ranks."""

    greater_is_better = True
    pooled = False

    def prepare(self, target: np.ndarray, probability: np.ndarray) -> Score:
        return self.of_columns(target, probability, _spearman, EQUAL)


def row_errors(target: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean absolute error (N,) over the known columns of each row, in standard deviations of each; 0 if none is."""
    known, scale = np.isfinite(target), np.nanstd(target, axis=0)
    errors = np.where(known, np.abs(target - predicted), 0) / np.where(scale > 0, scale, 1)
    return errors.sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def _rmse(true: np.ndarray, predicted: np.ndarray) -> Score:
    mean = weighted_mean((true - predicted) ** 2)
    return lambda weight: float(np.sqrt(mean(weight)))


def _pearson(true: np.ndarray, predicted: np.ndarray) -> Score:
    return lambda weight: _correlation(true, predicted, weight)


def _spearman(true: np.ndarray, predicted: np.ndarray) -> Score:
    levels = [np.unique(values, return_inverse=True)[1] for values in (true, predicted)]
    return lambda weight: _correlation(_ranks(levels[0], weight), _ranks(levels[1], weight), weight)


def _ranks(level: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mid-ranks of rows by their level, 0, 1, 2..., each as often as its weight says."""
    count = np.bincount(level, weights=weight)
    return (np.cumsum(count) - count / 2)[level]


def _correlation(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> float:
    if not (_differ(first, weight) and _differ(second, weight)):
        return float("nan")
    first, second = (values - weight @ values / weight.sum() for values in (first, second))
    return float(weight @ (first * second) / np.sqrt((weight @ first**2) * (weight @ second**2)))


def _differ(values: np.ndarray, weight: np.ndarray) -> bool:
    counted = values[weight > 0]
    return bool((counted != counted[:1]).any())
