"""Ensembles: means and weights against their definitions, cross-fitting without leaks, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from rows import SAMPLES

from foldwise.data.folds import folds_hash
from foldwise.data.table import Columns, read_table
from foldwise.errors import Refusal
from foldwise.predictions.decisions.submit import make_submission
from foldwise.predictions.ensembles.blending import (
    Examples,
    arithmetic,
    geometric,
    rank_mean,
    simplex_weights,
)
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.ensembles.extra import Extra
from foldwise.predictions.ensembles.stacking import BOOSTING, LINEAR, LOGISTIC, fit_stack
from foldwise.predictions.metrics import LogLoss
from foldwise.predictions.schema import Header
from foldwise.predictions.selection import choose_simplest
from foldwise.predictions.store import iter_average_maps, read_header, read_predictions, write_predictions
from foldwise.predictions.writers import PredictionWriter
from foldwise.reporting.ensemble_report import report_ensemble
from foldwise.tasks import find_task

ROOT = Path(__file__).parents[1]
CLASSES = ["a", "b", "c"]
FOLDS = 3
METRICS = {"multilabel": "LogLoss", "multiclass": "LogLoss", "segmentation": "MeanIoU"}


class World:
    """A table, its truth, and members that see the truth through noise, each written as a source."""

    def __init__(
        self, root, task="multilabel", rows=180, metric=None, noise=(1.0, 1.2, 1.4), classes=3, units=False, seed=3
    ):
        self.root, self.task, self.names = root, task, CLASSES[:classes]
        self.rng = np.random.default_rng(seed)
        self.ids = [f"r{row}" for row in range(rows)]
        self.test_ids = [f"t{row}" for row in range(40)]
        self.folds = np.arange(rows) // (2 if units else 1) % FOLDS
        self.truth = self.targets(rows // 2).repeat(2, axis=0) if units else self.targets(rows)
        self.test_truth = self.targets(40)
        self.units = units
        self.metric = metric or METRICS[task]
        root.mkdir(exist_ok=True)
        cv2.imwrite(str(root / "x.png"), np.zeros((4, 4, 3), np.uint8))
        self.write_tables()
        self.sources = [self.write_source(f"m{number}", sigma) for number, sigma in enumerate(noise)]

    def targets(self, rows):
        if self.task == "multilabel":
            return (self.rng.random((rows, len(self.names))) < 0.4).astype(float)
        return np.eye(len(self.names))[self.rng.integers(0, len(self.names), rows)]

    def write_tables(self):
        column = "labels" if self.task == "multilabel" else "label"
        labels = [" ".join(name for name, yes in zip(self.names, row, strict=True) if yes) for row in self.truth]
        frame = pd.DataFrame({"id": self.ids, "image": "x.png", "fold": self.folds, column: labels})
        frame["site"] = ["north" if row[0] else "south" for row in self.truth]
        frame["unit"] = [f"u{row // 2}" for row in range(len(self.ids))]
        frame["camera"] = np.arange(len(self.ids)) % 7 % 3
        frame.to_csv(self.root / "train.csv", index=False)
        test = pd.DataFrame({"id": self.test_ids, "image": "x.png"})
        test["site"] = ["north" if row[0] else "south" for row in self.test_truth]
        test["unit"] = [f"t{row // 2}" for row in range(40)] if self.units else self.test_ids
        test["camera"] = np.arange(40) % 5 % 3
        test.to_csv(self.root / "test.csv", index=False)

    def probability(self, truth, sigma):
        """What an honest model with this noise would say: the posterior of a Gaussian observation."""
        odds = (2 * truth - 1 + sigma * self.rng.normal(size=truth.shape)) * 2 / sigma**2
        if self.task == "multilabel":
            return 1 / (1 + np.exp(-odds))
        values = np.exp(odds - odds.max(axis=1, keepdims=True))
        return values / values.sum(axis=1, keepdims=True)

    def config(self):
        columns = {"fold": "fold", "unit": "unit" if self.units else None}
        data = {"name": "test", "root": str(self.root), "table": str(self.root / "train.csv"), "columns": columns}
        data |= {"test_table": str(self.root / "test.csv"), "prepared": str(self.root), "classes": self.names}
        return {
            "task": self.task,
            "data": data,
            "samples": SAMPLES,
            "metric": {"_target_": f"foldwise.predictions.metrics.{self.metric}"},
        }

    def header(self, split, **values):
        hashed = folds_hash(dict(zip(self.ids, self.folds.tolist(), strict=True)))
        return replace(Header(split=split, task=self.task, columns=self.names, folds_hash=hashed), **values)

    def frame(self, ids, folds, probability, snapshot="last"):
        frame = pd.DataFrame({"id": ids, "fold": folds, "snapshot": snapshot, "view": "identity"})
        return pd.concat([frame, pd.DataFrame(probability, columns=self.names)], axis=1)

    def write_source(self, name, sigma, oof=None, test=None, **header):
        folder = self.root / name
        oof = self.probability(self.truth, sigma) if oof is None else oof
        write_predictions(folder / "oof", self.frame(self.ids, self.folds, oof), self.header("oof", **header))
        frames = [
            self.frame(self.test_ids, fold, self.probability(self.test_truth, sigma) if test is None else test)
            for fold in range(FOLDS)
        ]
        write_predictions(folder / "predictions" / "test-none", pd.concat(frames), self.header("test", **header))
        (folder / "config.yaml").write_text(yaml.safe_dump(self.config()))
        return folder

    def oof(self, source):
        return read_predictions(source / "oof").frame[self.names].to_numpy()

    def test(self, source, fold):
        frame = read_predictions(source / "predictions" / "test-none").frame
        return frame[frame["fold"] == fold].set_index("id").loc[self.test_ids, self.names].to_numpy()


@pytest.fixture
def world(tmp_path):
    """A world to change."""
    return World(tmp_path / "world")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The same world, for tests that change nothing in it."""
    return World(tmp_path_factory.mktemp("shared") / "world")


