"""Stacking: for each class a model from scikit-learn whose inputs are the predictions of the sources.

Wolpert 1992, "Stacked generalization". The inputs of a class are that class's value of every source, the mean over the
sources of every class (which classes go together), and metadata columns of the table where they are asked for.
`STACKERS` lists the learners, the simplest first. Each hyperparameter is chosen by cross-validation over the folds
that the learner is fitted on, and on no others, by some of their rows where there are many.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from foldwise.predictions.ensembles.blending import EDGE, Examples, Method

INNER_PARTS = 3  # folds are put together to so many parts for choosing a hyperparameter
CHOOSING_ROWS = 8_000  # by which it is chosen, drawn at random: all of 40,000 would take three times as long for it


@dataclass(frozen=True)
class Learner:
    """A model of one class.

    Attributes:
        make: an untrained estimator.
        grid: what is tried, the most cautious value first: it is taken where there is too little to choose by.
        scoring: what chooses, a name of scikit-learn's.
        odds: the inputs are log-odds, and not probabilities.
    """

    make: Callable[[], Any]
    grid: dict[str, list[Any]]
    scoring: str = "neg_log_loss"
    odds: bool = False


@dataclass(frozen=True)
class Stack:
    """Fitted stacking: one estimator a class."""

    estimators: list[Any]
    odds: bool
    exclusive: bool
    weights: None = None

    def predict(self, probability: np.ndarray, extra: np.ndarray) -> np.ndarray:
        """(N, C) from sources (M, N, C) and metadata (N, F); exclusive classes sum to 1."""
        inputs = class_inputs(probability, extra, self.odds)
        columns = [_predict(estimator, inputs(index)) for index, estimator in enumerate(self.estimators)]
        values = np.stack(columns, axis=1).astype(np.float32).clip(0, 1)
        if not self.exclusive:
            return values
        values = values.clip(EDGE, 1)
        return values / values.sum(axis=1, keepdims=True)


def class_inputs(probability: np.ndarray, extra: np.ndarray, odds: bool) -> Callable[[int], np.ndarray]:
    """A function that gives the inputs (N, M + C + F) float32 of a class by its number."""
    from scipy.special import logit

    def link(values: np.ndarray) -> np.ndarray:
        return logit(values.clip(EDGE, 1 - EDGE)) if odds else values

    means = np.zeros(probability.shape[1:], np.float32)
    for source in probability:
        means += link(source) / np.float32(len(probability))
    shared = np.hstack([means, extra])
    return lambda index: np.hstack([link(probability[:, :, index]).T, shared])


def fit_stack(learner: Learner, examples: Examples) -> Stack:
    """Fit an estimator a class. Soft targets are taken as hard ones."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    target = examples.metric.hard(examples.target)
    inputs = class_inputs(examples.probability, examples.extra, learner.odds)
    parts = np.unique(examples.folds, return_inverse=True)[1] % INNER_PARTS
    # The classes are the parallelism: threads of BLAS and OpenMP beneath them wait for each other, ten times as long.
    with threadpool_limits(1, "blas"), warnings.catch_warnings():  # here: all threads share limits and filters
        warnings.simplefilter("ignore")  # of solvers that did not converge
        estimators = Parallel(n_jobs=-1, prefer="threads")(
            delayed(_fit_class)(learner, inputs, index, target[:, index], parts) for index in range(target.shape[1])
        )
    return Stack(list(estimators), learner.odds, examples.exclusive)


def _fit_class(
    learner: Learner, inputs: Callable[[int], np.ndarray], index: int, target: np.ndarray, parts: np.ndarray
) -> Any:
    """Choose the hyperparameter and fit an estimator; a class that all rows have, or none, gets its share.

    Args:
        target: (N,) bool.
        parts: (N,), held out in turn for choosing.
    """
    from sklearn.dummy import DummyRegressor
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from threadpoolctl import threadpool_limits

    values = inputs(index)
    if target.all() or not target.any():
        return DummyRegressor().fit(values, target)
    some = np.random.default_rng(0).permutation(len(target))[:CHOOSING_ROWS]
    tried, of_tried = target[some], parts[some]
    both = [tried[of_tried == part].any() and not tried[of_tried == part].all() for part in np.unique(of_tried)]
    chosen = {name: options[0] for name, options in learner.grid.items()}
    with threadpool_limits(1, "openmp"):  # of the calling thread
        if len(both) > 1 and all(both):
            cv = PredefinedSplit(of_tried)
            search = GridSearchCV(learner.make(), learner.grid, cv=cv, scoring=learner.scoring, refit=False)
            chosen = search.fit(values[some], tried).best_params_
        return learner.make().set_params(**chosen).fit(values, target)


def _predict(estimator: Any, values: np.ndarray) -> np.ndarray:
    """(N,) the probability of a classifier, or the value of a regression."""
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


LINEAR = Learner(_linear, {"ridge__alpha": [1000.0, 100.0, 10.0, 1.0]}, scoring="neg_mean_squared_error")
LOGISTIC = Learner(_logistic, {"logisticregression__C": [0.001, 0.01, 0.1, 1.0]}, odds=True)
BOOSTING = Learner(_boosting, {"max_iter": [20, 50, 100]})

STACKERS = (
    Method("linear", "linear regression (ridge)", partial(fit_stack, LINEAR)),
    Method("logistic", "logistic regression", partial(fit_stack, LOGISTIC)),
    Method("boosting", "gradient boosting", partial(fit_stack, BOOSTING)),
)
