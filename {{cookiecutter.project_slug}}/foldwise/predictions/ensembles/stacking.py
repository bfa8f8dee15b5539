"""Stacking: models on the sources' predictions (Wolpert 1992, "Stacked generalization"), fitted and turned into arrays.

A scikit-learn model of each class, or one network of all classes (`network`); `stack.Inputs` says on what. All
hyperparameters are cross-validated within the folds that a model is fitted on.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from foldwise.predictions.ensembles.blending import Examples, Method
from foldwise.predictions.ensembles.stack import Dense, Inputs, Model, Stack, Trees, codes, unit_means
from foldwise.tasks import find_task

INNER_PARTS = 3  # parts into which the folds are merged to choose a hyperparameter
CHOOSING_ROWS = 8_000  # sampled to choose a hyperparameter; all of 40,000 rows would take three times as long


@dataclass(frozen=True)
class Learner:
    """A kind of model.

    Attributes:
        make: returns an untrained estimator for a single class; None: a network for all of them.
        grid: values to try, most regularised first; the first is the fallback where the data do not allow a choice.
        scoring: scikit-learn's name of the score to choose by.
        odds: use log-odds instead of probabilities as inputs.
    """

    make: Callable[[], Any] | None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    scoring: str = "neg_log_loss"
    odds: bool = False


def fit_stack(learner: Learner, examples: Examples, chunks: int = 0, relative: bool = False) -> Stack:
    """Fit a stack, for probabilities on hardened targets; `chunks` and `relative` as in `Inputs`."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    task = find_task(examples.table.task)
    how = Inputs(learner.make is None, learner.odds and task.probabilities, chunks, relative)
    inputs, target, folds = how.make(examples.probability, examples.extra), examples.target, examples.folds
    if chunks:
        code, first = codes(examples.extra.units)
        target, folds = unit_means(target, code), folds[first]
    target = examples.metric.hard(target) if task.probabilities else target.astype(np.float64)
    parts = np.unique(folds, return_inverse=True)[1] % INNER_PARTS
    if learner.make is None:
        from foldwise.predictions.ensembles.network import fit_network

        scaling = _scaled("passthrough").fit(inputs(0))
        values = scaling.transform(inputs(0))
        sample = np.random.default_rng(0).permutation(len(values))[:CHOOSING_ROWS]
        return Stack(
            [to_arrays(scaling, *fit_network(values, target.astype(np.float64), parts, sample, task))], how, task
        )
    # Classes are fitted in parallel; nested BLAS and OpenMP threads would make that ten times slower.
    # Limit and filter (solvers that did not converge) are set here because they apply to all threads.
    with threadpool_limits(1, "blas"), warnings.catch_warnings(action="ignore"):
        models = Parallel(n_jobs=-1, prefer="threads")(
            delayed(_fit_class)(learner, inputs, index, target[:, index], parts) for index in range(target.shape[1])
        )
    return Stack(list(models), how, task)


def _fit_class(
    learner: Learner, inputs: Callable[[int], np.ndarray], index: int, target: np.ndarray, parts: np.ndarray
) -> Model:
    """Choose the hyperparameter by cross-validation over `parts` (N,) and fit; a constant if all targets are equal."""
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from threadpoolctl import threadpool_limits

    assert learner.make is not None
    known = np.isfinite(target)
    values, target, parts = inputs(index)[known], target[known], parts[known]
    if len(np.unique(target)) < 2:
        return _constant(values.shape[1], float(target.mean()))
    sample = np.random.default_rng(0).permutation(len(target))[:CHOOSING_ROWS]
    sampled, part_of = target[sample], parts[sample]
    mixed = [len(np.unique(sampled[part_of == part])) > 1 for part in np.unique(part_of)]
    chosen = {name: options[0] for name, options in learner.grid.items()}
    with threadpool_limits(1, "openmp"):  # applies to the calling thread only
        if len(mixed) > 1 and all(mixed):
            cv = PredefinedSplit(part_of)
            search = GridSearchCV(learner.make(), learner.grid, cv=cv, scoring=learner.scoring, refit=False)
            chosen = search.fit(values[sample], sampled).best_params_
        return to_arrays(learner.make().set_params(**chosen).fit(values, target))


