"""Metrics of the owner's: a published function that reads ids and columns, and masks measured by more than pixels."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from rows import SAMPLES, records
from scipy import ndimage

from foldwise.code.alias import open_code
from foldwise.code.build import resolve
from foldwise.code.imports import collect_code
from foldwise.code.runs import all_targets
from foldwise.data.folds import folds_hash
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal
from foldwise.predictions.decisions.masks import CANDIDATES, compare_cleaning, measure_candidates
from foldwise.predictions.decisions.rules import OneThreshold, takes_values
from foldwise.predictions.decisions.submit import make_submission
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.evaluation.evaluate import evaluate
from foldwise.predictions.evaluation.evidence import class_table
from foldwise.predictions.metrics import METRICS, MapMetric, MeanIoU, Published
from foldwise.predictions.metrics.base import repeat_records
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.schema import Header
from foldwise.predictions.scoring import score_rows, score_table
from foldwise.predictions.store import iter_average_maps, read_predictions, write_predictions
from foldwise.predictions.writers import PredictionWriter

ROWS, CLASSES, SITES = 60, ["a", "b", "c"], ["north", "south", "west"]
# What the competition publishes: the share of right answers of each site, averaged over the sites.
FUNCTION = """
import csv

SITE = dict(csv.reader(open("sites.csv")))

def score(solution, submission, row_id_column_name):
    assert solution[row_id_column_name].is_unique and (solution["image"] == submission["image"]).all()
    sites = [SITE[id.partition("#")[0]] for id in solution["image"]]
    assert sites == solution["site"].tolist()  # every row has the site of its id
    merged = solution.merge(submission, on=row_id_column_name, suffixes=("", "_said"))
    assert len(merged) == len(solution)
    return float((merged["answer"] == merged["answer_said"]).groupby(merged["site"]).mean().mean())

def of_probabilities(solution, submission, row_id_column_name):
    error = (solution[["a", "b", "c"]] - submission[["a", "b", "c"]]).abs().mean(axis=1)
    return float(error.groupby(solution["site"]).mean().mean())

not_a_metric = 1
"""
METRIC = {
    "_target_": "foldwise.predictions.metrics.Published",
    "function": "solution.metric.score",
    "row_id_column_name": "image",
    "column": "answer",
    "columns": ["site"],
}


def own_code(*targets: str) -> str | None:
    """The alias of the current folder's code that targets reach."""
    owned = [target for target in targets if target.startswith("solution.")]
    return open_code(collect_code(owned, Path.cwd())) if owned else None


def build(config: dict, task: str, classes: list[str], table: Table | None = None) -> Any:
    """The metric of a configuration."""
    return build_metric(config, task, classes, table, own_code(*all_targets(config)))


