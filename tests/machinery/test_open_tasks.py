"""A task of somebody's own, numbers that are no probabilities, goes through everything that comes after prediction."""

import json
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from rows import SAMPLES

from foldwise.data.folds import folds_hash
from foldwise.errors import Refusal
from foldwise.predictions.decisions.material import choose_layout
from foldwise.predictions.decisions.sample import locate, read_sample
from foldwise.predictions.decisions.submit import make_submission
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.evaluation.evaluate import evaluate
from foldwise.predictions.ground_truth import read_ground_truth
from foldwise.predictions.metrics import METRICS, Accuracy, Published, RowMetric
from foldwise.predictions.pseudo.teachers import check_probabilities
from foldwise.predictions.schema import Header, PredictionsError
from foldwise.predictions.store import average_members, read_header, read_predictions, write_predictions
from foldwise.predictions.views import average_views
from foldwise.predictions.writers import PredictionWriter, merge_folders
from foldwise.reporting.console import print_evaluation, print_submission
from foldwise.reporting.evaluation_report import write_evaluation
from foldwise.reporting.run_report import worst_rows
from foldwise.tasks import TASKS, Task

ROWS, COLUMNS = 36, ["length", "width"]


class Numbers(Task):
    """Numbers of an image, such as lengths in centimetres: any, and of no sum."""

    name, column, metric = "numbers", "length", "mean_absolute_error"

    def read_target(self, raw, columns, soft, names, check):
        values = raw[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
        check.rows(~np.isfinite(values).all(axis=1), "a target is no number")
        return list(columns), values

    def fallback(self, target, columns):
        return np.median(target, axis=0)


@dataclass(frozen=True, kw_only=True)
class MeanAbsoluteError(RowMetric):
    """Mean absolute error."""

    greater_is_better = False
    probabilities = False

    def _score(self, target, probability, weight):
        return float(np.average(np.abs(target - probability).mean(axis=1), weights=weight))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The task and its metric, registered: nothing else is said of them anywhere."""
    monkeypatch.setitem(TASKS, "numbers", Numbers())
    monkeypatch.setitem(METRICS, "mean_absolute_error", MeanAbsoluteError)


def header(split="oof", **values):
    return Header(split=split, task="numbers", columns=COLUMNS, **values)


def rows(ids, folds, values, view="identity"):
    frame = pd.DataFrame({"id": ids, "fold": folds, "snapshot": "last", "view": view})
    return frame.assign(**dict(zip(COLUMNS, values.T, strict=True)))


def draw(count, seed=0):
    return np.random.default_rng(seed).normal(20, 300, (count, 2)).astype(np.float32)


@pytest.fixture
def world(tmp_path):
    """The folder of a table of 36 rows in three folds, its targets, and two sources of other noise."""
    rng, target = np.random.default_rng(1), draw(ROWS)
    ids, folds = [f"{row:02d}" for row in range(ROWS)], np.arange(ROWS) % 3
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((6, 6, 3), np.uint8))
    table = pd.DataFrame({"id": ids, "image": "x.png", "fold": folds, "site": folds % 2})
    table.assign(**dict(zip(COLUMNS, target.T, strict=True))).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"id": ["t0", "t1"], "image": "x.png"}).to_csv(tmp_path / "test.csv", index=False)
    columns = {"target": COLUMNS, "fold": "fold"}
    data = {"name": "made", "root": str(tmp_path), "prepared": str(tmp_path), "classes": None, "columns": columns}
    data |= {"table": f"{tmp_path}/train.csv", "test_table": f"{tmp_path}/test.csv"}
    metric = {"_target_": "foldwise.predictions.metrics.MeanAbsoluteError"}
    hashed = folds_hash(dict(zip(ids, folds.tolist(), strict=True)))
    for name, noise in (("a", 40), ("b", 50)):
        said = target + noise * rng.normal(size=target.shape).astype(np.float32)
        write_predictions(tmp_path / name / "oof", rows(ids, folds, said), header(folds_hash=hashed))
        tests = pd.concat([rows(["t0", "t1"], fold, draw(2, fold) + noise) for fold in range(3)])
        write_predictions(tmp_path / name / "predictions" / "test-none", tests, header("test", folds_hash=hashed))
        config = {"task": "numbers", "data": data, "metric": metric, "samples": SAMPLES}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path, target


def oof(source):
    return read_predictions(source / "oof").frame[COLUMNS].to_numpy()


def test_its_values_are_stored_as_they_are(tmp_path):
    values = draw(6)
    write_predictions(tmp_path / "p", rows(list("abcdef"), 0, values), header("test"))
    assert (read_predictions(tmp_path / "p").frame[COLUMNS].to_numpy() == values).all()
    assert values.min() < 0 and values.max() > 1
    said = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert (said["task"], said["kind"], said["columns"], said["schema_version"]) == ("numbers", "rows", COLUMNS, 2)
    values[2] = np.nan
    with pytest.raises(PredictionsError, match="1 rows have NaN: ids c"):
        write_predictions(tmp_path / "q", rows(list("abcdef"), 0, values), header("test"))


def test_shards_are_merged_members_averaged_and_an_interruption_loses_nothing(tmp_path):
    ids, values = list("abcd"), [draw(4, seed) for seed in range(2)]
    for fold in (0, 1):
        own = rows(ids, np.arange(4) % 2, values[0])
        write_predictions(tmp_path / f"fold{fold}", own[own["fold"] == fold], header())
    merge_folders([tmp_path / "fold1", tmp_path / "fold0"], tmp_path / "oof", ids)
    assert (oof(tmp_path) == values[0]).all()

    request = {"members": 2}
    with pytest.raises(KeyboardInterrupt), PredictionWriter(tmp_path / "p", header("test"), request, ids) as writer:
        for fold in (0, 1):
            writer.add("c", fold, "last", "mean", values[fold][2])
        raise KeyboardInterrupt
    with PredictionWriter(tmp_path / "p", header("test"), request, ids) as writer:
        assert writer.done == {"c"}
        for place in (0, 1, 3):
            for fold in (0, 1):
                writer.add(ids[place], fold, "last", "mean", values[fold][place])
    average = average_members(read_predictions(tmp_path / "p").frame, COLUMNS)
    assert average["id"].tolist() == ids
    np.testing.assert_allclose(average[COLUMNS], (values[0] + values[1]) / 2, rtol=1e-6)


def test_views_have_a_mean_and_no_other(tmp_path):
    values = [draw(4, seed) for seed in range(2)]
    both = [rows(list("abcd"), 0, value, view) for value, view in zip(values, ("identity", "hflip"), strict=True)]
    write_predictions(tmp_path / "views", pd.concat(both), header("test"))
    average_views(tmp_path / "views", tmp_path / "mean", "arithmetic")
    np.testing.assert_allclose(
        read_predictions(tmp_path / "mean").frame[COLUMNS], (values[0] + values[1]) / 2, rtol=1e-5
    )
    for mean in ("geometric", "rank"):
        with pytest.raises(Refusal, match=f"the {mean} mean needs probabilities, and numbers has none"):
            average_views(tmp_path / "views", tmp_path / mean, mean)


def test_a_metric_says_for_which_tasks_it_is():
    assert MeanAbsoluteError.tasks() == ["regression", "numbers"] and "numbers" in Published.tasks()
    with pytest.raises(Refusal, match="is for multiclass, not for numbers; .*, mean_absolute_error, .*, published"):
        Accuracy().for_task("numbers", COLUMNS)


def test_it_is_evaluated_by_its_metric_and_its_largest_errors(world, tmp_path, capsys):
    folder, target = world
    evaluation = evaluate([folder / "a", folder / "b"], resamples=200, by=["site"])
    errors = [np.abs(oof(folder / name) - target).mean(axis=1) for name in "ab"]
    overall = evaluation.scores[evaluation.scores["column"] == ""]
    assert overall["metric"].tolist() == ["MeanAbsoluteError"] * 2
    np.testing.assert_allclose(overall["score"], [error.mean() for error in errors], rtol=1e-5)
    rng = np.random.default_rng(0)  # the draws of the bootstrap, a row being a group of its own
    drawn = [rng.integers(ROWS, size=ROWS) for _ in range(200)]
    by_hand = np.quantile([errors[0][rows].mean() for rows in drawn], [0.025, 0.975])
    np.testing.assert_allclose(overall[["low", "high"]].iloc[0], by_hand, rtol=1e-5)
    assert evaluation.evidence[0].classes is None
    in_deviations = (np.abs(oof(folder / "a") - target) / target.std(axis=0)).mean(axis=1)
    np.testing.assert_allclose(evaluation.evidence[0].wrong, in_deviations, rtol=1e-4)
    worst = worst_rows(target, oof(folder / "a"), 5, TASKS["numbers"])
    assert worst.tolist() == np.argsort(-in_deviations)[:5].tolist()

    print_evaluation(evaluation, {})
    assert "classes of" not in capsys.readouterr().out
    write_evaluation(tmp_path / "page.html", evaluation)
    page = (tmp_path / "page.html").read_text()
    assert "Largest errors (look here for label errors): a: ground truth → predicted" in page and "By site" in page
    assert not any(word in page for word in ("Confusion", "Calibration", "Most uncertain", "no answer is wrong"))


def test_what_needs_probabilities_is_refused_by_name(world, tmp_path):
    folder, _ = world
    for method in ("simplex", "geometric", "logistic"):
        there = "single, mean, nnls, greedy, linear, boosting, network"
        with pytest.raises(Refusal, match=f"no method {method} for numbers .*; there are {there}"):
            ensemble([folder / "a", folder / "b"], tmp_path / "out", use=method)
    with pytest.raises(Refusal, match="needs a stacking method: add --methods linear"):
        ensemble([folder / "a", folder / "b"], tmp_path / "out", columns=["site"])
    with pytest.raises(Refusal, match="need probabilities, which the task numbers does not predict"):
        check_probabilities(read_ground_truth(folder / "a"))
    with pytest.raises(Refusal, match="labels is for multiclass and multilabel, but the task is numbers"):
        make_submission(folder / "a", kind="labels", ledger=tmp_path / "s.csv", out=tmp_path / "x.csv")
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.csv").exists()


def test_one_column_of_values_goes_under_whatever_name_the_sample_has(world, tmp_path):
    folder, _ = world
    truth = read_ground_truth(folder / "a")
    truth = replace(truth, table=replace(truth.table, classes=("length",)))
    pd.DataFrame({"ImageId": ["t0"], "Target": ["0"]}).to_csv(tmp_path / "one.csv", index=False)
    layout, _ = choose_layout(truth, locate(read_sample(tmp_path / "one.csv"), ["t0"], ["length"]))
    assert layout.table(["t0"], np.array([[12.5]])).to_dict("list") == {"ImageId": ["t0"], "Target": [12.5]}


def test_it_is_blended_and_submitted(world, tmp_path):
    folder, target = world
    comparison, written = ensemble([folder / "a", folder / "b"], tmp_path / "out", use="mean")
    assert comparison.names == ["single", "mean", "nnls", "greedy"]
    mean = (oof(folder / "a") + oof(folder / "b")) / 2
    np.testing.assert_allclose(oof(tmp_path / "out"), mean, rtol=1e-5)
    assert comparison.overall[1] == pytest.approx(np.abs(mean - target).mean(), rel=1e-5)
    assert read_header(written[1]).task == "numbers"

    pd.DataFrame({"id": ["t1", "t0"], "width": 0, "length": 0}).to_csv(tmp_path / "sample.csv", index=False)
    made = make_submission(tmp_path / "out", sample=tmp_path / "sample.csv", out=tmp_path / "s.csv")
    print_submission(Console(quiet=True), made)
    expected = np.mean([draw(2, fold) + 45 for fold in range(3)], axis=0)[::-1]
    found = pd.read_csv(tmp_path / "s.csv").set_index("id")
    assert found.index.tolist() == ["t1", "t0"] and list(found) == ["width", "length"]
    np.testing.assert_allclose(found[COLUMNS], expected, rtol=1e-5)
