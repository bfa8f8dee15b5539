"""Stacking as arrays, against scikit-learn and torch; gaps, texts, units and groups among its inputs."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata
from test_ensemble import CLASSES, FOLDS, World, run

from foldwise.errors import Refusal
from foldwise.predictions.ensembles import network
from foldwise.predictions.ensembles.extra import MOST, Encoder, Extra
from foldwise.predictions.ensembles.stack import Dense, Inputs, Stack, Stacks, chunk_means, relative_values
from foldwise.predictions.ensembles.stacking import BOOSTING, BOOSTING_NUMBERS, LINEAR, LOGISTIC, to_arrays
from foldwise.tasks import find_task


def table(rows=400):
    """Columns as CSVs have them: texts, with gaps and rare values."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "height": [f"{value:.3f}" if value > -0.8 else "" for value in rng.normal(size=rows)],
            "empty": "",
            "site": rng.choice(["north", "south", ""], rows),
            "clip": [f"c{value}" for value in rng.integers(0, 40, rows)],
        }
    )


def test_columns_are_encoded_as_by_scikit_learn():
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = table()
    encoder = Encoder.fit(frame, ["height", "empty", "site", "clip"])
    values = encoder.encode(frame)
    numbers = pd.to_numeric(frame["height"], errors="coerce").to_numpy()[:, None]
    np.testing.assert_allclose(values[:, :1], StandardScaler().fit_transform(numbers), atol=1e-6)
    assert np.isnan(values[:, 1]).all()
    one_hot = OneHotEncoder(sparse_output=False).fit_transform(frame[["site"]])
    assert {tuple(column) for column in values[:, 2:5].T} == {tuple(column) for column in one_hot.T}
    clips = values[:, 5:]
    counts = frame["clip"].value_counts()
    assert clips.shape[1] == MOST and (clips.sum(axis=1) == 1).all()
    assert clips.sum(axis=0)[:-1].tolist() == counts[: MOST - 1].tolist()
    new = Encoder(**{"numbers": encoder.numbers, "texts": encoder.texts}).encode(
        frame[:1].assign(height="high", site="west", clip="c99")
    )[0]
    assert np.isnan(new[0]) and new[2:5].tolist() == [0, 0, 0] and new[5:].tolist() == [0] * (MOST - 1) + [1]


@pytest.mark.parametrize("learner", [LINEAR, LOGISTIC, BOOSTING, BOOSTING_NUMBERS])
def test_arrays_predict_what_scikit_learn_predicts(learner, tmp_path):
    """With gaps, texts, and gaps and texts that the training rows have not."""
    rng, frame = np.random.default_rng(1), table()
    shared = Encoder.fit(frame, ["height", "site", "clip", "empty"]).encode(frame)
    values = np.hstack([rng.random((400, 5)), shared]).astype(np.float32)
    target = (values[:, 0] + (np.nan_to_num(values[:, 5]) > 0.3) + values[:, 7] + rng.normal(0, 0.3, 400)) * 9
    if learner not in (LINEAR, BOOSTING_NUMBERS):
        target = target > np.median(target)
    estimator = learner.make().fit(values[:300], target[:300])
    other = values.copy()
    other[::3, 0] = np.nan
    expected = estimator.predict_proba(other)[:, 1] if target.dtype == bool else estimator.predict(other)
    task = find_task("multilabel" if target.dtype == bool else "regression")
    Stacks({0: Stack([to_arrays(estimator)], Inputs(), task)}, Encoder({}, {})).save(tmp_path)
    (model,) = Stacks.load(tmp_path).folds[0].models
    np.testing.assert_allclose(model.predict(other)[:, 0], expected, rtol=1e-6, atol=1e-6)
    assert np.ptp(expected) > 0.5


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_the_network_as_arrays_is_that_of_torch(task):
    rng, kind = np.random.default_rng(0), find_task(task)
    inputs = rng.normal(size=(300, 6)).astype(np.float32)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    inputs[:, 5] = 0
    target = (inputs[:, :1] * inputs[:, 1:2] > 0) == [True, False]  # no linear model finds it
    target = target * 1e3 + 5e3 if task == "regression" else target.astype(float)
    one = np.zeros(300, int)
    layers, link = network.fit_network(inputs, target, one, np.arange(300), kind)
    same = {"fill": np.zeros(6), "gaps": np.zeros(0, int), "mean": np.zeros(6), "scale": np.ones(6)}
    found = Dense(**same, layers=layers, link=link).predict(inputs)
    offset, unit = (target.mean(0), target.std(0)) if task == "regression" else (0, 1)
    aim = torch.from_numpy((target - offset) / unit).float()
    *_, net = network._train(torch.from_numpy(inputs), aim, kind, network.EPOCHS[0])
    assert [layer.p for layer in net if isinstance(layer, torch.nn.Dropout)] == [0.25, 0.25]
    with torch.no_grad():
        expected = kind.activate(net(torch.from_numpy(inputs))).numpy() * unit + offset
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    parts = np.arange(300) % 3
    layers, link = network.fit_network(inputs, target, parts, np.arange(300), kind)
    better = Dense(**same, layers=layers, link=link).predict(inputs)
    assert ((better[:, 0] > better[:, 1]) == (target[:, 0] > target[:, 1])).mean() > 0.9
    inputs[:, 5] = 100  # constant until now
    assert Dense(**same, layers=layers, link=link).predict(inputs).tolist() == better.tolist()


