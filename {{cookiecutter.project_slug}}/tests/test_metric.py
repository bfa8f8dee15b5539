"""The metric of the configuration, and solution/metric.py: the ground truth is best, and every item counts."""

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

Score = Callable[[np.ndarray], float]


@pytest.fixture(params=["configuration", "solution/metric.py"])
def scored(request, config, whole, world: World) -> tuple[Score, np.ndarray, Any]:
    """The score of values in place of the ground truth, the greater the better; the ground truth; the metric."""
    chosen, table = config["metric"], whole.table
    if request.param != "configuration":
        if table.target is None or str(chosen.get("function", chosen["_target_"])).startswith("solution."):
            pytest.skip("the configuration names it, or it is not for masks")
        chosen = resolve_config(compose_config(["metric=published", "experiment_name=test"]))["metric"]
    with working_code({"metric": chosen}) as code:
        metric = build_metric(chosen, config["task"], table.classes, table, code.alias)
    sign = 1 if metric.greater_is_better else -1
    if not isinstance(metric, MapMetric):
        rows = row_records(table.frame.drop(columns="unit", errors="ignore"))
        return lambda values: sign * metric(table.target, values, rows=rows), table.target.astype(float), metric
    masks = [world.prepared.table.read_mask(item) for item in range(len(world.prepared.items))]
    size = min(mask.shape[0] for mask in masks), min(mask.shape[1] for mask in masks)
    masks = np.stack([mask[: size[0], : size[1]] for mask in masks])
    truth = np.moveaxis(np.eye(len(table.classes))[np.where(masks == config["data"]["ignore_index"], 0, masks)], -1, 1)

    def score(values: np.ndarray) -> float:
        return sign * metric.reduce(np.stack([metric.measure(*pair) for pair in zip(masks, values, strict=True)]))

    return score, truth, metric


def test_the_ground_truth_is_best(scored):
    """Usual cause: a score that is a loss, without `metric.greater_is_better=false`, or one that compares a table with
    itself."""
    score, truth, _ = scored
    rng = np.random.default_rng(0)
    noise = rng.random(truth.shape)
    noise /= noise.sum(axis=1, keepdims=True)
    best = score(truth)
    assert np.isfinite(best)
    assert score(noise) < best and score(truth[rng.permutation(len(truth))]) < best
    assert score(noise) <= score((truth + noise) / 2) <= best


def test_every_item_and_class_counts(scored, config):
    """Usual cause: a class, or the rows after some number, that the score leaves out."""
    score, truth, _ = scored
    exclusive = find_task(config["task"]).exclusive
    every = slice(None)
    parts = [(rows, every) for rows in np.array_split(np.arange(len(truth)), 4)]
    if truth.ndim == 2:  # of labels, each by itself
        classes = enumerate(truth.T >= 0.5)
        parts += [(np.flatnonzero(y), every if exclusive else c) for c, y in classes if y.any()]
    for rows, chosen in parts:
        values, wrong = truth.copy(), np.roll(truth, 1, axis=1) if exclusive else 1 - truth
        values[rows, chosen] = wrong[rows, chosen]
        assert score(values) < score(truth), f"the predictions of items {rows[:5]}... may be wrong"


def test_rows_are_found_by_their_ids(scored, whole):
    """Usual cause: two tables that are compared line by line: the submission is in another order than the solution."""
    *_, metric = scored
    function = getattr(metric, "function", None)
    if function is None or metric.column is not None:
        pytest.skip("no function that takes tables of probabilities")
    tables = []
    target = whole.table.target.astype(float)
    rows = row_records(whole.table.frame.drop(columns="unit", errors="ignore"))

    def shuffled(solution, submission, name):
        tables.append(function(solution, submission.sample(frac=1, random_state=0), name))
        return function(solution, submission, name)

    object.__setattr__(metric, "function", shuffled)
    values = np.random.default_rng(0).dirichlet(np.ones(target.shape[1]), len(target))
    assert metric(target, values, rows=rows) == pytest.approx(tables[0])
