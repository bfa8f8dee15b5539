"""Stacking: one scikit-learn model per column on the sources' predictions (Wolpert 1992, "Stacked generalization").

Inputs for a class: every source's prediction of it, the sources' mean prediction of all classes, and optional metadata.
Hyperparameters are cross-validated within the folds that a model is fitted on.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from foldwise.predictions.ensembles.blending import EDGE, Examples, Method
from foldwise.tasks import Task, find_task

INNER_PARTS = 3  # parts into which the folds are merged to choose a hyperparameter
CHOOSING_ROWS = 8_000  # sampled to choose a hyperparameter; all of 40,000 rows would take three times as long


@dataclass(frozen=True)
class Learner:
    """A kind of estimator for a single class.

    Attributes:
        make: returns an untrained estimator.
        grid: values to try, most regularised first; the first is the fallback where the data do not allow a choice.
        scoring: scikit-learn's name of the score to choose by.
        odds: use log-odds instead of probabilities as inputs.
    """

    make: Callable[[], Any]
    grid: dict[str, list[Any]]
    scoring: str = "neg_log_loss"
    odds: bool = False


@dataclass(frozen=True)
class Stack:
    """Fitted stacking: one estimator per class."""

    estimators: list[Any]
    odds: bool
    task: Task
    weights: None = None

    def predict(self, probability: np.ndarray, extra: np.ndarray) -> np.ndarray:
        """Predict (N, C) from sources (M, N, C) and metadata (N, F); exclusive classes sum to 1."""
        inputs = class_inputs(probability, extra, self.odds)
        columns = [_predict(estimator, inputs(index)) for index, estimator in enumerate(self.estimators)]
        values = self.task.clip(np.stack(columns, axis=1).astype(np.float32))
        if not self.task.exclusive:
            return values
        values = values.clip(EDGE, 1)
        return values / values.sum(axis=1, keepdims=True)


def class_inputs(probability: np.ndarray, extra: np.ndarray, odds: bool) -> Callable[[int], np.ndarray]:
    """Return a function from a class index to its inputs (N, M + C + F) float32."""
    from scipy.special import logit

    def link(values: np.ndarray) -> np.ndarray:
        return logit(values.clip(EDGE, 1 - EDGE)) if odds else values

    means = np.zeros(probability.shape[1:], np.float32)
    for source in probability:
        means += link(source) / np.float32(len(probability))
    shared = np.hstack([means, extra])
    return lambda index: np.hstack([link(probability[:, :, index]).T, shared])


def fit_stack(learner: Learner, examples: Examples) -> Stack:
    """Fit one estimator per column, for probabilities on hardened targets."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    task = find_task(examples.table.task)
    target = examples.metric.hard(examples.target) if task.probabilities else examples.target.astype(np.float64)
    inputs = class_inputs(examples.probability, examples.extra, learner.odds)
    parts = np.unique(examples.folds, return_inverse=True)[1] % INNER_PARTS
    # Classes are fitted in parallel; nested BLAS and OpenMP threads would make that ten times slower.
    # Limit and filter (solvers that did not converge) are set here because they apply to all threads.
    with threadpool_limits(1, "blas"), warnings.catch_warnings(action="ignore"):
        estimators = Parallel(n_jobs=-1, prefer="threads")(
            delayed(_fit_class)(learner, inputs, index, target[:, index], parts) for index in range(target.shape[1])
        )
    return Stack(list(estimators), learner.odds, task)


def _fit_class(
    learner: Learner, inputs: Callable[[int], np.ndarray], index: int, target: np.ndarray, parts: np.ndarray
) -> Any:
    """Choose the hyperparameter by cross-validation over `parts` (N,) and fit; a constant if all targets are equal."""
    from sklearn.dummy import DummyRegressor
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from threadpoolctl import threadpool_limits

    known = np.isfinite(target)
    values, target, parts = inputs(index)[known], target[known], parts[known]
    if len(np.unique(target)) < 2:
        return DummyRegressor().fit(values, target)
    sample = np.random.default_rng(0).permutation(len(target))[:CHOOSING_ROWS]
    sampled, part_of = target[sample], parts[sample]
    mixed = [len(np.unique(sampled[part_of == part])) > 1 for part in np.unique(part_of)]
    chosen = {name: options[0] for name, options in learner.grid.items()}
    with threadpool_limits(1, "openmp"):  # applies to the calling thread only
        if len(mixed) > 1 and all(mixed):
            cv = PredefinedSplit(part_of)
            search = GridSearchCV(learner.make(), learner.grid, cv=cv, scoring=learner.scoring, refit=False)
            chosen = search.fit(values[sample], sampled).best_params_
        return learner.make().set_params(**chosen).fit(values, target)


def _predict(estimator: Any, values: np.ndarray) -> np.ndarray:
    """Probabilities (N,) of a classifier, or values of a regressor."""
    if hasattr(estimator, "predict_proba"):
        return estimator.predict_proba(values)[:, 1]
    return estimator.predict(values)


def _linear() -> Any:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), Ridge())


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", max_iter=100))


def _boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_leaf_nodes=8, early_stopping=False, random_state=0)


def _boosting_numbers() -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_leaf_nodes=8, early_stopping=False, random_state=0)


LINEAR = Learner(_linear, {"ridge__alpha": [1000.0, 100.0, 10.0, 1.0]}, scoring="neg_mean_squared_error")
LOGISTIC = Learner(_logistic, {"logisticregression__C": [0.001, 0.01, 0.1, 1.0]}, odds=True)
BOOSTING = Learner(_boosting, {"max_iter": [20, 50, 100]})
BOOSTING_NUMBERS = Learner(_boosting_numbers, BOOSTING.grid, scoring="neg_mean_squared_error")

STACKERS = (
    Method("linear", "linear regression (ridge)", partial(fit_stack, LINEAR)),
    Method("logistic", "logistic regression", partial(fit_stack, LOGISTIC)),
    Method("boosting", "gradient boosting", partial(fit_stack, BOOSTING)),
)
STACKERS_OF_VALUES = (STACKERS[0], Method("boosting", "gradient boosting", partial(fit_stack, BOOSTING_NUMBERS)))