@pytest.mark.parametrize(
    ("inputs", "group", "alone"), [(Inputs(), None, True), (Inputs(chunks=2), None, False), (Inputs(), "camera", False)]
)
def test_units_and_groups_are_predicted_together(inputs, group, alone):
    stacks = Stacks({0: Stack([], inputs, find_task("multilabel"))}, Encoder({}, {}), group)
    assert stacks.of_one_item == alone


@pytest.mark.parametrize("chunks", [1, 3, 8])
def test_chunks_of_sorted_predictions(chunks):
    rng = np.random.default_rng(0)
    code = rng.permutation(np.repeat(np.arange(6), [1, 2, 3, 7, 8, 19]))
    values = rng.random((2, len(code), 3)).astype(np.float32)
    found = chunk_means(values, code, chunks).reshape(2, chunks, 6, 3)
    for unit in range(6):
        each = np.sort(values[:, code == unit], axis=1).repeat(chunks, axis=1)  # so that all chunks are equally long
        expected = np.stack([part.mean(axis=1) for part in np.split(each, chunks, axis=1)], axis=1)
        np.testing.assert_allclose(found[:, :, unit], expected, atol=1e-6)


def test_z_scores_and_ranks_within_groups():
    rng = np.random.default_rng(0)
    values = rng.random((60, 3)).astype(np.float32).round(1)
    groups = np.append(rng.integers(0, 4, 59), 9)
    score, rank = relative_values(values, groups)
    for group in np.unique(groups):
        own = values[groups == group].astype(float)
        np.testing.assert_allclose(rank[groups == group], (rankdata(own, axis=0) - 0.5) / len(own), atol=1e-6)
        deviation = np.where(own.std(0) > 0, own.std(0), 1)
        np.testing.assert_allclose(score[groups == group], (own - own.mean(0)) / deviation, atol=1e-5)


@pytest.mark.parametrize("joint", [False, True])
def test_inputs_are_those_of_the_class_and_relative_to_their_group(joint):
    rng = np.random.default_rng(0)
    probability, values = rng.random((2, 12, 3)).astype(np.float32), rng.random((12, 1)).astype(np.float32)
    extra = Extra(values, np.arange(12), np.arange(12) % 3)
    made = Inputs(joint=joint, odds=True, relative=True).make(probability, extra)(1)
    odds = np.log(probability / (1 - probability))
    own = [*odds, values] if joint else [odds[:, :, 1].T, odds.mean(axis=0), values]
    for group in range(3):
        inside = np.hstack(own)[group::3]
        score, rank = (inside - inside.mean(axis=0)) / inside.std(axis=0), (rankdata(inside, axis=0) - 0.5) / 4
        np.testing.assert_allclose(made[group::3], np.hstack([inside, score, rank]), rtol=1e-4, atol=1e-5)


