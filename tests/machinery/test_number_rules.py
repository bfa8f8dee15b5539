"""Decisions, blends and stacking of numbers, and cut points between ordered grades."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from rows import scored
from scipy.optimize import minimize
from sklearn.linear_model import Ridge
from sklearn.metrics import cohen_kappa_score
from sklearn.preprocessing import StandardScaler

from foldwise.bundle.spec import from_plain, to_plain
from foldwise.errors import Refusal
from foldwise.models.losses import Ordinal
from foldwise.predictions.decisions.deciding import choose_decision
from foldwise.predictions.decisions.number_rules import GradeCuts, Range, Rounded, Sums, fit_cuts, read_sums
from foldwise.predictions.ensembles.blending import least_squares_weights
from foldwise.predictions.ensembles.extra import Extra
from foldwise.predictions.ensembles.stack import Inputs
from foldwise.predictions.ensembles.stacking import LINEAR, STACKERS_OF_VALUES
from foldwise.predictions.metrics import QuadraticKappa, Rmse

NAMES = ["total", "leaf", "stem"]


def draw(rows=300, seed=0):
    """Whole numbers of which the first is the sum of the others, predictions with noise of 1, 2 and 3, and folds."""
    rng = np.random.default_rng(seed)
    parts = rng.integers(0, 20, (rows, 2))
    target = np.column_stack([parts.sum(axis=1), parts]).astype(np.float64)
    return target, target + rng.normal(0, [1, 2, 3], target.shape), np.arange(rows) % 3


@pytest.fixture
def metric():
    return Rmse().for_task("regression", NAMES)


def test_numbers_stay_in_the_range_of_the_targets_and_are_rounded(metric):
    target, predicted, _ = draw()
    target[0] = np.nan
    target[:, 2] = target[:, 2] / 4
    fitted = Rounded().fit(metric, target, predicted)
    assert fitted.step.tolist() == [1, 1, 0.25]
    answers = fitted.decide(np.array([[-3, 2.4, 1.1], [99, 2.6, 99]]))
    assert answers.tolist() == [[np.nanmin(target[:, 0]), 2, 1], [np.nanmax(target[:, 0]), 3, np.nanmax(target[:, 2])]]
    assert (
        Range().fit(metric, target, predicted).decide(predicted[5:]) == predicted[5:].clip(fitted.low, fitted.high)
    ).all()
    free = Rounded().fit(metric, np.random.default_rng(0).normal(size=(9, 3)), predicted[:9])
    assert free.step.tolist() == [0, 0, 0] and str(fitted) == "rounded to 1 1 0.25"


def test_sums_are_the_constrained_optimum(metric):
    target, predicted, _ = draw()
    rule = Sums.of(read_sums([["total", "leaf", "stem"]], metric), NAMES).fit(metric, target, predicted)
    answers = rule.decide(predicted)
    np.testing.assert_allclose(answers[:, 0], answers[:, 1] + answers[:, 2])
    error = ((predicted - target) ** 2).mean(axis=0)
    for row in (0, 7):
        by_hand = minimize(
            lambda x, row=row: ((x - predicted[row]) ** 2 / error).sum(),
            predicted[row],
            constraints={"type": "eq", "fun": lambda x: x[0] - x[1] - x[2]},
            tol=1e-12,
        )
        np.testing.assert_allclose(answers[row], by_hand.x, atol=1e-4)
    number = Sums.of(read_sums([["30", "leaf", "stem"]], metric), NAMES).fit(metric, target, predicted)
    np.testing.assert_allclose(number.decide(predicted)[:, 1:].sum(axis=1), 30)
    assert (number.decide(predicted)[:, 0] == predicted[:, 0]).all()


def test_the_decision_is_chosen_out_of_fold_and_survives_a_bundle(metric):
    target, predicted, folds = draw()
    chosen = choose_decision(metric, scored(target, predicted, folds), sums=[["total", "leaf", "stem"]])
    assert [outcome.name for outcome in chosen.outcomes] == ["values", "range", "rounded", "sums"]
    assert chosen.outcome.name == "sums" and chosen.outcome.overall < chosen.outcomes[0].overall
    back = from_plain(to_plain(chosen.decision))
    assert (back.rule.decide(predicted) == chosen.decision.rule.decide(predicted)).all()


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ([["total", "leaf"]], "give the sum, and two or more other columns"),
        ([["total", "leaf", "root"]], "there is no column root; there are total, leaf, stem"),
        ([["whole", "leaf", "stem"]], "whole is neither a number nor one of the columns"),
        ([["total", "leaf", "total"]], "give the sum, and two or more other columns"),
    ],
)
def test_sums_that_cannot_be(sums, message, metric):
    with pytest.raises(Refusal, match=message):
        read_sums(sums, metric)
    with pytest.raises(Refusal, match="sums are for numbers, and the task is multiclass"):
        read_sums([["1", "a", "b"]], QuadraticKappa().for_task("multiclass", ["a", "b"]))


def grades(rows=240, seed=0):
    """Grades 2 to 5, half of them 2, a number that grows with them too slowly, and folds."""
    rng = np.random.default_rng(seed)
    grade = rng.choice(4, rows, p=[0.5, 0.2, 0.2, 0.1])
    return grade, 0.5 * grade + rng.normal(0.6, 0.35, rows), np.arange(rows) % 3


def test_cut_points_reach_brute_force_where_the_gain_is_sure_and_stay_where_it_is_not():
    grade, value, _ = grades(600)
    metric, target = QuadraticKappa().for_task("multiclass", list("0123")), np.eye(4)[grade]

    def kappa(cuts):
        return cohen_kappa_score(grade, np.digitize(value, cuts), weights="quadratic")

    cuts = fit_cuts(value, lambda answer: metric.prepare(target, np.eye(4)[answer]), 4)
    best = max(map(kappa, itertools.combinations(np.quantile(value, np.linspace(0.02, 0.98, 25)), 3)))
    assert kappa(cuts) > best - 0.02 > kappa([0.5, 1.5, 2.5]) and (np.diff(cuts) > 0).all()
    chance = np.random.default_rng(1).permutation(target)
    still = fit_cuts(value, lambda answer: metric.prepare(chance, np.eye(4)[answer]), 4)
    assert still.tolist() == [0.5, 1.5, 2.5]


def test_kappa_of_numbers_is_that_of_the_nearest_grades():
    grade, value, folds = grades()
    metric = QuadraticKappa().for_task("regression", ["grade"])
    target, predicted = grade[:, None] + 2.0, value[:, None] + 2
    target[:5] = np.nan
    expected = cohen_kappa_score(target[5:, 0], predicted[5:, 0].round().clip(2, 5), weights="quadratic")
    assert metric(target, predicted) == pytest.approx(expected)
    chosen = choose_decision(metric, scored(target, predicted, folds), forced="grades")
    plain, cut = chosen.outcomes
    assert (plain.name, cut.name) == ("rounded", "grades") and cut.overall > plain.overall + 0.02
    assert set(np.unique(cut.answers)) == {2, 3, 4, 5}
    assert isinstance(chosen.decision.rule, GradeCuts) and "grades cut at" in str(chosen.decision)
    back = from_plain(to_plain(chosen.decision))
    assert (back.rule.decide(predicted) == chosen.decision.rule.decide(predicted)).all()
    table = SimpleNamespace(target=np.array([[0.5]]), frame=pd.DataFrame({"id": ["a"]}))
    with pytest.raises(Refusal, match="quadratic kappa is for grades"):
        QuadraticKappa().for_task("regression", ["grade"], table)


def test_cut_points_of_classes_beat_the_argmax():
    """Of true probabilities, of which the largest is too often that of the frequent grade 0."""
    rng, shares = np.random.default_rng(0), [0.5, 0.2, 0.2, 0.1]
    grade, folds = rng.choice(4, 600, p=shares), np.arange(600) % 3
    value = grade + rng.normal(0, 1.2, 600)
    likelihood = shares * np.exp(-((value[:, None] - np.arange(4)) ** 2) / 2 / 1.2**2)
    probability = likelihood / likelihood.sum(axis=1, keepdims=True)
    metric = QuadraticKappa().for_task("multiclass", ["0", "1", "2", "3"])
    chosen = choose_decision(metric, scored(np.eye(4)[grade], probability, folds))
    by_name = {outcome.name: outcome for outcome in chosen.outcomes}
    assert by_name["grades"].overall > by_name["argmax"].overall + 0.05
    assert by_name["grades"].answers.sum(axis=1).tolist() == [1] * 600


def test_ordinal_is_the_mean_of_the_thresholds_and_its_sigmoids_differ_by_the_probabilities():
    logits, grade = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 1, 0])
    target, p = torch.nn.functional.one_hot(grade, 4).float(), logits.softmax(1)
    expected = [
        np.mean([-np.log(float(row[k:].sum() if g >= k else row[:k].sum())) for k in (1, 2, 3)])
        for row, g in zip(p, grade, strict=True)
    ]
    np.testing.assert_allclose(Ordinal().samples(logits, target), expected, rtol=1e-5)
    weights = torch.tensor([1.0, 2, 3, 4])
    np.testing.assert_allclose(
        Ordinal(weights).samples(logits, target), np.multiply(expected, weights[grade]), rtol=1e-5
    )
    above = torch.stack([(logits[:, k:].logsumexp(1) - logits[:, :k].logsumexp(1)).sigmoid() for k in (1, 2, 3)], 1)
    ends = torch.cat([torch.ones(6, 1), above, torch.zeros(6, 1)], 1)
    np.testing.assert_allclose(ends[:, :-1] - ends[:, 1:], p, atol=1e-6)


def test_least_squares_weights_are_the_constrained_optimum():
    rng = np.random.default_rng(0)
    target = rng.normal(5, [1, 1000], (80, 2)).astype(np.float32)
    sources = np.stack([target + rng.normal(0, [a, b], target.shape) for a, b in ((0.5, 300), (0.3, 900), (2, 2000))])
    target[::7, 0] = np.nan
    weights = least_squares_weights(sources.astype(np.float32), target)
    scale = np.nanstd(target, axis=0)

    def loss(w):
        return np.nanmean(((np.tensordot(w, sources, 1) - target) / scale) ** 2)

    grid = [(a, b, 1 - a - b) for a in np.linspace(0, 1, 101) for b in np.linspace(0, 1 - a, 101)]
    best = min(grid, key=loss)
    np.testing.assert_allclose(weights, best, atol=0.02)
    assert weights.sum() == pytest.approx(1) and loss(weights) <= loss(best) + 1e-9


@pytest.mark.parametrize("method", STACKERS_OF_VALUES, ids=lambda method: method.name)
def test_stacking_of_numbers(method):
    target, predicted, folds = draw(400)
    target[:50, 1] = np.nan
    rng = np.random.default_rng(1)
    sources = np.stack([predicted, target + rng.normal(0, 2, target.shape)]).astype(np.float32)
    sources = np.nan_to_num(sources, nan=7)
    table = SimpleNamespace(target=target, task="regression")
    extra = Extra(np.zeros((400, 0), np.float32), np.arange(400), np.zeros(400, int))
    examples = SimpleNamespace(table=table, target=target, probability=sources, extra=extra, folds=folds)
    found = method.fit(examples).predict(sources, extra)
    assert found.shape == target.shape
    error = np.nanmean((found - target) ** 2, axis=0)
    assert (error < np.nanmean((predicted - target) ** 2, axis=0)).all() and found.max() > 10
    if method.name == "linear":
        known = np.isfinite(target[:, 1])
        inputs = Inputs().make(sources, extra)(1)
        scaler = StandardScaler().fit(inputs[known])
        by_hand = [
            Ridge(alpha=alpha).fit(scaler.transform(inputs[known]), target[known, 1])
            for (alphas,) in [LINEAR.grid.values()]
            for alpha in alphas
        ]
        answers = [model.predict(scaler.transform(inputs)) for model in by_hand]
        assert any(np.allclose(found[:, 1], answer, rtol=1e-4) for answer in answers)