def _constant(inputs: int, value: float) -> Dense:
    none, layers = np.zeros(inputs), (np.zeros((inputs, 1)), np.array([value]))
    return Dense(fill=none, gaps=np.zeros(0, int), mean=none, scale=none + 1, layers=layers, link="identity")


def to_arrays(pipeline: Any, layers: Sequence[np.ndarray] = (), link: str = "") -> Model:
    """Convert a fitted pipeline of the learners below; of a network, its scaling."""
    imputer, model = pipeline[0], pipeline[-1]
    gaps = {"fill": imputer.statistics_, "gaps": imputer.indicator_.features_}
    link = link or ("sigmoid" if hasattr(model, "predict_proba") else "identity")
    if hasattr(model, "_predictors"):
        return Trees(**gaps, link=link, **_nodes(model))
    layers = layers or (np.reshape(model.coef_, (-1, 1)), np.reshape(model.intercept_, 1))
    return Dense(**gaps, link=link, mean=pipeline[1].mean_, scale=pipeline[1].scale_, layers=layers)


def _nodes(model: Any) -> dict[str, np.ndarray]:
    """Arrays of `Trees` from the trees of scikit-learn, which have no public access."""
    nodes = [of_class.nodes for (of_class,) in model._predictors]
    roots = np.cumsum([0, *map(len, nodes)])[:-1]
    joined, offset = np.concatenate(nodes), np.repeat(roots, [len(each) for each in nodes])
    leaf = joined["is_leaf"].astype(bool)
    return {
        "roots": roots,
        "feature": joined["feature_idx"].astype(np.int64),
        "threshold": joined["num_threshold"].astype(np.float64),
        "left": np.where(leaf, -1, joined["left"] + offset),
        "right": np.where(leaf, -1, joined["right"] + offset),
        "value": joined["value"].astype(np.float64),
        "baseline": np.ravel(model._baseline_prediction).astype(np.float64),
    }


def _filled(*steps: Any) -> Any:
    """Put steps behind the filling of gaps, with an indicator for each input that has some."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    return make_pipeline(SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), *steps)


def _scaled(model: Any) -> Any:
    from sklearn.preprocessing import StandardScaler

    return _filled(StandardScaler(), model)


def _linear() -> Any:
    from sklearn.linear_model import Ridge

    return _scaled(Ridge())


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return _scaled(LogisticRegression(solver="newton-cholesky", max_iter=100))


def _boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return _filled(HistGradientBoostingClassifier(max_leaf_nodes=8, early_stopping=False, random_state=0))


def _boosting_numbers() -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return _filled(HistGradientBoostingRegressor(max_leaf_nodes=8, early_stopping=False, random_state=0))


LINEAR = Learner(_linear, {"ridge__alpha": [1000.0, 100.0, 10.0, 1.0]}, scoring="neg_mean_squared_error")
LOGISTIC = Learner(_logistic, {"logisticregression__C": [0.001, 0.01, 0.1, 1.0]}, odds=True)
BOOSTING = Learner(_boosting, {"histgradientboostingclassifier__max_iter": [20, 50, 100]})
BOOSTING_NUMBERS = Learner(
    _boosting_numbers, {"histgradientboostingregressor__max_iter": [20, 50, 100]}, scoring="neg_mean_squared_error"
)
NETWORK = Learner(None, odds=True)

STACKERS = (
    Method("linear", "linear regression (ridge)", partial(fit_stack, LINEAR)),
    Method("logistic", "logistic regression", partial(fit_stack, LOGISTIC)),
    Method("boosting", "gradient boosting", partial(fit_stack, BOOSTING)),
    Method("network", "dense network", partial(fit_stack, NETWORK)),
)
STACKERS_OF_VALUES = (
    STACKERS[0],
    Method("boosting", "gradient boosting", partial(fit_stack, BOOSTING_NUMBERS)),
    STACKERS[3],
)