def log_loss(target, probability):
    return -np.mean(target * np.log(probability) + (1 - target) * np.log(1 - probability))


def test_means_are_their_definitions():
    p = np.random.default_rng(0).random((3, 50, 4)).astype(np.float32)
    q = p / p.sum(axis=2, keepdims=True)
    w = np.array([0.5, 0.2, 0.3])
    np.testing.assert_allclose(arithmetic(p, w), np.einsum("m,mnc->nc", w, p), rtol=1e-5)
    product = np.prod(q.astype(float) ** w[:, None, None], axis=0)
    np.testing.assert_allclose(geometric(q, w, True), product / product.sum(axis=1, keepdims=True), rtol=1e-4)
    yes, no = (np.prod(v.astype(float) ** w[:, None, None], axis=0) for v in (p, 1 - p))
    np.testing.assert_allclose(geometric(p, w, False), yes / (yes + no), rtol=1e-3)
    maps = q.transpose(0, 2, 1)
    np.testing.assert_allclose(geometric(maps, w, True, axis=0), geometric(q, w, True).T, rtol=1e-5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_geometric_mean_is_finite_where_members_are_sure(exclusive):
    sure = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]], np.float32)
    mean = geometric(sure, np.full(3, 1 / 3), exclusive)
    assert np.isfinite(mean).all() and mean[0, 0] > 0.9 and mean.sum() == pytest.approx(1)


def test_rank_mean_only_depends_on_the_order():
    from scipy.stats import rankdata

    p = np.random.default_rng(0).random((2, 30, 3)).astype(np.float32).round(1)  # with ties
    weights = np.array([0.25, 0.75])
    np.testing.assert_allclose(rank_mean(p, weights), rank_mean(p**3, weights))
    expected = sum(w * (rankdata(m, axis=0) - 0.5) / 30 for w, m in zip(weights, p, strict=True))
    np.testing.assert_allclose(rank_mean(p, weights), expected, rtol=1e-6)


@pytest.mark.parametrize("multilabel", [True, False])
def test_simplex_weights_are_the_minimum_of_a_fine_grid(multilabel, tmp_path):
    made = World(tmp_path / "w", "multilabel" if multilabel else "multiclass", noise=(), rows=800)
    members = np.stack([made.probability(made.truth, sigma) for sigma in (1.0, 1.3, 2.0)]).astype(np.float32)

    def loss(w):
        mean = np.tensordot(w, members, axes=1).astype(float)
        return log_loss(made.truth, mean) if multilabel else -np.log(mean[made.truth > 0]).mean()

    grid = [np.array([a, b, 100 - a - b]) / 100 for a in range(101) for b in range(101 - a)]
    weights = simplex_weights(members, made.truth, not multilabel)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    assert loss(weights) <= min(map(loss, grid)) + 1e-6
    np.testing.assert_allclose(weights, min(grid, key=loss), atol=0.03)


