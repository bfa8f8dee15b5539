"""Regression: targets with missing values, transforms, losses, metrics, folds, and a training in the table's unit."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics as oracle
import torch
from sklearn.preprocessing import QuantileTransformer
from tiny import make_spec, prepare_tiny, random_model, tiny_config, train_scored, write_data

from foldwise.data.problems import TableError
from foldwise.data.table import Columns, read_table
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.inference.spec import ModelError, read_spec
from foldwise.inference.weights import load_model, save_model
from foldwise.models.number_losses import AbsoluteError, Huber, SquaredError
from foldwise.predictions.metrics import METRICS, R2, Mae, Mape, Pearson, Rmse, Rmsle, Spearman
from foldwise.predictions.metrics.folds import prepare_score
from foldwise.predictions.store import read_predictions
from foldwise.tasks import find_task
from foldwise.tasks.outputs import Output, activate
from foldwise.tasks.transforms import NAMES, fit_transform, transform, undo

NAN = float("nan")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small data set with a second number, unknown for a third of the pictures."""
    root = write_data(tmp_path_factory.mktemp("numbers"), rows=48)
    table = pd.read_csv(root / "train.csv", keep_default_na=False)
    rows = np.arange(len(table))
    table["count"] = [str(row % 7) if row % 3 else "" for row in rows]
    table.to_csv(root / "train.csv", index=False)
    return root


def read(root, table, target, classes=None):
    table.to_csv(root / "t.csv", index=False)
    return read_table(root / "t.csv", "regression", root, Columns(target=target), classes)


def test_an_empty_cell_is_unknown_and_any_other_text_is_refused(world):
    table = pd.read_csv(world / "train.csv", dtype=str, keep_default_na=False)
    found = read(world, table, ["count", "value"])
    assert found.classes == ("count", "value") and found.target.dtype == np.float32
    assert np.isnan(found.target[:, 0]).tolist() == [row % 3 == 0 for row in range(48)]
    assert (found.target[:, 1] == table["value"].astype(np.float32)).all()
    assert read(world, table, ["count", "value"], ["value", "count"]).classes == ("value", "count")
    assert read(world, table, "value").classes == ("value",)
    bad = table.assign(value=["12,5", "inf", "1e39", *table["value"][3:]], none="")
    with pytest.raises(TableError) as error:
        read(world, bad, ["value", "none"])
    sentence = "line 2 (id 'row0'): value is '12,5', which is no number: write decimals with a point"
    assert sentence in str(error.value)
    assert all(f"value is '{text}'" in str(error.value) for text in ("inf", "1e39"))
    assert "the column 'none' has no numbers" in str(error.value)
    for target, problem in (([], "is an empty list"), (["value", "value"], "has value more than once")):
        with pytest.raises(Refusal, match=f"data.columns.target {problem}"):
            read(world, table, target)
    with pytest.raises(
        TableError, match=r"data.classes \(a\) must be null or the names in data.columns.target \(value"
    ):
        read(world, table, "value", ["a"])


def draw(rows=400, seed=0):
    """Targets of two columns, a tenth unknown, predictions, and weights."""
    rng = np.random.default_rng(seed)
    target = np.exp(rng.normal([1, 3], [0.5, 1], (rows, 2))).round(2)
    predicted = target * np.exp(rng.normal(0, 0.4, target.shape)) + rng.normal(0, 1, target.shape)
    target[rng.random(target.shape) < 0.1] = NAN
    return target, predicted, rng.integers(0, 4, rows).astype(float)


def weighted_pearson(true, predicted, weight):
    return np.corrcoef(np.repeat([true, predicted], weight.astype(int), axis=1))[0, 1]


ORACLES = {
    Rmse: lambda t, p, w: oracle.root_mean_squared_error(t, p, sample_weight=w),
    Mae: lambda t, p, w: oracle.mean_absolute_error(t, p, sample_weight=w),
    Rmsle: lambda t, p, w: oracle.root_mean_squared_log_error(t, p.clip(0), sample_weight=w),
    Mape: lambda t, p, w: oracle.mean_absolute_percentage_error(t, p, sample_weight=w),
    R2: lambda t, p, w: oracle.r2_score(t, p, sample_weight=w),
    Pearson: weighted_pearson,
    Spearman: lambda t, p, w: scipy.stats.spearmanr(*np.repeat([t, p], w.astype(int), axis=1))[0],
}


