"""Gold rows, which no model is trained on and all models are scored on, and the rounds that are compared on them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pseudo_world import CLASSES, LABELLED, UNLABELLED, config_of, draw, write_world
from tiny import open_tiny, prepare_tiny, train_scored

from foldwise.data.folds import read_folds
from foldwise.data.holdout import GOLD, Holdout
from foldwise.data.problems import TableError
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.predictions.evaluation.evaluate import evaluate
from foldwise.predictions.pseudo.teachers import Teachers
from foldwise.predictions.schema import Header
from foldwise.predictions.store import write_predictions

MARKED = range(6)
COLUMNS = ("data.columns.fold=null", "data.columns.gold=sure")


@pytest.fixture
def root(tmp_path):
    root = write_world(tmp_path / "world")
    frame = pd.read_csv(root / "train.csv", keep_default_na=False)
    frame.assign(sure=["1" if row in MARKED else "" for row in LABELLED]).to_csv(root / "train.csv", index=False)
    return root


def changed(root, **columns):
    frame = pd.read_csv(root / "train.csv", keep_default_na=False)
    frame.assign(**columns).to_csv(root / "train.csv", index=False)


def test_gold_rows_are_in_no_fold_and_in_no_training(root):
    prepared = prepare_tiny(config_of(root, "multiclass", *COLUMNS))
    gold = [f"row{row}" for row in MARKED]
    assert [id for id, fold in prepared.folds.items() if fold == GOLD] == gold
    assert not set(read_folds(root / "prepared" / "folds.csv")) & set(gold)
    assert prepared.scored_folds == [0, 1] and not set(prepared.oof_ids) & set(gold)
    for part in (Holdout(()), Holdout((0,)), Holdout((0, 1))):
        assert not set(part.trained(prepared.fold_of_items)) & set(MARKED)
    assert prepared.gold.oof_ids == gold
    # a row that is marked later keeps its old fold in the file, for the day on which it is no more
    changed(root, sure=[int(row < 7) for row in LABELLED])
    again = prepare_tiny(config_of(root, "multiclass", *COLUMNS))
    assert again.folds["row6"] == GOLD and again.folds_hash != prepared.folds_hash
    assert read_folds(root / "prepared" / "folds.csv")["row6"] == prepared.folds["row6"]
    given = prepare_tiny(config_of(root, "multiclass", "data.columns.gold=sure"))
    assert given.folds == {f"row{row}": GOLD if row < 7 else row % 2 for row in LABELLED}


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"sure": "no"}, [], "the cell 'no' of the gold column is not 1"),
        ({"sure": ""}, [], "the gold column 'sure' marks no row"),
        ({"site": "s1"}, ["data.columns.group=site"], "1 groups have gold rows and others: s1; mark all rows of each"),
        ({"thing": "t1", "label": "red"}, ["data.columns.unit=thing"], "1 units have gold rows and others: t1"),
        ({"image": "images/3.png"}, [], "1 images have gold rows and others"),
    ],
)
def test_gold_columns_that_are_refused(root, columns, settings, message):
    changed(root, **columns)
    with pytest.raises(TableError, match=message):
        prepare_tiny(config_of(root, "multiclass", *COLUMNS, *settings))


def test_retrieval_has_no_gold_rows(root):
    with pytest.raises(TableError, match="retrieval searches among all images, so it has no gold rows"):
        prepare_tiny(config_of(root, "retrieval", *COLUMNS))


def test_images_of_gold_scenes_get_no_pseudo_label(root):
    run = write_run(root, "a")
    from foldwise.predictions.ground_truth import read_ground_truth, read_test_table

    truth = read_ground_truth(run)
    test = read_test_table(truth)
    frame = test.frame.copy()
    frame.loc[2, "image"] = "images/3.png"
    held = Teachers([], [], truth, replace(test, frame=frame)).held_out(0)
    assert np.flatnonzero(held).tolist() == [2]


def test_the_gold_score_is_that_of_the_mean_of_all_folds(root):
    run = train_scored(config_of(root, "multiclass", *COLUMNS, "optimizer.lr=0.01"), root / "runs")
    gold = pd.read_parquet(run / "predictions" / "gold" / "predictions.parquet")
    assert sorted(set(zip(gold["id"], gold["fold"], strict=True))) == [
        (f"row{row}", k) for row in MARKED for k in (0, 1)
    ]
    labels = pd.read_csv(root / "train.csv").set_index("id")["label"]

    def accuracy(rows):
        mean = rows.groupby("id")[CLASSES].mean()
        return (mean.idxmax(axis=1) == labels[mean.index]).mean()

    assert read_json(run / "metrics.json")["gold"] == pytest.approx(accuracy(gold))
    for fold in (0, 1):
        of_fold = read_json(run / f"fold{fold}" / "metrics.json")["gold"]
        assert of_fold == pytest.approx(accuracy(gold[gold["fold"] == fold]))
    evaluation = evaluate([run], gold=True, resamples=100)
    assert evaluation.scores["score"][0] == pytest.approx(accuracy(gold))
    assert evaluation.scores["images"][0] == len(MARKED)
    with pytest.raises(Refusal, match="no predictions called gold"):
        evaluate([write_run(root, "without", gold=False)], gold=True)


# rounds


def write_run(root, name, seed=0, gold=True, hour=0, **settings):
    """A run with random predictions, out of fold and of the gold rows, as train.py leaves it, but for its models."""
    overrides = [f"{key}={value}" for key, value in settings.items()]
    columns = COLUMNS if gold else COLUMNS[:1]
    config = config_of(root, "multiclass", *columns, "seed=3", f"experiment_name={name}", *overrides)
    prepared = prepare_tiny(config)
    run = open_tiny(config, root / "runs", prepared)
    record = read_json(run / "environment.json")
    record["created"]["time"] = f"2026-01-01T0{hour}:00:00+00:00"
    write_json(run / "environment.json", record)
    header = {"task": "multiclass", "columns": CLASSES, "folds_hash": prepared.folds_hash, "created_by": "train.py"}
    member = {"snapshot": "last", "view": "identity"}
    values = draw("multiclass", seed, 2, len(prepared.table))
    frames = [
        pd.DataFrame(rows, columns=CLASSES).assign(id=prepared.table.ids, fold=fold, **member)
        for fold, rows in enumerate(values)
    ]
    own = [frame[prepared.fold_of_items == fold] for fold, frame in enumerate(frames)]
    write_predictions(run / "oof", pd.concat(own), Header(split="oof", **header))
    if gold:
        of_gold = pd.concat([frame[prepared.fold_of_items == GOLD] for frame in frames])
        write_predictions(run / "predictions" / "gold", of_gold, Header(split="test", **header))
    return run


def next_table(root, **columns):
    """A second version of the table: two of the unlabelled pictures have a label now, and two labels are others."""
    frame = pd.read_csv(root / "train.csv", dtype=str, keep_default_na=False)
    frame.loc[[8, 9], "label"] = ["green", "red"]  # they were red and blue
    added = pd.DataFrame({"id": ["row16", "row17"], "image": [f"images/{row}.png" for row in UNLABELLED[:2]]})
    frame = pd.concat([frame, added.assign(label=["green", "red"])]).fillna("")
    frame.to_csv(root / "train-2.csv", index=False)
    return root / "train-2.csv"


def expected(frame, labels, rows=None):
    mean = frame.groupby("id")[CLASSES].mean()
    mean = mean.loc[rows] if rows is not None else mean
    return (mean.idxmax(axis=1) == labels[mean.index]).mean()


@pytest.mark.parametrize("gold", [True, False])
def test_rounds_are_compared_on_the_rows_of_all(root, command, gold, tmp_path):
    """On the gold rows, or out of fold on those of the first round, by the labels of the last."""
    first = write_run(root, "one", 1, gold, hour=2)
    table = next_table(root)
    second = write_run(root, "two", 2, gold, hour=4, **{"data.table": table})
    third = write_run(root, "three", 3, gold, hour=6, **{"data.table": table, "data.pseudo_share": 0.25})
    labels = pd.read_csv(table).set_index("id")["label"]
    code, said, error = command(
        "evaluate.py", third, first, second, "--rounds", "--resamples", "100", "--out", tmp_path / "x.html"
    )
    assert (code, error) == (0, ""), error
    assert "rounds.csv" in said and "cannot be attributed" not in said
    found = pd.read_csv("rounds.csv")
    assert found["run"].tolist() == [run.name for run in (first, second, third)]
    assert found["table"].tolist() == [str(root / "train.csv"), str(table), str(table)]
    assert found["rows"].tolist() == ([10, 12, 12] if gold else [16, 18, 18])
    assert found[["new", "changed", "removed"]].iloc[1:].to_numpy().tolist() == [[2, 2, 0], [0, 0, 0]]
    place = "predictions/gold" if gold else "oof"
    frames = [pd.read_parquet(run / place / "predictions.parquet") for run in (first, second, third)]
    rows = sorted(set(frames[0]["id"]))
    scores = [expected(frame, labels, rows) for frame in frames]
    assert found["images"].tolist() == [len(rows)] * 3 and len(rows) == (6 if gold else 16)
    assert found["score"].tolist() == pytest.approx(scores, abs=1e-6)
    assert found["difference"].iloc[1:].tolist() == pytest.approx(np.diff(scores), abs=1e-6)
    assert "data.pseudo_share: 0.5 -> 0.25" in found["settings"][2]
    assert set(found["scored_on"]) == {"gold rows" if gold else "out of fold"}
    assert Path("rounds.png").read_bytes()[:4] == b"\x89PNG"


def test_rounds_that_cannot_be_compared(root, command):
    run = write_run(root, "one")
    for words in ([run], [run, root], [run, run, "--against", run]):
        code, _, error = command("evaluate.py", *words, "--rounds")
        assert code == 2 and "rounds" in error