def run(world, tmp_path, name="out", **options):
    comparison, written = ensemble(options.pop("sources", world.sources), tmp_path / name, **options)
    return comparison, tmp_path / name, written


def test_each_fold_is_blended_without_its_labels_and_its_own_models_predict_the_test(shared, tmp_path):
    comparison, out, _ = run(shared, tmp_path, use="simplex")
    members, blended = np.stack([shared.oof(source) for source in shared.sources]), shared.oof(out)
    for fold in range(FOLDS):
        held = shared.folds == fold
        weights = simplex_weights(members[:, ~held].astype(np.float32), shared.truth[~held], False)
        np.testing.assert_allclose(comparison.weights[comparison.chosen][fold], weights, atol=1e-4)
        np.testing.assert_allclose(blended[held], arithmetic(members[:, held], weights), atol=1e-4)
        tests = np.stack([shared.test(source, fold) for source in shared.sources])
        np.testing.assert_allclose(shared.test(out, fold), arithmetic(tests, weights), atol=1e-4)
        assert comparison.scores[comparison.chosen][fold] == pytest.approx(
            log_loss(shared.truth[held], blended[held].astype(float)), abs=1e-6
        )
    assert comparison.strict is None


@pytest.mark.parametrize("task", ["multilabel", pytest.param("multiclass", marks=pytest.mark.slow)])
def test_logistic_regression_equals_scikit_learn_by_hand(task, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    world = World(tmp_path / "world", task, classes=2)
    _, out, _ = run(world, tmp_path, use="logistic", methods=["mean"])
    members = np.stack([world.oof(source) for source in world.sources]).astype(float)
    tests = np.stack([world.test(source, 2) for source in world.sources]).astype(float)
    held = world.folds == 2
    expected = []
    for index in range(2):
        odds = [np.log(p / (1 - p)) for p in (members, tests)]
        inputs, test_inputs = (np.hstack([values[:, :, index].T, values.mean(axis=0)]) for values in odds)
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=1000))
        grid = {"logisticregression__C": [0.001, 0.01, 0.1, 1.0]}
        parts = PredefinedSplit(np.unique(world.folds[~held], return_inverse=True)[1])
        search = GridSearchCV(pipeline, grid, cv=parts, scoring="neg_log_loss")
        search.fit(inputs[~held], world.truth[~held, index])
        expected.append(search.predict_proba(test_inputs)[:, 1])
    expected = np.stack(expected, axis=1)
    if task == "multiclass":
        expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(world.test(out, 2), expected, atol=2e-3)


def test_a_bad_member_gets_next_to_no_weight(world, tmp_path):
    noise = world.write_source("noise", 1, world.rng.random(world.truth.shape), world.rng.random((40, 3)))
    sources = [*world.sources, noise]
    comparison, out, _ = run(world, tmp_path, sources=sources, methods=["simplex", "greedy"], report=report_ensemble)
    for weights in comparison.weights[2:]:
        assert weights[:, 3].max() < 0.02
        assert weights.sum(axis=1) == pytest.approx(1)
    errors = [(world.oof(source) - world.truth).ravel() for source in sources]
    np.testing.assert_allclose(comparison.correlation, np.corrcoef(errors), atol=1e-4)
    written = json.loads((out / "ensemble.json").read_text())
    assert [member["name"] for member in written["members"]] == ["m0", "m1", "m2", "noise"]
    assert "data:image/png" in (out / "report.html").read_text()


def test_copies_of_a_member_are_correlated_and_gain_nothing(tmp_path):
    world = World(tmp_path / "world", noise=(1.0,))
    copies = [world.write_source(f"copy{number}", 1, world.oof(world.sources[0])) for number in range(2)]
    comparison, _, _ = run(world, tmp_path, sources=[*world.sources, *copies])
    np.testing.assert_allclose(comparison.correlation, 1, atol=1e-5)
    assert comparison.names[comparison.chosen] == "single" and "Not better" in comparison.verdict