@pytest.fixture
def owner(tmp_path, monkeypatch):
    """The current folder, with the owner's package and the site of each id."""
    (tmp_path / "solution").mkdir()
    (tmp_path / "solution" / "__init__.py").touch()
    (tmp_path / "solution" / "metric.py").write_text(FUNCTION)
    for name in ("solution", "solution.metric"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("solution", "solution.metric"):
        sys.modules.pop(name, None)


@pytest.fixture
def world(owner):
    """A table of 60 rows with sites, and two sources of labels; its targets."""
    rng = np.random.default_rng(0)
    target = (rng.random((ROWS, 3)) < [0.6, 0.4, 0.2]).astype(float)
    ids, folds = [f"{row:03d}" for row in range(ROWS)], np.arange(ROWS) % 3
    cv2.imwrite("x.png", np.zeros((4, 4, 3), np.uint8))
    frame = pd.DataFrame(
        {"id": ids, "image": "x.png", "fold": folds, "site": rng.permutation(np.repeat(SITES, [30, 20, 10]))}
    )
    frame["labels"] = [" ".join(np.array(CLASSES)[row == 1]) for row in target]
    frame.sample(frac=1, random_state=0).to_csv("train.csv", index=False)
    frame[["id", "site"]].to_csv("sites.csv", index=False)
    frame[["id", "image", "site"]].assign(id=[f"t{id}" for id in ids])[:4].to_csv("test.csv", index=False)
    data = {
        "name": "made",
        "root": ".",
        "prepared": ".",
        "table": "train.csv",
        "test_table": "test.csv",
        "classes": None,
    }
    data["columns"] = {"fold": "fold"}
    hashed = folds_hash(dict(zip(ids, folds.tolist(), strict=True)))
    for name, noise in (("one", 1.5), ("two", 2.0)):
        for split, folder in (("oof", "oof"), ("test", "predictions/test-none")):
            header = Header(split=split, task="multilabel", columns=CLASSES, folds_hash=hashed)
            own = [f"t{id}" for id in ids[:4]] if split == "test" else ids
            parts = []
            for fold in range(3) if split == "test" else [None]:
                odds = 2 * target[: len(own)] - 1.2 + noise * rng.normal(size=(len(own), 3))
                part = pd.DataFrame({"id": own, "fold": folds[: len(own)] if fold is None else fold})
                parts.append(
                    part.assign(
                        snapshot="last", view="mean", **dict(zip(CLASSES, 1 / (1 + np.exp(-odds.T)), strict=True))
                    )
                )
            write_predictions(owner / name / folder, pd.concat(parts), header)
        config = {"task": "multilabel", "data": data, "metric": METRIC, "samples": SAMPLES}
        (owner / name / "config.yaml").write_text(yaml.safe_dump(config))
    return owner, frame.set_index("id"), pd.DataFrame(target, ids, CLASSES)


def mean_of_sites(right, site):
    return np.mean([right[site == name].mean() for name in np.unique(site)])


def read_oof(source, ids):
    return read_predictions(source / "oof").frame.set_index("id").loc[ids, CLASSES]


# published


def test_a_published_function_sees_real_ids_and_the_columns_it_asks_for(world):
    folder, frame, target = world
    table = read_table("train.csv", "multilabel", folder, Columns(fold="fold"))
    metric = build(METRIC, "multilabel", CLASSES, table)
    ids = table.ids
    said = read_oof(folder / "one", ids)
    right = (target.loc[ids].to_numpy() == (said.to_numpy() >= 0.5)).all(axis=1)
    site = frame.loc[ids, "site"].to_numpy()
    every, folds = np.arange(ROWS), frame.loc[ids, "fold"].to_numpy()
    assert score_rows(metric, table, every, said.to_numpy()) == pytest.approx(mean_of_sites(right, site))
    order = np.random.default_rng(2).permutation(ROWS)  # as a training's processes gather them
    per_fold, overall = score_table(metric, table, order, said.to_numpy()[order], folds[order])
    assert overall == pytest.approx(mean_of_sites(right, site))
    assert per_fold[1] == pytest.approx(mean_of_sites(right[folds == 1], site[folds == 1]))


def test_the_ids_of_units_are_their_names(owner):
    seen = []

    def score(solution, submission, row_id_column_name):
        seen.append(solution)
        return 0.0

    cv2.imwrite("x.png", np.zeros((4, 4, 3), np.uint8))
    frame = pd.DataFrame({"id": list("abcdef"), "image": "x.png", "label": list("xyxyxy"), "thing": list("pqpqrq")})
    frame.assign(age=range(6)).to_csv("train.csv", index=False)
    table = read_table("train.csv", "multiclass", owner, Columns(unit="thing"))
    metric = Published(function=score, columns=["age"]).for_task("multiclass", table.classes, table)
    score_rows(metric, table, np.array([5, 4, 3, 0]), np.eye(2)[[1, 0, 1, 0]])
    assert seen[-1]["id"].tolist() == ["q", "r", "p"] and seen[-1]["age"].tolist() == ["5", "4", "0"]
    assert seen[0]["id"].tolist() == ["p", "q", "r"]  # what it was tried on


def test_repeated_rows_have_distinct_ids():
    found = repeat_records(records(4, age=range(4)), np.array([2, 0, 2, 2, 0]))
    assert found["id"].tolist() == ["r2", "r0", "r2#1", "r2#2", "r0#1"] and found["age"].tolist() == [2, 0, 2, 2, 0]
    assert repeat_records(records(3), np.array([], int))["id"].tolist() == []


def test_it_is_evaluated_and_resampled_as_any_other(world):
    folder, frame, target = world
    evaluation = evaluate([folder / "one", folder / "two"], resamples=60, by=["site"], seed=4)
    row = evaluation.scores.iloc[0]
    ids = [evaluation.truth.table.ids[row] for row in evaluation.evidence[0].rows]
    right = (target.loc[ids].to_numpy() == (read_oof(folder / "one", ids).to_numpy() >= 0.5)).all(axis=1)
    site = frame.loc[ids, "site"].to_numpy()
    assert row["metric"] == "Published" and row["score"] == pytest.approx(mean_of_sites(right, site))
    rng = np.random.default_rng(4)
    draws = [rng.integers(ROWS, size=ROWS) for _ in range(60)]
    expected = np.quantile([mean_of_sites(right[drawn], site[drawn]) for drawn in draws], [0.025, 0.975])
    np.testing.assert_allclose([row["low"], row["high"]], expected)
    of_site = evaluation.scores.query("column == 'site' and value == 'south' and metric == 'Published'").iloc[0]
    assert of_site["score"] == pytest.approx(right[site == "south"].mean())
    assert not [note for note in evaluation.notes if "failed" in note]


def test_ensembles_and_decisions_are_fitted_by_it(world):
    """The function itself checks that every row it is given has the site of its id."""
    folder, frame, target = world
    comparison, _ = ensemble([folder / "one", folder / "two"], folder / "out", use="greedy")
    assert np.isfinite(comparison.scores).all() and comparison.thresholded
    truth = evaluate([folder / "one"], resamples=100, by=[]).truth
    assert not takes_values(truth.metric)
    made = make_submission(folder / "one", out=folder / "s.csv", decision="one-threshold").chosen
    ids = truth.table.ids
    said, site = read_oof(folder / "one", ids).to_numpy(), frame.loc[ids, "site"].to_numpy()
    true, folds = target.loc[ids].to_numpy(), frame.loc[ids, "fold"].to_numpy()

    def score(threshold, own):
        return mean_of_sites((true[own] == (said[own] >= threshold)).all(axis=1), site[own])

    outcome = made.outcomes[[outcome.name for outcome in made.outcomes].index("one-threshold")]
    for fold in range(3):
        held = folds == fold
        best = max(score(threshold, ~held) for threshold in np.arange(0.05, 0.96, 0.05))
        rule = OneThreshold().fit(truth.metric, true[~held], said[~held], records(ROWS, id=ids, site=site)[~held])
        assert score(rule.threshold, ~held) >= best
        assert outcome.per_fold[fold] == pytest.approx(score(rule.threshold, held))


def test_whether_it_takes_probabilities_is_tried_on_real_rows(world):
    folder, _, _ = world
    table = read_table("train.csv", "multilabel", folder, Columns(fold="fold"))
    other = METRIC | {"function": "solution.metric.of_probabilities", "column": None}
    assert takes_values(build(other, "multilabel", CLASSES, table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"function": "os.system"},
            "metric.function is os.system: save the function in solution/metric.py and name it",
        ),
        ({"function": "solution.metric.scores"}, "there is no scores in solution/metric.py; did you mean score"),
        ({"function": "solution.other.score"}, "solution.other.score: there is no other in solution/"),
        ({"function": "solution"}, "metric.function is solution: save the function in solution/metric.py"),
        ({"columns": ["age"]}, "metric.columns: .*train.csv has no column age; its columns are site, labels, id"),
        ({"column": None}, "the published metric solution.metric.score fails on train.csv .*KeyError: 'answer'"),
        ({"_target_": "os.path.join"}, "the metric os.path.join is not in foldwise.predictions.metrics"),
        ({"_target_": "solution.metric.not_a_metric"}, "is not a subclass of"),
        ({"_target_": "foldwise.predictions.metrics.Metric"}, "is not in"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(world, change, message):
    folder, _, _ = world
    table = read_table("train.csv", "multilabel", folder, Columns(fold="fold"))
    with pytest.raises(Refusal, match=message):
        build(METRIC | change, "multilabel", CLASSES, table)


def test_a_class_of_the_owners_is_a_metric(owner):
    (owner / "solution" / "metric.py").write_text(
        "from dataclasses import dataclass\n"
        "from foldwise.predictions.metrics import Accuracy\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Twice(Accuracy):\n"
        "    factor: float = 2.0\n"
        "    def _score(self, target, probability, weight):\n"
        "        return self.factor * super()._score(target, probability, weight)\n"
    )
    metric = build({"_target_": "solution.metric.Twice", "factor": 3.0}, "multiclass", ["a", "b"])
    assert metric(np.eye(2), np.eye(2)) == 3 and type(metric) is resolve(
        "solution.metric.Twice", own_code("solution.metric.Twice")
    )
    with pytest.raises(Refusal, match="metric Twice: .*unexpected keyword argument 'factors'"):
        build({"_target_": "solution.metric.Twice", "factors": 3.0}, "multiclass", ["a", "b"])
    with pytest.raises(Refusal, match="Twice is for multiclass, not for multilabel"):
        build({"_target_": "solution.metric.Twice"}, "multilabel", ["a", "b"])


# masks


@dataclass(frozen=True, kw_only=True)
class FoundObjects(MapMetric):
    """The share of true objects of class 1 that the answer touches, less 0.1 for each object it makes up, an image."""

    def measure(self, mask, probability):
        answer = probability.argmax(axis=0) == 1
        pieces, true = ndimage.label(mask == 1)
        hit = len(set(pieces[answer].tolist()) - {0})
        said, many = ndimage.label(answer)
        wrong = many - len(set(said[mask == 1].tolist()) - {0})
        return np.array([hit, true, wrong, probability.max()])

    def reduce(self, evidence, weight=None):
        assert weight is None  # nobody has to know what weights are
        hit, true, wrong, _ = evidence.T
        return float(np.mean(hit / np.maximum(true, 1) - 0.1 * wrong))


@pytest.fixture
def mask_world(tmp_path, monkeypatch):
    """12 pictures with objects and specks, two sources of maps, in three folds; the masks."""
    monkeypatch.setitem(METRICS, "found_objects", FoundObjects)
    rng, ids = np.random.default_rng(0), [f"{row:02d}" for row in range(12)]
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((40, 40, 3), np.uint8))
    masks = []
    for row in range(12):
        mask = np.zeros((40, 40), np.uint8)
        mask[5 : 12 + row, 5:15], mask[25:30, 22 + row : 28 + row], mask[0] = 1, 1, 255
        cv2.imwrite(str(tmp_path / f"mask{row}.png"), mask)
        masks.append(mask)
    frame = pd.DataFrame({"id": ids, "image": "x.png", "mask": [f"mask{row}.png" for row in range(12)]})
    frame.assign(fold=np.arange(12) % 3).to_csv(tmp_path / "train.csv", index=False)
    data = {"name": "made", "root": str(tmp_path), "prepared": str(tmp_path), "classes": ["ground", "object"]}
    data |= {"table": f"{tmp_path}/train.csv", "test_table": None, "columns": {"fold": "fold"}, "ignore_index": 255}
    metric = {"_target_": "foldwise.predictions.metrics.FoundObjects", "ignore_index": 255}
    hashed = folds_hash({id: row % 3 for row, id in enumerate(ids)})
    for name in ("one", "two"):
        for split, folder in (("oof", "oof"), ("test", "predictions/test-none")):
            header = Header(split=split, task="segmentation", columns=data["classes"], folds_hash=hashed)
            with PredictionWriter(tmp_path / name / folder, header) as writer:
                for row, id in enumerate(ids):
                    for fold in [row % 3] if split == "oof" else range(3):
                        true = masks[row] == 1
                        for speck in rng.integers(1, 39, (3, 2)):
                            true[tuple(speck)] = True
                        true[6, 6] = False
                        positive = np.clip(0.8 * true + 0.3 * rng.random((40, 40)), 0, 1)
                        writer.add(id, fold, "last", "mean", np.stack([1 - positive, positive]))
        config = {"task": "segmentation", "samples": SAMPLES, "data": data, "metric": metric}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path, ids, masks


def maps_of(source, ids):
    return [probability for _, probability in iter_average_maps(read_predictions(source / "oof"), ids)]


def test_masks_are_evaluated_by_what_is_measured_of_them(mask_world):
    folder, ids, masks = mask_world
    evaluation = evaluate([folder / "one"], resamples=120, by=[], seed=2)
    metric, maps = FoundObjects(), maps_of(folder / "one", ids)
    measured = np.array([metric.measure(*pair) for pair in zip(masks, maps, strict=True)])
    row = evaluation.scores.iloc[0]
    assert evaluation.scores["metric"].tolist() == ["FoundObjects", "MeanIoU", "Dice"]
    assert row["score"] == pytest.approx(metric.reduce(measured))
    rng = np.random.default_rng(2)
    samples = [metric.reduce(measured[rng.integers(12, size=12)]) for _ in range(120)]
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(samples, [0.025, 0.975]))
    # The classes' figures are those of pixels, whatever the metric is.
    true, answer = np.array(masks), np.array(maps).argmax(axis=1)
    both = ((answer == 1) & (true == 1)).sum()
    either = (((answer == 1) | (true == 1)) & (true < 255)).sum()
    table = class_table(evaluation.evidence[0].classes, evaluation.truth)
    assert table["IoU"][1] == pytest.approx(both / either) and table["true"][1] == (true == 1).sum()
    iou = evaluation.scores.set_index("metric")["score"]["MeanIoU"]
    assert iou == pytest.approx(table["IoU"].mean())


