"""evaluate.py: intervals against brute force and closed forms, and the command on predictions written by hand."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from rows import SAMPLES, records
from scipy.stats import binom, ttest_rel
from tiny import code_of

from foldwise.data.folds import folds_hash
from foldwise.errors import Refusal
from foldwise.predictions.evaluation.bootstrap import compare, interval, resample
from foldwise.predictions.evaluation.evaluate import evaluate
from foldwise.predictions.evaluation.evidence import (
    expected_calibration_error,
    reliability_bins,
    reliability_curve,
)
from foldwise.predictions.metrics import METRICS, BinaryMetric, Dice, MeanIoU, RowMetric, score_folds
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.metrics.folds import fold_score, prepare_score
from foldwise.predictions.schema import Header
from foldwise.predictions.store import write_predictions
from foldwise.predictions.writers import PredictionWriter

ROOT = Path(__file__).parents[1]
CLASSES = ["blue", "green", "red"]
ROWS = 60


def positive(kind, name):
    """The class of a metric of one class."""
    return {"positive": name} if issubclass(kind, BinaryMetric) else {}


def made_up(task, rows=80, classes=4, seed=0):
    """Targets, and probabilities with ties."""
    rng = np.random.default_rng(seed)
    if task == "multilabel":
        target = (rng.random((rows, classes)) < 0.3).astype(float)
        return target, np.round(np.clip(0.3 * target + 0.7 * rng.random((rows, classes)), 0, 1), 1)
    target = np.eye(classes)[rng.integers(classes, size=rows)]
    probability = rng.dirichlet(np.ones(classes), rows) + 0.5 * target
    return target, np.round(probability / probability.sum(axis=1, keepdims=True), 1)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        (name, task)
        for name, kind in METRICS.items()
        for task in kind.tasks()
        if issubclass(kind, RowMetric) and name != "published"
    ],
)
@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of classes that a draw lacks
def test_weighted_scores_are_scores_of_repeated_rows(name, task, folds):
    target, probability = made_up(task)
    kind = METRICS[name]
    metric = kind(**positive(kind, "b")).for_task(task, list("abcd"))
    fold = np.arange(len(target)) % folds
    score = fold_score(metric, (target, probability, records(len(target))), fold)
    rng = np.random.default_rng(1)
    for _ in range(5):
        weight = np.bincount(rng.integers(len(target), size=len(target)), minlength=len(target))
        drawn = np.repeat(np.arange(len(target)), weight)
        expected = score_folds(metric, target[drawn], probability[drawn], fold[drawn])[1]
        assert score(weight.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_a_published_metric_sees_repeated_rows():
    target, probability = made_up("multiclass")
    config = {"_target_": "foldwise.predictions.metrics.Published", "function": "solution.metric.score"}
    metric = build_metric(config, "multiclass", list("abcd"), alias=code_of(config).alias)
    weight = np.random.default_rng(0).integers(0, 3, len(target))
    by_hand = 1 - np.average(np.abs(target - probability).mean(axis=1), weights=weight)
    score = prepare_score(metric, target, probability, records(len(target)))
    assert score(weight.astype(float)) == pytest.approx(by_hand)


@pytest.mark.parametrize("name", ["mean_iou", "dice"])
def test_weighted_pixel_counts(name):
    counts = np.random.default_rng(0).integers(1, 50, (20, 4, 3))
    counts[:, :, 0] = counts.min(axis=2)
    metric = METRICS[name]().for_task("segmentation", list("abcd"))
    weight = np.random.default_rng(1).integers(0, 3, 20)
    expected = metric.reduce(np.repeat(counts, weight, axis=0))
    assert prepare_score(metric, counts)(weight.astype(float)) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("metric", [MeanIoU(), Dice(), Dice(per_image=True)])
def test_a_draw_of_no_masks_has_no_score(metric):
    metric = metric.for_task("segmentation", list("abcd"))
    assert np.isnan(prepare_score(metric, np.ones((20, 4, 3), int))(np.zeros(20)))


def test_bootstrap_of_a_share_is_binomial():
    """The bootstrap distribution of a share of n images is Binomial(n, share) / n."""
    rows, share = 400, 0.8
    right = (np.arange(rows) < share * rows).astype(float)
    part = (np.arange(rows), lambda weight: float(weight @ right / weight.sum()))
    samples = resample([part], np.arange(rows), 4000, 0)[:, 0]
    assert samples.mean() == pytest.approx(share, abs=4 * samples.std() / np.sqrt(4000))
    np.testing.assert_allclose(interval(samples), binom.ppf([0.025, 0.975], rows, share) / rows, atol=0.005)


def test_intervals_cover_the_true_value_as_often_as_they_claim():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        right = (rng.random(100) < 0.7).astype(float)
        part = (np.arange(100), lambda weight, right=right: float(weight @ right / weight.sum()))
        low, high = interval(resample([part], np.arange(100), 300, trial)[:, 0])
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 200 <= 0.99  # 0.95 within four standard errors, and the percentile interval's small shortfall


def test_groups_are_drawn_and_not_images():
    """20 groups of 10 equal images: the interval is that of 20 images, not of 200."""
    each = (np.random.default_rng(0).random(20) < 0.6).astype(float)
    groups = np.repeat(np.arange(20), 10)
    values = each[groups]
    part = (np.arange(200), lambda weight: float(weight @ values / weight.sum()))
    whole = resample([part], groups, 2000, 0)[:, 0]
    single = resample([part], np.arange(200), 2000, 0)[:, 0]
    assert whole.std() == pytest.approx(each.std() / np.sqrt(20), rel=0.07)
    assert single.std() == pytest.approx(each.std() / np.sqrt(200), rel=0.07)


def test_a_draw_without_the_subgroup_has_no_score():
    part = (np.array([3]), lambda weight: 1.0 if weight.sum() else float("nan"))
    samples = resample([part], np.arange(4), 2000, 0)[:, 0]
    assert np.isnan(samples).mean() == pytest.approx((3 / 4) ** 4, abs=0.04)
    assert interval(samples) == (1, 1)
    assert np.isnan(interval(np.array([1.0, np.nan, np.nan]))).all()


def test_seeds_are_compared_as_by_a_paired_t_test():
    first, second = np.array([0.81, 0.84, 0.80, 0.83]), np.array([0.80, 0.81, 0.79, 0.83])
    samples = np.tile(first, (100, 1)), np.tile(second, (100, 1))
    result = compare(first, second, *samples, greater_is_better=True)
    expected = ttest_rel(first, second).confidence_interval(0.95)
    assert (result.seed_low, result.seed_high) == pytest.approx((expected.low, expected.high))
    assert result.verdict == "no clear difference"  # over images it is sure, over seeds it is not
    assert compare(first + 0.1, second, samples[0] + 0.1, samples[1], True).verdict == "better"
    assert compare(first + 0.1, second, samples[0] + 0.1, samples[1], False).verdict == "worse"
    assert (
        compare(first[:1], second[:1], samples[0][:, :1], samples[1][:, :1], True).verdict == "better on these images"
    )


def test_expected_calibration_error():
    """Everything said at 0.8 and right in 60 %: the error is 0.2. The sums of parts are those of the whole."""
    right = np.arange(100) < 60
    assert expected_calibration_error(reliability_bins(np.full(100, 0.8), right)) == pytest.approx(0.2)
    rng = np.random.default_rng(0)
    confidence = np.append(rng.random(999), 1.0)
    outcome = rng.random(1000) < confidence**2
    sums = reliability_bins(confidence, outcome)
    np.testing.assert_allclose(sums, sum(reliability_bins(confidence[i::3], outcome[i::3]) for i in range(3)))
    bins = np.minimum(np.floor(confidence * 15), 14)
    by_hand = pd.DataFrame({"bin": bins, "confidence": confidence, "right": outcome}).groupby("bin").mean()
    np.testing.assert_allclose(reliability_curve(sums), by_hand.to_numpy().T)
    shares = np.bincount(bins.astype(int)) / 1000
    assert expected_calibration_error(sums) == pytest.approx(shares @ np.abs(by_hand["confidence"] - by_hand["right"]))
    assert expected_calibration_error(sums) == pytest.approx(1 / 6, abs=0.03)  # the integral of x - x²


@pytest.fixture(params=["multiclass", "multilabel", "segmentation"])
def task(request):
    """The tasks of classes; numbers: test_open_tasks."""
    return request.param


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data root with tables of 60 rows in 20 groups and 2 folds, for each task."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"{row:03d}" for row in range(ROWS)]})
    frame["image"] = "image.png"
    frame["scene"] = [f"s{row // 3}" for row in range(ROWS)]
    frame["fold"] = np.arange(ROWS) // 3 % 2
    frame["weather"] = np.where(np.arange(ROWS) < 6, "fog", np.where(np.arange(ROWS) % 2, "rain", "sun"))
    frame["label"] = [CLASSES[row % 3] for row in range(ROWS)]
    frame["labels"] = [" ".join(CLASSES[: row % 4]) for row in range(ROWS)]
    frame["mask"] = [f"mask{row % 4}.png" for row in range(ROWS)]
    cv2.imwrite(str(root / "image.png"), rng.integers(0, 256, (12, 16, 3), np.uint8))
    for number in range(4):
        mask = rng.integers(0, 3, (12, 16), np.uint8)
        mask[:2] = 255
        cv2.imwrite(str(root / f"mask{number}.png"), mask)
    frame.to_csv(root / "train.csv", index=False)
    frame.drop(columns="fold").to_csv(root / "labelled.csv", index=False)
    return root


def make_config(folder, root, task, group="scene"):
    columns = {"id": "id", "image": "image", "target": None, "group": group, "unit": None, "weight": None}
    data = {"name": "competition", "root": str(root), "table": str(root / "train.csv"), "prepared": str(root)}
    data |= {"columns": columns | {"fold": "fold"}, "classes": CLASSES, "ignore_index": 255}
    metric = {"multiclass": "Accuracy", "multilabel": "FBeta", "segmentation": "MeanIoU"}[task]
    metric = {"_target_": f"foldwise.predictions.metrics.{metric}"}
    config = {"task": task, "data": data, "samples": SAMPLES, "metric": metric}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def make_predictions(folder, root, task, skill=1.0, split="oof", seed=0, mean="arithmetic"):
    """Predictions of the table: better with more skill."""
    frame, rng = pd.read_csv(root / "train.csv", dtype=str), np.random.default_rng(seed)
    folds = dict(zip(frame["id"], frame["fold"].astype(int), strict=True))
    hash = folds_hash(folds) if split == "oof" else None
    tta = {"views": ["identity"], "mean": mean}
    header = Header(split=split, task=task, columns=CLASSES, run="r", folds_hash=hash, tta=tta, created_by="a test")
    members = (0, 1) if split == "test" else (None,)
    if task == "segmentation":
        with PredictionWriter(folder, header) as writer:
            for row in frame.itertuples():
                truth = cv2.imread(str(root / row.mask), cv2.IMREAD_UNCHANGED)
                for member in members:
                    values = rng.random((3, 12, 16)) + skill * (truth == np.arange(3)[:, None, None])
                    values /= values.sum(axis=0)
                    writer.add(row.id, folds[row.id] if member is None else member, "last", "mean", values)
        return
    if task == "multilabel":
        target = np.array(
            [[name in (labels or "").split() for name in CLASSES] for labels in frame["labels"].fillna("")]
        )
    else:
        target = frame["label"].to_numpy()[:, None] == np.array(CLASSES)
    parts = []
    for member in members:
        values = rng.random(target.shape) + skill * target
        values = values / (1 + skill) if task == "multilabel" else values / values.sum(axis=1, keepdims=True)
        part = pd.DataFrame({"id": frame["id"], "fold": list(folds.values()), "snapshot": "last", "view": "mean"})
        part[CLASSES] = values
        parts.append(part if member is None else part.assign(fold=member))
    write_predictions(folder, pd.concat(parts), header)


def make_run(folder, root, task="multiclass", skill=1.0, seed=0, **config):
    make_config(folder, root, task, **config)
    make_predictions(folder / "oof", root, task, skill, seed=seed)
    return folder


def overall(evaluation, metric):
    scores = evaluation.scores
    return scores[(scores["column"] == "") & (scores["metric"] == metric)]


def test_scores_and_subgroups_are_those_of_the_metric(place, tmp_path, task):
    run = make_run(tmp_path / "a", place, task, skill=0.4)
    evaluation = evaluate([run], resamples=200, by=["weather"])
    one, metric = evaluation.evidence[0], evaluation.metrics[0]
    call = metric.reduce if task == "segmentation" else lambda target, probability, _: metric(target, probability)
    for row in evaluation.scores[evaluation.scores["metric"] == type(metric).__name__].itertuples():
        weather = evaluation.truth.table.frame["weather"].to_numpy()
        inside = np.ones(ROWS, bool) if row.column == "" else weather == row.value
        assert row.score == pytest.approx(call(*(array[inside] for array in one.arrays[0])))
        assert row.images == inside.sum()
        assert np.isnan(row.low) if row.value == "fog" else row.low < row.score < row.high
    assert evaluation.groups == 20 and evaluation.drawn == "groups"
    assert any("weather fog: only 2 groups, too few" in note for note in evaluation.notes)
    assert np.isfinite(expected_calibration_error(one.classes.reliability))


def test_subgroups_are_made_of_extra_columns_with_few_values(place, tmp_path):
    """Not of what the table is made of, such as the group and the target, nor of a column with 60 values."""
    frame = pd.read_csv(place / "train.csv", dtype=str)
    frame.assign(number=range(ROWS), one="same").to_csv(tmp_path / "train.csv", index=False)
    run = make_run(tmp_path / "a", place)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["table"] = str(tmp_path / "train.csv")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    scores = evaluate([run], resamples=100).scores
    assert list(dict.fromkeys(scores["column"])) == ["", "weather", "labels"]
    assert set(evaluate([run], resamples=100, by=["scene"]).scores["column"]) == {"", "scene"}
    assert set(scores[scores["column"] == "labels"]["value"]) == {"(empty)", "blue", "blue green", "blue green red"}


def test_pixels_are_counted_as_by_scikit_learn(place, tmp_path):
    from sklearn.metrics import confusion_matrix

    from foldwise.predictions.store import iter_average_maps, read_predictions

    one = evaluate([make_run(tmp_path / "a", place, "segmentation", 0.5)], resamples=100, by=[]).evidence[0]
    truth, answer, confidence = [], [], []
    for row, (_, probability) in enumerate(iter_average_maps(read_predictions(tmp_path / "a" / "oof"))):
        mask = cv2.imread(str(place / f"mask{row % 4}.png"), cv2.IMREAD_UNCHANGED)
        truth.append(mask[mask < 255])
        answer.append(probability.argmax(axis=0)[mask < 255])
        confidence.append(probability.max(axis=0)[mask < 255])
    truth, answer = np.concatenate(truth), np.concatenate(answer)
    np.testing.assert_array_equal(one.classes.confusion, confusion_matrix(truth, answer))
    sums = reliability_bins(np.concatenate(confidence), truth == answer)
    np.testing.assert_allclose(one.classes.reliability, sums)


def test_a_copy_differs_by_exactly_nothing(place, tmp_path, task):
    runs = [make_run(tmp_path / name, place, task, skill=0.4) for name in "ab"]
    differences = evaluate(runs, resamples=100, by=[]).differences
    assert (differences[["difference", "low", "high"]] == 0).all(axis=None)
    assert set(differences["verdict"]) == {"no clear difference"} and set(differences["what"]) == {"b − a"}


def test_differences_are_paired(place, tmp_path):
    """The interval of the difference is brute force on the same draws, and much shorter than unpaired."""
    runs = [make_run(tmp_path / name, place, skill=skill) for name, skill in (("a", 0.4), ("b", 0.5))]
    evaluation = evaluate(runs, resamples=400, by=[], seed=3)
    right = [one.arrays[0][0].argmax(1) == one.arrays[0][1].argmax(1) for one in evaluation.evidence]
    gain = (right[1].astype(float) - right[0]).reshape(20, 3).mean(axis=1)  # of each scene
    rng = np.random.default_rng(3)
    by_hand = [gain[rng.integers(20, size=20)].mean() for _ in range(400)]
    row = evaluation.differences.iloc[0]
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(by_hand, [0.025, 0.975]))
    widths = overall(evaluation, "Accuracy")["high"] - overall(evaluation, "Accuracy")["low"]
    assert row["high"] - row["low"] < 0.7 * np.hypot(*widths)


def test_several_seeds_a_side(place, tmp_path):
    good = [make_run(tmp_path / f"good-s{seed}", place, skill=2, seed=seed) for seed in range(3)]
    bad = [make_run(tmp_path / f"bad-s{seed}", place, skill=0, seed=seed) for seed in range(3)]
    row = evaluate(good, bad, resamples=100, by=[]).differences.iloc[0]
    scores = evaluate([*good, *bad], resamples=100, by=[]).scores
    values = scores[scores["metric"] == "Accuracy"]["score"].to_numpy()
    assert row["difference"] == pytest.approx(values[:3].mean() - values[3:].mean()) and row["pairs"] == 3
    assert row["verdict"] == "better" and row["what"] == "good-s0, good-s1, good-s2 − bad-s0, bad-s1, bad-s2"
    with pytest.raises(Refusal, match="3 predictions against 2"):
        evaluate(good, bad[:2])


def test_shown_images_are_not_scored(place, tmp_path):
    run = make_run(tmp_path / "a", place)
    (tmp_path / "ids.txt").write_text("000\n001\n\n")
    by_ids = evaluate([run], show=str(tmp_path / "ids.txt"), resamples=100, by=[])
    assert by_ids.shown.tolist() == [0, 1] and len(by_ids.evidence[0].rows) == ROWS - 2
    by_value = evaluate([run], show="weather=fog", resamples=100)
    assert by_value.shown.tolist() == list(range(6)) and "fog" not in set(by_value.scores["value"])
    for show, message in (
        ("weather=snow", "no row .* has weather 'snow'; its values are fog, rain, sun"),
        ("sky=blue", "no column sky"),
        ("nothing", "neither a file of ids nor column=value"),
    ):
        with pytest.raises(Refusal, match=message):
            evaluate([run], show=show)
    (tmp_path / "ids.txt").write_text("stranger\n")
    with pytest.raises(Refusal, match="1 ids that are not in .*: stranger"):
        evaluate([run], show=str(tmp_path / "ids.txt"))
    (tmp_path / "ids.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(Refusal, match=r"ids\.txt is not UTF-8 text"):
        evaluate([run], show=str(tmp_path / "ids.txt"))


def test_units_are_averaged_and_drawn(place, tmp_path):
    frame = pd.read_csv(place / "train.csv", dtype=str)
    frame["label"] = [CLASSES[row // 3 % 3] for row in range(ROWS)]  # one label a scene
    frame.to_csv(tmp_path / "train.csv", index=False)
    run = make_run(tmp_path / "a", place, group=None)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["columns"]["unit"], config["data"]["table"] = "scene", str(tmp_path / "train.csv")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    evaluation = evaluate([run], resamples=100, by=["weather"])
    assert evaluation.groups == 20 and evaluation.drawn == "units"
    assert evaluation.evidence[0].rows.tolist() == list(range(0, ROWS, 3))
    assert len(evaluation.evidence[0].folds) == 20


def test_test_predictions_of_anybody_with_a_labelled_table(place, tmp_path):
    make_config(tmp_path / "a", place, "multiclass")
    make_predictions(tmp_path / "a" / "predictions" / "test-none", place, "multiclass", split="test")
    make_predictions(tmp_path / "friend", place, "multiclass", split="test")
    evaluation = evaluate([tmp_path / "a", tmp_path / "friend"], labelled=place / "labelled.csv", resamples=100, by=[])
    values = pd.read_parquet(tmp_path / "friend" / "predictions.parquet").groupby("id")[CLASSES].mean()
    labels = pd.read_csv(place / "labelled.csv", dtype=str).set_index("id")["label"]
    right = values.idxmax(axis=1) == labels
    assert overall(evaluation, "Accuracy")["score"].tolist() == [pytest.approx(right.mean())] * 2
    with pytest.raises(Refusal, match="friend has test predictions: name a labelled table with --table"):
        evaluate([tmp_path / "friend"])


def test_mapped_masks_are_scored_as_rewritten_ones(place, tmp_path):
    """Out of fold, and on a labelled table: every metric, and the counts of pixels."""
    stored = tmp_path / "data"
    shutil.copytree(place, stored)
    for number in range(4):
        mask = cv2.imread(str(stored / f"mask{number}.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(stored / f"mask{number}.png"), np.where(mask == 255, 7, mask * 100).astype(np.uint8))
    runs = [make_run(tmp_path / "numbers", place, "segmentation"), tmp_path / "stored"]
    make_config(runs[1], stored, "segmentation")
    shutil.copytree(runs[0] / "oof", runs[1] / "oof")
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    config["data"]["mask_values"] = {0: 0, 100: 1, 200: 2, 7: 255}
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config))
    for run in runs:
        make_predictions(run / "predictions" / "test-none", place, "segmentation", split="test")
    for names in ((None, None), ("labelled.csv", "labelled.csv")):
        paths = [root / name if name else None for root, name in zip((place, stored), names, strict=True)]
        found = [evaluate([run], labelled=path, resamples=100) for run, path in zip(runs, paths, strict=True)]
        columns = ["column", "value", "metric", "score", "low", "high"]
        pd.testing.assert_frame_equal(*(each.scores[columns] for each in found))
        np.testing.assert_array_equal(*(each.evidence[0].classes.confusion for each in found))


def test_a_labelled_table_needs_no_group_column(place, tmp_path):
    """Its images are drawn then, which is noted; the scores are the same."""
    make_config(tmp_path / "a", place, "multiclass")
    make_predictions(tmp_path / "a" / "predictions" / "test-none", place, "multiclass", split="test")
    pd.read_csv(place / "labelled.csv", dtype=str).drop(columns="scene").to_csv(tmp_path / "bare.csv", index=False)
    grouped, bare = (
        evaluate([tmp_path / "a"], labelled=path, resamples=100, by=[])
        for path in (place / "labelled.csv", tmp_path / "bare.csv")
    )
    assert (grouped.groups, grouped.drawn) == (20, "groups") and (bare.groups, bare.drawn) == (ROWS, "images")
    assert grouped.scores["score"].tolist() == bare.scores["score"].tolist()
    (note,) = [note for note in bare.notes if note not in grouped.notes]
    assert "no column 'scene' (data.columns.group): images are resampled instead" in note


def test_metric_and_columns_of_predictions_without_a_configuration(place, tmp_path):
    make_predictions(tmp_path / "friend", place, "multilabel", split="test")
    overrides = ["task=multilabel", "metric=macro_f1", f"data.root={place}", "data.columns.group=scene"]
    evaluation = evaluate(
        [tmp_path / "friend"], labelled=place / "labelled.csv", data="competition", overrides=overrides, resamples=100
    )
    assert [type(metric).__name__ for metric in evaluation.metrics][:2] == ["MacroF1", "FBeta"]
    assert evaluation.groups == 20


def test_ranks_are_marked_as_no_probabilities(place, tmp_path):
    make_config(tmp_path / "a", place, "multilabel")
    make_predictions(tmp_path / "a" / "oof", place, "multilabel", mean="rank")
    assert "a holds ranks, not probabilities" in evaluate([tmp_path / "a"], resamples=100, by=[]).notes[0]


def test_predictions_that_do_not_fit_are_refused(place, tmp_path):
    run = make_run(tmp_path / "a", place)
    make_predictions(tmp_path / "friend", place, "multiclass", split="test")
    with pytest.raises(Refusal, match="a is named twice"):
        evaluate([run, run])
    with pytest.raises(Refusal, match="has no out-of-fold predictions .*oof-d4"):
        evaluate([run], oof="oof-d4")
    with pytest.raises(Refusal, match="no test predictions"):
        evaluate([run], labelled=place / "labelled.csv")
    with pytest.raises(Refusal, match="friend has no config.yaml: name its data and metric with --data"):
        evaluate([tmp_path / "friend"], labelled=place / "labelled.csv")
    with pytest.raises(Refusal, match="seed=1 changes the configuration of --data: add --data"):
        evaluate([tmp_path / "friend"], labelled=place / "labelled.csv", overrides=["seed=1"])
    with pytest.raises(Refusal, match="no column camera; its columns are"):
        evaluate([run], by=["camera"])
    more = pd.read_csv(place / "labelled.csv", dtype=str)
    pd.concat([more, more[:1].assign(id="new")]).to_csv(tmp_path / "more.csv", index=False)
    with pytest.raises(Refusal, match="1 rows of .* have no prediction: new"):
        make_predictions(run / "predictions" / "test-none", place, "multiclass", split="test")
        evaluate([run, tmp_path / "friend"], labelled=tmp_path / "more.csv")


def test_the_command_writes_one_page_and_never_over_another(place, tmp_path, command):
    runs = [make_run(tmp_path / name, place, skill=skill) for name, skill in (("a", 0.4), ("<b>", 0.5))]
    (runs[0] / "evaluation.html").write_text("an older one")
    script = [sys.executable, "-X", "importtime", "evaluate.py", *map(str, runs), "--resamples", "100"]
    script += ["--show", "weather=fog", "--by", "weather"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(runs[0] / "evaluation-2.html") in done.stdout
    assert "cannot show that a change is real" in " ".join(done.stdout.split())
    assert (runs[0] / "evaluation.html").read_text() == "an older one"
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    page = (runs[0] / "evaluation-2.html").read_text(encoding="utf-8")
    assert page.count("<img") == 6 and "<b>" not in page and "http" not in page.replace("http-equiv", "")
    for text in ("By weather", "Confusion matrix", "Reliability", "Most uncertain", "Shown and not scored"):
        assert text in page
    before = sorted(tmp_path.rglob("*"))
    code, _, error = command("evaluate.py", *runs, "--out", runs[0] / "evaluation.html")
    assert code == 2 and error.startswith("error: ") and "exists and is not overwritten" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_of_segmentation(place, tmp_path):
    from foldwise.reporting.evaluation_report import write_evaluation

    (tmp_path / "ids.txt").write_text("007")
    run = make_run(tmp_path / "a", place, "segmentation", skill=0.4)
    evaluation = evaluate([run], resamples=100, show=str(tmp_path / "ids.txt"), by=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_evaluation(tmp_path / "page.html", evaluation)
    assert (tmp_path / "page.html").read_text().count(", ground truth</figcaption>") == 4 + 4 + 1


def test_a_page_shows_as_wrong_only_what_is_wrong(place, tmp_path):
    from foldwise.reporting.evaluation_report import write_evaluation

    for skill, wrong in ((0.4, True), (9.0, False)):
        run = make_run(tmp_path / str(skill), place, skill=skill)
        evaluation = evaluate([run], resamples=100, by=[])
        accuracy = overall(evaluation, "Accuracy")["score"].item()
        assert evaluation.evidence[0].classes.correct.mean() == pytest.approx(accuracy) and (accuracy < 1) is wrong
        write_evaluation(tmp_path / f"{skill}.html", evaluation)
        page = (tmp_path / f"{skill}.html").read_text()
        assert ("Most wrong" in page) is wrong and ("no prediction is wrong" in page) is not wrong