def test_the_simplest_method_within_one_standard_error_is_written(shared, tmp_path):
    comparison, out, _ = run(shared, tmp_path)
    assert comparison.chosen == choose_simplest(comparison.scores, greater_is_better=False)
    mean = arithmetic(np.stack([shared.oof(source) for source in shared.sources]), np.full(3, 1 / 3))
    number = comparison.names.index("mean")
    assert comparison.overall[number] == pytest.approx(log_loss(shared.truth, mean.astype(float)), abs=1e-6)
    gain = comparison.scores[0] - comparison.scores[number]
    assert comparison.gain(number, "single") == pytest.approx((gain.mean(), gain.std(ddof=1) / FOLDS**0.5))
    assert json.loads((out / "ensemble.json").read_text())["verdict"] == comparison.verdict


@pytest.mark.parametrize("method", ["single", "simplex", "greedy", "logistic", "network"])
def test_the_labels_of_a_fold_do_not_reach_its_own_predictions(method, tmp_path):
    world = World(tmp_path / "world", rows=120, noise=(1.0, 1.1), classes=1)
    _, before, _ = run(world, tmp_path, "before", use=method, methods=["mean"])
    world.truth[world.folds == 1] = 1 - world.truth[world.folds == 1]
    world.write_tables()
    _, after, _ = run(world, tmp_path, "after", use=method, methods=["mean"])
    held = world.folds == 1
    assert world.oof(before)[held].tobytes() == world.oof(after)[held].tobytes()
    assert world.test(before, 1).tobytes() == world.test(after, 1).tobytes()
    if method in ("simplex", "logistic"):
        assert world.oof(before)[~held].tobytes() != world.oof(after)[~held].tobytes()


@pytest.mark.parametrize("seed", [20, 21, 26, 27])
def test_the_labels_of_a_fold_have_no_part_in_thresholds_that_rank_its_sources(seed, tmp_path):
    """Sources alike, whose order hangs on the threshold at which the other folds are scored."""
    world = World(tmp_path / "world", rows=45, metric="FBeta", noise=(1.5, 1.5, 1.5), classes=2, seed=seed)
    _, before, _ = run(world, tmp_path, "before", use="single", methods=["mean"])
    held = world.folds == 1
    world.truth[held] = 1 - world.truth[held]
    world.write_tables()
    _, after, _ = run(world, tmp_path, "after", use="single", methods=["mean"])
    assert world.oof(before)[held].tobytes() == world.oof(after)[held].tobytes()


@pytest.mark.parametrize("name", ["linear", "logistic", "boosting"])
def test_stacking_is_its_scikit_learn_model_of_each_class(name, shared):
    members = np.stack([shared.oof(source) for source in shared.sources])
    count = len(shared.ids)
    extra = Extra(np.zeros((count, 0), np.float32), np.arange(count), np.zeros(count, int))
    table = read_table(shared.root / "train.csv", "multilabel", shared.root, Columns(fold="fold"), CLASSES)
    metric = LogLoss().for_task("multilabel", CLASSES)
    one = np.zeros(len(shared.ids), int)  # of one fold nothing can be chosen inside
    examples = Examples(table, metric, np.arange(len(one)), one, members, extra, {0: np.zeros((3, 1))})
    learner = {"linear": LINEAR, "logistic": LOGISTIC, "boosting": BOOSTING}[name]
    stack = fit_stack(learner, examples).predict(members, extra)
    for index in range(3):
        values = np.log(members / (1 - members)) if learner.odds else members
        inputs = np.hstack([values[:, :, index].T, values.mean(axis=0)])
        model = learner.make().set_params(**{key: options[0] for key, options in learner.grid.items()})
        model.fit(inputs, shared.truth[:, index] > 0.5)
        said = model.predict(inputs) if name == "linear" else model.predict_proba(inputs)[:, 1]
        np.testing.assert_allclose(stack[:, index], said.clip(0, 1), atol=1e-3)


def test_a_class_that_the_other_folds_lack_is_answered_by_its_share(tmp_path):
    world = World(tmp_path / "world", classes=2)
    world.truth[:, 1] = world.folds == 0
    world.write_tables()
    _, out, _ = run(world, tmp_path, use="logistic", methods=["mean"])
    assert (world.oof(out)[world.folds == 0, 1] == 0).all() and (world.test(out, 0)[:, 1] == 0).all()
    assert np.isfinite(world.oof(out)).all()