def test_a_group_ends_where_another_model_predicts():
    frame, none = pd.DataFrame({"id": list("abcd"), "camera": ["x", "x", "x", "y"]}), Encoder({}, {})
    first, second, third, fourth = Extra.of(frame, none, "camera", np.array([0, 0, 1, 1])).groups
    assert first == second and len({first, third, fourth}) == 3
    assert len(set(Extra.of(frame, none, "camera").groups)) == 2 and len(set(Extra.of(frame, none, None).groups)) == 1


@pytest.mark.parametrize("method", ["linear", "logistic", "boosting", "network"])
def test_a_saved_stack_predicts_what_was_written(method, tmp_path):
    """With everything that it can read: columns, a group, units."""
    world = World(tmp_path / "world", "multiclass", units=True, rows=120)
    inputs = {"columns": ["site", "camera"], "relative_to": "camera", "unit_inputs": 3}
    _, out, _ = run(world, tmp_path, use=method, methods=["mean"], **inputs)
    stacks = Stacks.load(out)
    assert list(stacks.folds) == list(range(FOLDS)) and stacks.encoder.columns == ["camera", "site"]
    frames = [pd.read_csv(world.root / name, dtype={"id": str}) for name in ("train.csv", "test.csv")]
    oof = np.stack([world.oof(source) for source in world.sources])
    for fold, stack in stacks.folds.items():
        held = world.folds == fold
        extra = Extra.of(frames[0][held], stacks.encoder, stacks.group)
        np.testing.assert_allclose(stack.predict(oof[:, held], extra), world.oof(out)[held], atol=1e-6)
        tests = np.stack([world.test(source, fold) for source in world.sources])
        predicted = stack.predict(tests, Extra.of(frames[1], stacks.encoder, stacks.group))
        np.testing.assert_allclose(predicted, world.test(out, fold), atol=1e-6)
        np.testing.assert_allclose(predicted.sum(axis=1), 1, atol=1e-5)
        assert (predicted[::2] == predicted[1::2]).all()  # pictures of a unit


def test_pictures_of_a_unit_that_differ_are_understood_by_chunks(tmp_path):
    """The class is a matter of whether a unit's pictures differ."""
    world = World(tmp_path / "world", classes=1, units=True, rows=240, noise=())
    row = np.arange(240)
    sure = np.where(world.truth[:, 0] > 0, row % 2, row // 2 // FOLDS % 2)
    pictures = np.where(sure, 0.9, 0.1) + 0.02 * world.rng.normal(size=240)
    source = world.write_source("a", 1, pictures.clip(0, 1)[:, None], np.full((40, 1), 0.5))
    other = world.write_source("b", 1, np.full((240, 1), 0.5), np.full((40, 1), 0.5))
    blind, _, _ = run(world, tmp_path, "blind", sources=[source, other], use="boosting", methods=["mean"])
    seeing, _, _ = run(world, tmp_path, "seeing", sources=[source], use="boosting", unit_inputs=2)
    assert seeing.overall[seeing.chosen] < 0.3 < blind.overall[blind.chosen]


def test_what_stacking_cannot_read_is_refused(tmp_path):
    world = World(tmp_path / "world", rows=60)
    with pytest.raises(Refusal, match="--unit-inputs needs units: set data.columns.unit"):
        run(world, tmp_path, methods=["linear"], unit_inputs=8)
    with pytest.raises(Refusal, match="the column labels is the target"):
        run(world, tmp_path, methods=["linear"], relative_to="labels")
    with pytest.raises(Refusal, match="test.csv has no column fold"):
        run(world, tmp_path, methods=["linear"], relative_to="fold")
    with pytest.raises(Refusal, match="has its own id, so nothing is relative to it"):
        run(world, tmp_path, methods=["linear"], relative_to="id")
    with pytest.raises(Refusal, match="--relative-to, --unit-inputs need a stacking method"):
        run(world, tmp_path, relative_to="camera", unit_inputs=8)
    assert CLASSES