@pytest.mark.parametrize("kind", ORACLES, ids=lambda kind: kind.__name__)
def test_as_scikit_learn_and_scipy(kind):
    target, predicted, weight = draw()
    predicted = predicted.round(1)  # ties
    known = [np.isfinite(column) for column in target.T]
    columns = [(target[rows, c], predicted[rows, c], weight[rows]) for c, rows in enumerate(known)]
    metric = kind().for_task("regression", ["a", "b"])
    assert metric.tasks() == ["regression"] and kind in METRICS.values()
    expected = np.mean([ORACLES[kind](*each) for each in columns])
    assert metric(target, predicted, weight) == pytest.approx(expected, rel=1e-9)
    assert prepare_score(metric, target, predicted, np.zeros(len(target)))(weight) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(Refusal, match=f"metric {kind.__name__} is for regression, not for multiclass"):
        kind().for_task("multiclass", ["a", "b"])


@pytest.mark.parametrize("kind", [R2, Pearson, Spearman, Mape])
def test_what_is_undefined_is_left_out_with_a_warning(kind):
    metric = kind().for_task("regression", ["same", "varied", "unknown"])
    varied = np.array([1.0, 2, 4])
    target = np.stack([np.full(3, 0.1 if kind is not Mape else 0), varied, np.full(3, NAN)], axis=1)
    predicted = np.stack([varied, varied, varied], axis=1)
    with pytest.warns(match="leaves out 2 of 3 classes"):
        assert metric(target, predicted) == pytest.approx(0 if kind is Mape else 1)
    with pytest.warns():
        assert np.isnan(metric(target[:, [2, 2, 2]], predicted))


def test_rmsle_is_refused_for_negative_targets_before_training(world):
    table = pd.read_csv(world / "train.csv", dtype=str, keep_default_na=False)
    found = read(world, table.assign(value=-1.5), "value")
    with pytest.raises(Refusal, match="RMSLE is for numbers from 0"):
        Rmsle().for_task("regression", found.classes, found)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (SquaredError, lambda error: error**2),
        (AbsoluteError, abs),
        (
            lambda weights: Huber(0.5, weights),
            lambda error: error**2 / 2 if abs(error) <= 0.5 else abs(error) / 2 - 1 / 8,
        ),
    ],
)
@pytest.mark.parametrize("weights", [None, [1, 3]])
def test_losses_leave_unknown_targets_out(loss, by_hand, weights):
    output = torch.tensor([[1.0, 2], [0, 5], [3, 3]], requires_grad=True)
    target = torch.tensor([[0.25, 4], [NAN, 5.25], [NAN, NAN]])
    first, second = weights or (1, 1)
    samples = [(first * by_hand(0.75) + second * by_hand(-2)) / (first + second), by_hand(-0.25), 0]
    value = loss(weights)(output, target)
    assert value.item() == pytest.approx(np.mean(samples))
    value.backward()
    assert output.grad.isfinite().all() and output.grad[2].tolist() == [0, 0] and output.grad[1, 0] == 0
    weighted = loss(weights)(output, target, torch.tensor([2.0, 0.5, 1])).item()
    assert weighted == pytest.approx(np.mean(np.multiply([2, 0.5, 1], samples)))