def test_strict_chooses_and_scores_without_the_fold(world, tmp_path):
    comparison, _, _ = run(world, tmp_path, strict=True)
    methods = comparison.names
    assert len(comparison.strict.chosen) == FOLDS
    for fold, (name, score) in enumerate(zip(comparison.strict.chosen, comparison.strict.scores, strict=True)):
        assert score == pytest.approx(comparison.scores[methods.index(name)][fold])
    world.truth[world.folds == 0] = 1 - world.truth[world.folds == 0]
    world.write_tables()
    again, _, _ = run(world, tmp_path, "again", strict=True)
    assert again.strict.chosen[0] == comparison.strict.chosen[0]


def test_an_ensemble_is_a_source(shared, tmp_path):
    _, first, written = run(shared, tmp_path, "first", sources=shared.sources[:2], use="mean")
    assert written == [first / "oof", first / "predictions" / "test-none"]
    comparison, second, _ = run(shared, tmp_path, "second", sources=[first, shared.sources[2]], weights=[2, 1])
    assert comparison.names[comparison.chosen] == "given"
    mean = np.mean([shared.oof(source) for source in shared.sources], axis=0)
    np.testing.assert_allclose(shared.oof(second), mean, atol=1e-6)
    tests = [shared.test(source, 1) for source in shared.sources]
    np.testing.assert_allclose(shared.test(second, 1), np.mean(tests, axis=0), atol=1e-6)
    assert read_header(second / "oof").folds_hash == shared.header("oof").folds_hash
    assert not list(tmp_path.glob(".*"))


def test_units_are_scored_once(tmp_path):
    world = World(tmp_path / "world", units=True)
    comparison, _, _ = run(world, tmp_path)
    mean = np.mean([world.oof(source) for source in world.sources], axis=0).astype(float)
    expected = log_loss(world.truth[::2], (mean[::2] + mean[1::2]) / 2)
    assert comparison.overall[comparison.names.index("mean")] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("how", ["max", "noisy_or"])
@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_units_are_reduced_as_the_data_say(task, how, tmp_path):
    """In scores, submissions and NaN-proof, for bundles."""
    world = World(tmp_path / "world", task, units=True)
    config = world.config()
    config["data"]["unit_reduction"] = how
    for source in world.sources:
        (source / "config.yaml").write_text(yaml.safe_dump(config))
    comparison, _, _ = run(world, tmp_path, use="mean")
    mean = np.mean([world.oof(source) for source in world.sources], axis=0).astype(float)

    def reduced(pictures):
        values = pictures.max(axis=1) if how == "max" else 1 - (1 - pictures).prod(axis=1)
        return values / values.sum(axis=1, keepdims=True) if task == "multiclass" else values

    values, true = reduced(mean.reshape(-1, 2, 3)), world.truth[::2]
    expected = log_loss(true, values) if task == "multilabel" else -np.log(values[true > 0]).mean()
    assert comparison.overall[comparison.chosen] == pytest.approx(expected, abs=1e-6)
    made = make_submission(
        world.sources[0], decision="probabilities", out=tmp_path / "a.csv", ledger=tmp_path / "l.csv"
    )
    tests = np.mean([reduced(world.test(world.sources[0], fold).reshape(-1, 2, 3)) for fold in range(FOLDS)], axis=0)
    np.testing.assert_allclose(pd.read_csv(made.path)[world.names], tests, atol=1e-6)
    broken = np.array([[0.2, np.nan, 1.0], [np.nan, np.nan, 0.5]])
    got = find_task("multilabel").of_units(broken, np.array([0, 0]), how)
    np.testing.assert_allclose(got, [[0.2, np.nan, 1.0]])


