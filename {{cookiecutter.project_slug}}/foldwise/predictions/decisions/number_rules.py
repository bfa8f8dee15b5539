"""Decision rules for numbers, and cut points between ordered grades."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np

from foldwise.data.targets import as_numbers
from foldwise.predictions.decisions.rules import Rows, Rule
from foldwise.predictions.metrics import QuadraticKappa, RowMetric
from foldwise.predictions.metrics.base import Score
from foldwise.predictions.schema import raise_problems

STEPS = (1, 0.5, 0.25, 0.1, 0.05, 0.01)  # that numbers are rounded to
CANDIDATES = 40  # quantiles that are tried as a cut point
RESAMPLES, SURE = 20, 2.0  # of rows; a gain must be so many standard deviations over them
ROUNDS = 10

Sum = tuple[float | str, tuple[int, ...]]  # a number or the name of a column, and the columns that add up to it


@dataclass(frozen=True)
class Values(Rule):
    """Unchanged numbers."""

    name: ClassVar[str] = "values"


@dataclass(frozen=True)
class Range(Rule):
    """Numbers within the range of the targets of their column."""

    low: np.ndarray = field(default_factory=lambda: np.zeros(1))
    high: np.ndarray = field(default_factory=lambda: np.zeros(1))
    name: ClassVar[str] = "range"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        return replace(self, low=np.nanmin(target, axis=0), high=np.nanmax(target, axis=0))

    def decide(self, probability: np.ndarray) -> np.ndarray:
        return probability.clip(self.low, self.high)

    def __str__(self) -> str:
        return f"{self.name} " + ", ".join(f"{a:.4g} to {b:.4g}" for a, b in zip(self.low, self.high, strict=True))


@dataclass(frozen=True)
class Rounded(Range):
    """As `Range`, and rounded to the largest step that all targets of the column are multiples of; 0: not rounded."""

    step: np.ndarray = field(default_factory=lambda: np.zeros(1))
    name: ClassVar[str] = "rounded"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        step = [next((s for s in STEPS if _are_multiples(column, s)), 0.0) for column in target.T]
        return replace(super().fit(metric, target, probability, rows), step=np.array(step, np.float64))

    def decide(self, probability: np.ndarray) -> np.ndarray:
        step = np.where(self.step > 0, self.step, 1)
        rounded = np.where(self.step > 0, np.round(probability / step) * step, probability)
        return super().decide(rounded)

    def __str__(self) -> str:
        return f"{self.name} to {' '.join(f'{step:g}' for step in self.step)}"


@dataclass(frozen=True)
class Sums(Rule):
    """Columns moved to fulfil declared sums, those with a larger squared error further (generalised least squares).

    Args:
        equations: (K, 1 + C): each row a right-hand side and the coefficients of the columns.
        error: (C,) mean squared error of the columns.
    """

    equations: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    error: np.ndarray = field(default_factory=lambda: np.ones(1))
    name: ClassVar[str] = "sums"

    @classmethod
    def of(cls, sums: Sequence[Sum], columns: Sequence[str]) -> "Sums":
        equations = np.zeros((len(sums), 1 + len(columns)))
        for equation, (total, parts) in zip(equations, sums, strict=True):
            equation[[1 + part for part in parts]] = 1
            if isinstance(total, str):
                equation[1 + columns.index(total)] = -1
            else:
                equation[0] = total
        return cls(equations)

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        return replace(self, error=np.nanmean((probability - target) ** 2, axis=0))

    def decide(self, probability: np.ndarray) -> np.ndarray:
        right, left = self.equations[:, 0], self.equations[:, 1:]
        spread = self.error[:, None] * left.T  # (C, K)
        return probability - (probability @ left.T - right) @ (spread @ np.linalg.pinv(left @ spread)).T


@dataclass(frozen=True)
class GradeCuts(Rule):
    """Cut points between grades, fitted to the metric: of each column of numbers (`first` is its lowest grade)."""

    cuts: Sequence[np.ndarray] = ()
    first: Sequence[int] = ()
    name: ClassVar[str] = "grades"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        cuts, first = [], []
        for number, column in enumerate(target.T):
            known = np.isfinite(column)
            true, value = column[known, None], probability[known, number]
            low, high = int(true.min()), int(true.max())

            def score_of(grade: np.ndarray, true: np.ndarray = true, low: int = low) -> Score:
                return metric.prepare(true, grade[:, None] + float(low))

            first.append(low)
            cuts.append(fit_cuts(value - low, score_of, high - low + 1))
        return replace(self, cuts=tuple(cuts), first=tuple(first))

    def decide(self, probability: np.ndarray) -> np.ndarray:
        columns = zip(probability.T, self.cuts, self.first, strict=True)
        return np.stack([first + np.digitize(value - first, cuts) for value, cuts, first in columns], 1).astype(float)

    def __str__(self) -> str:
        return _describe_cuts(self.name, [cuts + first for cuts, first in zip(self.cuts, self.first, strict=True)])


@dataclass(frozen=True)
class ExpectedGrade(Rule):
    """Cut points of the expected grade, the mean of the grades' numbers 0, 1, 2... by their probabilities."""

    cuts: np.ndarray = field(default_factory=lambda: np.zeros(0))
    name: ClassVar[str] = "grades"

    def fit(self, metric: RowMetric, target: np.ndarray, probability: np.ndarray, rows: Rows = None) -> Self:
        def score_of(grade: np.ndarray) -> Score:
            return metric.prepare(target, np.eye(target.shape[1])[grade])

        return replace(self, cuts=fit_cuts(_expected(probability), score_of, target.shape[1]))

    def decide(self, probability: np.ndarray) -> np.ndarray:
        return np.eye(probability.shape[1], dtype=bool)[np.digitize(_expected(probability), self.cuts)]

    def __str__(self) -> str:
        return _describe_cuts(self.name, [self.cuts])