def test_target_weights_are_checked():
    with pytest.raises(Refusal, match="give numbers from 0"):
        SquaredError([1, -1])
    with pytest.raises(Refusal, match="loss.delta is 0; give a number above 0"):
        Huber(0)
    with pytest.raises(Refusal, match="3 values for 2 columns"):
        SquaredError([1, 1, 1])(torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("name", NAMES)
def test_a_transform_is_undone(name):
    target = draw()[0].astype(np.float32)
    state = json.loads(json.dumps(fit_transform(name, target[:300], ["a", "b"])))
    seen = transform(state, target)
    assert (np.isnan(seen) == np.isnan(target)).all() and seen.dtype == np.float32
    known = ~np.isnan(target)
    inside = known & (target <= np.nanmax(target[:300], axis=0)) & (target >= np.nanmin(target[:300], axis=0))
    back = undo(state, torch.from_numpy(seen)).numpy()
    assert back.dtype == np.float32
    shown = inside if name == "rank" else known
    np.testing.assert_allclose(back[shown], target[shown], rtol=2e-4 if name == "rank" else 1e-5)
    if name != "none":
        np.testing.assert_allclose(np.nanmean(seen[:300], axis=0), 0, atol=0.01)
        np.testing.assert_allclose(np.nanstd(seen[:300], axis=0), 1, atol=0.02)


def test_ranks_are_scikit_learns_normal_scores():
    values = np.random.default_rng(0).gamma(2, 3, (999, 1)).astype(np.float32)
    seen = transform(fit_transform("rank", values, ["a"]), values)
    by_library = QuantileTransformer(n_quantiles=999, output_distribution="normal").fit_transform(values)
    middle = slice(50, -50)
    order = np.argsort(values[:, 0])[middle]
    np.testing.assert_allclose(seen[order], by_library[order], atol=0.01)


def test_a_constant_column_and_numbers_that_a_logarithm_cannot_take():
    same = np.full((5, 1), 7, np.float32)
    for name in ("standard", "log1p", "rank"):
        state = fit_transform(name, same, ["a"])
        assert undo(state, torch.from_numpy(transform(state, same))).tolist() == [[pytest.approx(7)]] * 5
    with pytest.raises(Refusal, match="log1p needs numbers above -1, and a has others: take standard"):
        fit_transform("log1p", same - 8, ["a"])
    with pytest.raises(Refusal, match="the training rows of a fold have no a"):
        fit_transform("standard", same * NAN, ["a"])


def test_a_saved_model_predicts_in_the_unit_of_the_table(tmp_path):
    target = draw()[0].astype(np.float32)
    for name in NAMES:
        output = Output("", "logits", "target", ("a", "b"), "regression", fit_transform(name, target, ["a", "b"]))
        model = random_model(make_spec("regression", ["a", "b"], outputs=(output,)), 0)
        save_model(tmp_path / name, model.network, model.spec)
        loaded = load_model(tmp_path / name)
        assert loaded.spec.outputs == (output,) and loaded.spec.main.transform == output.transform
        raw = torch.tensor([[0.0, 0.5], [1, -1]])
        expected = undo(output.transform, raw)
        assert torch.equal(activate({"logits": raw}, loaded.spec.outputs)[""], expected)
    path = tmp_path / "rank" / "model.json"
    damaged = read_json(path)
    damaged["outputs"][0]["transform"]["scores"][0].reverse()
    path.write_text(json.dumps(damaged))
    with pytest.raises(ModelError, match="transform of outputs must be null, or the state"):
        read_spec(tmp_path / "rank")


def test_the_median_is_that_of_numpy_and_the_fallback():
    task, values = find_task("regression"), torch.from_numpy(np.random.default_rng(0).normal(size=(6, 5, 2)))
    values[:2, 0] = NAN
    np.testing.assert_allclose(task.average(values, "median"), np.nanmedian(values.numpy(), axis=0))
    np.testing.assert_allclose(task.average(values, "arithmetic"), np.nanmean(values.numpy(), axis=0))
    target = draw()[0]
    np.testing.assert_allclose(task.fallback(target, 2), np.nanmedian(target, axis=0))


def test_folds_are_balanced_by_quantiles(world):
    prepared = prepare_tiny(tiny_config(world, "regression", "data.columns.target=[value,count]", "data.folds=3"))
    folds, target = prepared.fold_of_items, prepared.table.target
    for low, high in ((0, 500), (500, 1500), (1500, 3000)):
        count = np.bincount(folds[(target[:, 0] >= low) & (target[:, 0] < high)], minlength=3)
        assert np.ptp(count) <= 2
    assert np.ptp(np.bincount(folds[np.isnan(target[:, 1])], minlength=3)) <= 1
    assert prepared.statistics["class_counts"].keys() == {"0", "1", "2"}
    assert sum(counts[1] for counts in prepared.statistics["class_counts"].values()) == 32


@pytest.mark.parametrize("name", ["standard", "log1p", "rank"])
def test_it_trains_in_any_unit_alike(name, world, tmp_path):
    """Training sees the same numbers whether a price is in thousands or not, and unknown numbers change nothing."""
    scores = {}
    for unit in (1, 1000):
        table = pd.read_csv(world / "train.csv", keep_default_na=False)
        table["count"] = 50 * unit * (1 + pd.to_numeric(table["count"]))
        table = table.assign(value=(table["value"] + 50) * unit)
        table.to_csv(world / f"t{unit}.csv", index=False)
        changes = [f"data.table={world}/t{unit}.csv", f"data.prepared={tmp_path}/{unit}", f"data.transform={name}"]
        config = tiny_config(world, "regression", "metric=r2", "data.columns.target=[value,count]", *changes)
        run = train_scored(config, tmp_path / f"runs{unit}")
        scores[unit] = read_json(run / "metrics.json")["overall"]
        oof = read_predictions(run / "oof").frame
        assert oof["value"].median() == pytest.approx(1050 * unit, rel=0.9)
    assert scores[1] == pytest.approx(scores[1000], abs=0.02 if name == "log1p" else 1e-3)


def test_what_needs_classes_is_refused(world, tmp_path):
    with pytest.raises(Refusal, match="data.sampling=balanced is for classes, and the targets are numbers"):
        train_scored(
            tiny_config(world, "regression", "data.sampling=balanced", f"data.prepared={tmp_path}/own"), tmp_path
        )


def test_nothing_warns_of_unknown_numbers(world):
    with warnings.catch_warnings(action="error"):
        metric = Rmse().for_task("regression", ["a", "b"])
        metric(*draw()[:2])