def test_metadata_columns_reach_stacking(tmp_path):
    world = World(tmp_path / "world", classes=1)
    blind, _, _ = run(world, tmp_path, "blind", methods=["logistic"])
    seeing, out, _ = run(world, tmp_path, "seeing", methods=["logistic"], columns=["site"], use="logistic")
    assert seeing.overall[-1] < blind.overall[-1] - 0.05  # the site gives class a away
    one = run(world, tmp_path, "one", sources=world.sources[:1], methods=["logistic"], columns=["site"])[0]
    assert one.overall[-1] < blind.overall[-1] - 0.05  # one source is enough
    frame = read_predictions(out / "predictions" / "test-none").frame.groupby("id")["a"].mean()
    assert ((frame.loc[world.test_ids] > 0.5) == (world.test_truth[:, 0] > 0.5)).mean() > 0.95
    with pytest.raises(Refusal, match="labels is the target\n.*unit identifies(.|\n)*no column moon"):
        run(world, tmp_path, "bad", methods=["logistic"], columns=["labels", "unit", "moon"])
    with pytest.raises(Refusal, match="--columns needs a stacking method: add --methods"):
        run(world, tmp_path, "bad", columns=["site"])


def test_ranks_are_for_ranking_metrics_and_are_marked(tmp_path):
    world = World(tmp_path / "world", "multiclass", metric="RocAuc", classes=2, rows=120)
    comparison, out, _ = run(world, tmp_path, use="rank")
    assert "rank" in comparison.names and read_header(out / "oof").ranks
    assert read_header(out / "predictions" / "test-none").ranks
    assert not read_header(world.sources[0] / "oof").ranks
    with pytest.raises(Refusal, match="mean ranks, not probabilities"):
        run(world, tmp_path, "again", sources=[out, world.sources[0]])
    for made in (World(tmp_path / "w3", "multiclass", metric="RocAuc", rows=60), World(tmp_path / "loss", rows=60)):
        with pytest.raises(Refusal, match="no method rank"):
            run(made, tmp_path, "bad", use="rank")