def test_masks_are_cleaned_by_what_is_measured_of_each_candidate(mask_world):
    folder, ids, masks = mask_world
    metric, folds = FoundObjects().for_task("segmentation", ["ground", "object"]), np.arange(12) % 3
    maps = maps_of(folder / "one", ids)
    evidence, counts = (
        np.array(each)
        for each in zip(*(measure_candidates(metric, *pair) for pair in zip(masks, maps, strict=True)), strict=True)
    )
    plain = MeanIoU().for_task("segmentation", ["ground", "object"])
    for row, (mask, probability) in enumerate(zip(masks, maps, strict=True)):
        for place, cleaning in enumerate(CANDIDATES):
            cleaned = np.eye(2)[cleaning(probability)].transpose(2, 0, 1)
            np.testing.assert_allclose(evidence[row, place], metric.measure(mask, cleaned))
            np.testing.assert_array_equal(counts[row, place], plain.measure(mask, cleaned))
    outcomes, fitted = compare_cleaning(metric, evidence, folds)
    assert outcomes[2].overall > outcomes[0].overall and fitted[2].area > 0
    for fold in range(3):
        best = max([2, 4, 6], key=lambda place: metric.reduce(evidence[folds != fold, place]))
        assert outcomes[2].per_fold[fold] == pytest.approx(metric.reduce(evidence[folds == fold, best]))


def test_masks_are_submitted_by_the_decision_that_the_metric_prefers(mask_world):
    folder, _, _ = mask_world
    made = make_submission(folder / "one", kind="rle", out=folder / "s.csv", ledger=folder / "l.csv").chosen
    assert str(made.decision).startswith("minimum-area") and len(pd.read_csv(folder / "s.csv")) == 12
    assert all(share.sum() == pytest.approx(1) for share in made.shares.values())
    assert made.shares["cleaned"][1] < made.shares["out of fold"][1]  # the specks are gone


def test_maps_are_blended_by_what_is_measured_of_them(mask_world):
    folder, ids, masks = mask_world
    comparison, _ = ensemble([folder / "one", folder / "two"], folder / "out", use="mean", strict=True)
    metric = FoundObjects()
    both = np.mean([maps_of(folder / name, ids) for name in ("one", "two")], axis=0)
    measured = np.array([metric.measure(*pair) for pair in zip(masks, both, strict=True)])
    assert comparison.overall[1] == pytest.approx(metric.reduce(measured))
    assert comparison.scores[1][2] == pytest.approx(metric.reduce(measured[2::3]))