def number_rules(metric: RowMetric, sums: Sequence[Sum] = ()) -> list[Rule]:
    """List the rules for numbers, simplest first."""
    if isinstance(metric, QuadraticKappa):
        return [Rounded(), GradeCuts()]
    return [Values(), Range(), Rounded(), *([Sums.of(sums, metric.classes)] if sums else [])]


def read_sums(sums: Sequence[Sequence[str]], metric: RowMetric) -> list[Sum]:
    """Read `--sum` options: a number or a column, then the columns that add up to it; refuse others."""
    columns, problems, found = metric.classes, list[str](), list[Sum]()
    if sums and metric.task is not None and metric.task.probabilities:
        problems.append(f"sums are for numbers, and the task is {metric.task.name}")
    for total, *parts in sums:
        problems += [
            f"there is no column {name}; there are {', '.join(columns)}" for name in parts if name not in columns
        ]
        if len(parts) < 2 or len({total, *parts}) <= len(parts):
            problems.append(f"{' '.join([total, *parts])}: give the sum, and two or more other columns")
        number = as_numbers([total])
        if total not in columns and number is None:
            problems.append(f"{total} is neither a number nor one of the columns {', '.join(columns)}")
        if not problems:
            found.append((total if total in columns else float(total), tuple(columns.index(name) for name in parts)))
    raise_problems("--sum", problems)
    return found


def fit_cuts(value: np.ndarray, score_of: Callable[[np.ndarray], Score], grades: int) -> np.ndarray:
    """Find ascending cut points (grades - 1,) of values (N,) by coordinate ascent on a score, greater is better.

    They start half-way between grades. One is moved only if the gain is sure: two standard errors over resampled rows.
    On a few hundred road scenes, cuts of the best score lost 0.07 of kappa on other folds.

    Args:
        score_of: from predicted grades (N,), 0 to grades - 1, to their score as a function of row weights.
    """
    resampled = np.random.default_rng(0).multinomial(len(value), np.full(len(value), 1 / len(value)), RESAMPLES)

    def judge(cuts: np.ndarray) -> np.ndarray:
        score = score_of(np.digitize(value, cuts))
        return np.nan_to_num([score(weight.astype(np.float64)) for weight in resampled], nan=-1.0)

    cuts, tried = np.arange(grades - 1) + 0.5, np.unique(np.quantile(value, np.linspace(0, 1, CANDIDATES)))
    best = judge(cuts)
    for _ in range(ROUNDS):
        before = cuts.copy()
        for index in range(grades - 1):
            others, found = np.delete(cuts, index), list[tuple[float, np.ndarray, np.ndarray]]()
            low, high = others[:index].max(initial=-np.inf), others[index:].min(initial=np.inf)
            for position in tried[(tried > low) & (tried < high)]:
                moved = np.insert(others, index, position)
                scores = judge(moved)
                gain = scores - best
                if gain.mean() > SURE * gain.std(ddof=1):
                    found.append((float(scores.mean()), moved, scores))
            if found:
                _, cuts, best = max(found, key=lambda each: each[0])
        if (cuts == before).all():
            break
    return cuts


def _expected(probability: np.ndarray) -> np.ndarray:
    return probability @ np.arange(probability.shape[1]) / probability.sum(axis=1)


def _are_multiples(column: np.ndarray, step: float) -> bool:
    times = column[np.isfinite(column)].astype(np.float64) / step
    return bool((np.abs(times - np.round(times)) < 1e-3).all())


def _describe_cuts(name: str, columns: Sequence[np.ndarray]) -> str:
    return f"{name} cut at " + "; ".join(" ".join(f"{cut:.3g}" for cut in cuts) for cuts in columns)