def test_members_that_do_not_belong_are_refused_by_name(world, tmp_path):
    probability = np.full(world.truth.shape, 0.5)
    folds = world.write_source("folds", 1, folds_hash="other")
    classes = world.write_source("classes", 1)
    header = json.loads((classes / "oof" / "predictions.json").read_text())
    (classes / "oof" / "predictions.json").write_text(json.dumps(header | {"columns": ["c", "b", "a"]}))
    ids = world.root / "ids"
    write_predictions(ids / "oof", world.frame(world.ids, world.folds, probability)[:-1], world.header("oof"))
    write_predictions(
        ids / "predictions" / "test-none", world.frame(world.test_ids, 0, probability[:40]), world.header("test")
    )
    with pytest.raises(Refusal) as caught:
        run(world, tmp_path, sources=[*world.sources, folds, classes, ids])
    text = str(caught.value)
    for name in (folds, classes, ids):
        assert f"{name / 'oof'}:" in text
    assert "m0" not in text and "the folds other" in text and "have no prediction: r179" in text
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_test_predictions_that_do_not_belong_are_refused_by_name(world, tmp_path):
    some, fewer, none = (world.write_source(name, 1) for name in ("some", "fewer", "none"))
    for name, folder, ids in (("some", some, world.test_ids), ("fewer", fewer, world.test_ids[1:])):
        target = folder / "predictions" / "test-none"
        frame = pd.concat(
            [world.frame(ids, fold, np.full((len(ids), 3), 0.5)) for fold in range(FOLDS - (name == "some"))]
        )
        for file in target.iterdir():
            file.unlink()
        target.rmdir()
        write_predictions(target, frame, world.header("test"))
    with pytest.raises(Refusal) as caught:
        run(world, tmp_path, sources=[*world.sources, some, fewer])
    assert "they have the folds [0, 1]," in str(caught.value) and "1 ids are missing" in str(caught.value)
    (none / "predictions").rename(none / "away")
    with pytest.raises(Refusal, match="none: no test predictions"):
        run(world, tmp_path, sources=[*world.sources, none])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": [1, 2]}, "3 numbers"),
        ({"weights": [1, -1, 1]}, "3 numbers"),
        ({"weights": [1, 1, 1], "use": "mean"}, "leave those out"),
        ({"methods": ["majority"]}, "there is no method majority"),
        ({"test": "test-d4"}, "no predictions called test-d4"),
    ],
)
def test_bad_choices_are_refused_with_a_message(shared, tmp_path, options, message):
    with pytest.raises(Refusal, match=message):
        run(shared, tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(shared, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(Refusal, match="not overwritten"):
        run(shared, tmp_path)


def segmentation(root, images=8, size=6, folds=None, sharpness=(2.0, 1.0, 0.0)):
    """Three sources that know the masks less and less: sources, maps of each by (id, fold), world, masks."""
    rng = np.random.default_rng(0)
    world = World.__new__(World)
    world.root, world.task, world.names, world.units, world.metric = root, "segmentation", CLASSES, False, "MeanIoU"
    world.ids, world.test_ids = [f"r{i}" for i in range(images)], ["t0", "t1"]
    world.folds = np.arange(images) % FOLDS if folds is None else np.array(folds)
    (root / "masks").mkdir(parents=True)
    masks = rng.integers(0, 3, (images, size, size + 1)).astype(np.uint8)
    for id, mask in zip(world.ids, masks, strict=True):
        mask[0, 0] = 255
        cv2.imwrite(str(root / "masks" / f"{id}.png"), mask)
    cv2.imwrite(str(root / "x.png"), np.zeros((4, 4, 3), np.uint8))
    frame = pd.DataFrame({"id": world.ids, "image": "x.png", "fold": world.folds})
    frame["mask"] = [f"masks/{id}.png" for id in world.ids]
    frame.to_csv(root / "train.csv", index=False)
    maps = []
    for number, known_by in enumerate(sharpness):
        said = {}
        for id, fold, mask in [
            *((id, fold, mask) for id, fold, mask in zip(world.ids, world.folds.tolist(), masks, strict=True)),
            *((id, fold, masks[0]) for id in world.test_ids for fold in range(FOLDS)),
        ]:
            known = np.eye(3)[np.minimum(mask, 2)].transpose(2, 0, 1)
            values = np.exp(known_by * known + rng.normal(size=known.shape))
            said[id, fold] = np.rint(values / values.sum(axis=0) * 255).astype(np.uint8)
        folder = root / f"s{number}"
        for kind, name in (("oof", "oof"), ("test", "predictions/test-none")):
            with PredictionWriter(folder / name, world.header(kind)) as writer:
                for (id, fold), values in said.items():
                    if (id in world.ids) == (kind == "oof"):
                        writer.add(id, fold, "last", "identity", values)
        (folder / "config.yaml").write_text(yaml.safe_dump(world.config()))
        maps.append(said)
    return [root / f"s{number}" for number in range(3)], maps, world, masks


def simplex_of_other_folds(maps, world, masks, fold):
    """The weights of a fold: by log loss of all pixels of the other folds, found on a fine grid."""
    others = [(id, own) for id, own in zip(world.ids, world.folds.tolist(), strict=True) if own != fold]
    pixels = []
    for id, own in others:
        mask = masks[world.ids.index(id)]
        valid = np.argwhere(mask < 255)
        pixels.append([[said[id, own][mask[y, x], y, x] / 255 for y, x in valid] for said in maps])
    pixels = np.concatenate(pixels, axis=1)

    def loss(weights):
        return -np.log((np.array(weights) @ pixels).clip(1e-6)).mean()

    grid = [(a / 50, b / 50, (50 - a - b) / 50) for a in range(51) for b in range(51 - a)]
    best = min(grid, key=loss)
    fine = [(best[0] + i / 1000, best[1] + j / 1000) for i in range(-25, 26) for j in range(-25, 26)]
    fine = [(a, b, 1 - a - b) for a, b in fine if a >= 0 and b >= 0 and a + b <= 1 + 1e-9]
    return np.array(min(fine, key=loss))


def map_bytes(folder, fold):
    """The stored maps of a fold's models, in their order."""
    frame = read_predictions(folder).frame
    arrays = [np.load(folder / file)["probability"] for file in frame["file"][frame["fold"] == fold]]
    return b"".join(array.tobytes() for array in arrays)


@pytest.mark.parametrize("method", ["single", "simplex"])
def test_the_masks_of_a_fold_do_not_reach_its_own_maps(method, tmp_path):
    """Fold 1 has four times as many images as another: whatever is fitted on it too follows its masks."""
    sources, _, world, masks = segmentation(tmp_path / "world", 12, folds=[0, 0, 2, 2] + [1] * 8)
    results = []
    for name in ("before", "after"):
        comparison, written = ensemble(sources, tmp_path / name, use=method, strict=True)
        free, _ = ensemble(sources, tmp_path / f"{name}-free", strict=True)
        of_fold = [[map_bytes(folder, fold) for folder in written] for fold in range(FOLDS)]
        results.append((comparison.weights[comparison.chosen], of_fold, free.strict.chosen))
        for id in np.array(world.ids)[world.folds == 1]:  # for the second time
            mask = masks[world.ids.index(id)]
            cv2.imwrite(str(world.root / "masks" / f"{id}.png"), np.where(mask < 255, (mask + 1) % 3, mask))
    (weights, of_fold, chosen), (new_weights, new_of_fold, new_chosen) = results
    assert weights[1].tobytes() == new_weights[1].tobytes() and of_fold[1] == new_of_fold[1]
    assert chosen[1] == new_chosen[1]
    for fold in (0, 2):
        assert weights[fold].argmax() == 0 != new_weights[fold].argmax() and of_fold[fold] != new_of_fold[fold]


@pytest.mark.parametrize("method", ["geometric", "simplex"])
def test_blended_maps_equal_brute_force(method, tmp_path):
    sources, maps, world, masks = segmentation(tmp_path / "world", sharpness=(1.5, 1.3, 0.0))
    comparison, written = ensemble(sources, tmp_path / "out", use=method, strict=True)
    number = comparison.chosen
    weights = [simplex_of_other_folds(maps, world, masks, fold) for fold in range(FOLDS)]
    if method == "simplex":
        np.testing.assert_allclose(comparison.weights[number], weights, atol=1e-3)
        assert np.ptp(weights, axis=0)[:2].min() > 0.1  # with all folds they would be alike
    counts = []
    for folder in written:
        for part in read_predictions(folder).frame.itertuples():
            members = np.stack([said[part.id, part.fold] for said in maps]).astype(np.float32) / 255
            expected = np.tensordot(weights[part.fold], members, axes=1)
            if method == "geometric":
                logs = np.log(members.clip(0.5 / 255, 1)).mean(axis=0)
                expected = np.exp(logs) / np.exp(logs).sum(axis=0)
            with np.load(folder / part.file) as arrays:
                np.testing.assert_allclose(arrays["probability"] / 255, expected, atol=0.6 / 255)
            if folder.name == "oof":
                mask = masks[world.ids.index(part.id)]
                true, answer = mask[mask < 255], expected.argmax(axis=0)[mask < 255]
                counts.append(
                    [[((true == c) & (answer == c)).sum(), ((true == c) | (answer == c)).sum()] for c in range(3)]
                )
    inside, union = np.sum(counts, axis=0).T
    assert comparison.overall[number] == pytest.approx((inside / union).mean())
    assert comparison.strict.overall == pytest.approx(comparison.overall[number])
    if method == "simplex":
        assert comparison.weights[number][:, 2].max() < 0.15 and comparison.weights[number][:, 0].min() > 0.5
    header = read_header(written[1])
    assert len(header.members) == FOLDS and {m["snapshot"] for m in header.members} == {"mean"}
    assert len(list(iter_average_maps(read_predictions(written[1])))) == 2


def test_maps_of_another_size_are_refused_and_stacking_too(tmp_path):
    sources, maps, world, _ = segmentation(tmp_path / "world")
    other = tmp_path / "world" / "other"
    for kind, name in (("oof", "oof"), ("test", "predictions/test-none")):
        with PredictionWriter(other / name, world.header(kind)) as writer:
            for (id, fold), values in maps[0].items():
                if (id in world.ids) == (kind == "oof"):
                    writer.add(id, fold, "last", "identity", values[:, :, :-1] if id == "r3" else values)
    with pytest.raises(Refusal, match="other/oof:\n.*1 maps differ in size .*: r3"):
        ensemble([*sources, other], tmp_path / "out")
    with pytest.raises(Refusal, match="no method logistic for segmentation"):
        ensemble(sources, tmp_path / "out", use="logistic")


def test_the_command(shared, tmp_path, command):
    sources = [*map(str, shared.sources), "--out", str(tmp_path / "out")]
    code, said, _ = command("ensemble.py", *sources, "--weights", 1, 2, 3)
    assert code == 0 and "cross-fitted" in said and "submit.py" in said and str(tmp_path / "out" / "oof") in said
    again = subprocess.run([sys.executable, "ensemble.py", *sources], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("error: ") and "Traceback" not in again.stderr
