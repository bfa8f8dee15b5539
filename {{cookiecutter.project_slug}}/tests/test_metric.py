"""Your metric: that of the configuration if it is in solution/, else the example in solution/metric.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import World

from foldwise.code.runs import working_code
from foldwise.config import compose_config, resolve_config
from foldwise.predictions.metrics import MapMetric
from foldwise.predictions.metrics.base import row_records
from foldwise.predictions.metrics.building import build_metric
from foldwise.tasks import find_task


@pytest.fixture
def scored(world: World) -> tuple[Callable[[np.ndarray], float], np.ndarray, Any, Any]:
    """The score of predictions, the greater the better; the ground truth; the metric; the rows for it."""
    config, table = world.config, world.whole.table
    chosen, rows = config["metric"], row_records(table.frame.drop(columns="unit", errors="ignore"))
    if not str(chosen.get("function", chosen["_target_"])).startswith("solution."):
        if table.target is None:
            pytest.skip("the metric is not yours, and solution/metric.py is not for masks")
        chosen = resolve_config(compose_config(["metric=published", "experiment_name=test"]))["metric"]
    with working_code({"metric": chosen}) as code:
        metric = build_metric(chosen, config["task"], table.classes, table, code.alias)
    sign = 1 if metric.greater_is_better else -1
    if not isinstance(metric, MapMetric):
        return lambda values: sign * metric(table.target, values, rows=rows), table.target.astype(float), metric, rows
    masks = [world.prepared.table.read_mask(item) for item in range(len(world.prepared.items))]
    height, width = (min(mask.shape[axis] for mask in masks) for axis in (0, 1))
    stack = np.stack([mask[:height, :width] for mask in masks])
    truth = np.moveaxis(np.eye(len(table.classes))[np.where(stack == metric.ignore_index, 0, stack)], -1, 1)

    def score(values: np.ndarray) -> float:
        return sign * metric.reduce(np.stack([metric.measure(*pair) for pair in zip(stack, values, strict=True)]))

    return score, truth, metric, rows


def test_the_ground_truth_is_best_and_every_item_counts(scored, world):
    """A score that is a loss, without `metric.greater_is_better=false`; one that compares a table with itself, or that
    leaves out a class, or the rows after some number."""
    score, truth, *_ = scored
    rng, best = np.random.default_rng(0), score(truth)
    noise = rng.random(truth.shape)
    noise /= noise.sum(axis=1, keepdims=True)
    assert np.isfinite(best) and score(truth[rng.permutation(len(truth))]) < best
    assert score(noise) <= score((truth + noise) / 2) <= best and score(noise) < best
    exclusive, every = find_task(world.config["task"]).exclusive, slice(None)
    parts = [(rows, every) for rows in np.array_split(np.arange(len(truth)), 4)]
    if truth.ndim == 2:  # of labels, each by itself
        classes = enumerate(truth.T >= 0.5)
        parts += [(np.flatnonzero(y), every if exclusive else c) for c, y in classes if y.any()]
    for rows, chosen in parts:
        values, wrong = truth.copy(), np.roll(truth, 1, axis=1) if exclusive else 1 - truth
        values[rows, chosen] = wrong[rows, chosen]
        assert score(values) < best, f"the predictions of items {rows[:5]}... may be wrong"


def test_rows_are_found_by_their_ids(scored):
    """Tables that are compared line by line, while the submission is in another order than the solution."""
    _, truth, metric, rows = scored
    function, shuffled = getattr(metric, "function", None), list[float]()
    if function is None or metric.column is not None:
        pytest.skip("no function that takes tables of probabilities")

    def score(solution, submission, name):
        shuffled.append(function(solution, submission.sample(frac=1, random_state=0), name))
        return function(solution, submission, name)

    object.__setattr__(metric, "function", score)
    values = np.random.default_rng(0).dirichlet(np.ones(truth.shape[1]), len(truth))
    assert metric(truth, values, rows=rows) == pytest.approx(shuffled[0])
