"""What pictures and each column of metadata bring, and columns that tell too much."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import CLASSES, tiny_config, train_scored, write_data

from foldwise.audit.leaks import leak_notes
from foldwise.data.table import Columns, read_table
from foldwise.data.units import Units
from foldwise.errors import Refusal
from foldwise.inference.parts import predict_parts
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model
from foldwise.predictions.evaluation.evaluate import evaluate
from foldwise.predictions.evaluation.importance import measure_importance
from foldwise.predictions.metrics import METRICS
from foldwise.predictions.store import average_members, read_predictions

ROOT = Path(__file__).parents[1]
ROWS, REPEATS, SEED = 60, 3, 5
METADATA = [
    "samples._target_=foldwise.data.units.Units",
    "+samples.numbers=[telling,noise]",
    "+samples.categories=[site]",
    "model._target_=foldwise.models.pooled.PooledNetwork",
    *("model.library=null", "model.name=test_resnet", "+model.pool=null", "+model.metadata_dropout=0.2"),
    *("+model.numbers=${samples.numbers}", "+model.categories=${samples.categories}"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run whose answers are in the column `telling`, with gaps; it learns nothing from anything else."""
    root = write_data(tmp_path_factory.mktemp("importance"), ROWS)
    frame, rng = pd.read_csv(root / "train.csv"), np.random.default_rng(0)
    telling = frame["label"].map(CLASSES.index) + rng.normal(0, 0.3, ROWS)
    frame["telling"] = telling.where(rng.random(ROWS) > 0.1)
    frame["noise"], frame["site"] = rng.normal(size=ROWS), rng.choice(["north", "south"], ROWS)
    frame["image"] = "images/0.png"
    frame.to_csv(root / "train.csv", index=False)
    config = tiny_config(
        root,
        "multiclass",
        *METADATA,
        "phases.train.trainable=head",
        "batch_size=15",
        "epochs=12",
        "optimizer.lr=0.05",
        "augmentation=none",
    )
    return root, train_scored(config, root / "runs")


@pytest.fixture(scope="module")
def found(world):
    evaluation = evaluate([world[1]], resamples=200)
    return evaluation, predict_parts(world[1], evaluation.truth.items, REPEATS, SEED)


def predict(run, fold, table, rows, change=lambda network: None):
    model = load_model(run / f"fold{fold}" / "model")
    change(model.network.net)
    return np.stack([values[""][0, 0] for _, values in Predictor([model], TTA(), workers=0).predict(table, rows)])


def test_the_whole_is_what_the_run_predicts_and_shuffled_columns_what_it_predicts_for_a_shuffled_table(world, found):
    run, (evaluation, parts) = world[1], found
    truth = evaluation.truth
    oof = average_members(read_predictions(run / "oof").frame, CLASSES).set_index("id")
    np.testing.assert_allclose(parts["pictures and metadata"][0], oof.loc[truth.table.ids].to_numpy(), atol=1e-6)
    assert list(parts)[3:] == ["telling shuffled", "noise shuffled", "site shuffled"]
    for fold in (0, 1):
        rows = np.flatnonzero(truth.folds == fold)
        for number, column in ((3, "telling"), (5, "site")):
            generator = np.random.default_rng([SEED, fold, number])
            for repeat in range(REPEATS):
                frame = truth.table.frame.copy()
                frame.loc[rows, column] = frame[column].to_numpy()[generator.permutation(rows)]
                expected = predict(run, fold, replace(truth.items.source, frame=frame), rows)
                np.testing.assert_allclose(parts[f"{column} shuffled"][repeat, rows], expected, atol=1e-5)

        def leave_out(network):
            for parameter in network.fusion.metadata.parameters():
                torch.nn.init.zeros_(parameter)

        expected = predict(run, fold, truth.items.source, rows, leave_out)
        np.testing.assert_allclose(parts["pictures only"][0, rows], expected, atol=1e-6)


def test_importance_of_parts(found):
    evaluation, parts = found
    table = measure_importance(evaluation, parts, SEED).set_index("predicted from")
    target, folds = evaluation.truth.table.target, evaluation.truth.folds
    metric = METRICS["accuracy"]().for_task("multiclass", CLASSES)
    assert set(folds) == {0, 1} and evaluation.metrics[0].name == metric.name
    for name, values in parts.items():
        scores = [metric(target, value) for value in values]
        assert table.loc[name, "score"] == pytest.approx(np.mean(scores))
    assert table.index[3] == "telling shuffled" and list(table["worse by"][3:]) == sorted(table["worse by"][3:])[::-1]
    assert table.loc["telling shuffled", "low"] > 0.1 and table.loc["pictures only", "low"] > 0.1
    for name in ("metadata only", "noise shuffled", "site shuffled"):  # all pictures are the same one
        assert table.loc[name, "low"] <= 0 <= table.loc[name, "high"]
    assert (table.iloc[0][["worse by", "low", "high"]] == 0).all()
    again = measure_importance(evaluation, parts, SEED)
    pd.testing.assert_frame_equal(again.set_index("predicted from"), table)


def test_the_command_reports_them(world, tmp_path, monkeypatch, capsys):
    words = ["evaluate.py", str(world[1]), "--resamples", "100", "--importance", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "report.html")])
    runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    printed, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    for text in ("pictures only", "metadata only", "telling shuffled", "site shuffled"):
        assert text in printed and text in page
    assert "accuracy without a part" in printed.lower() and "Pictures and metadata" in page
    monkeypatch.setattr(sys, "argv", [*words, "--against", str(world[1])])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    assert "--importance is of one run" in capsys.readouterr().err


def test_a_run_without_metadata_is_refused(world, tmp_path):
    root = world[0]
    run = train_scored(tiny_config(root, "multiclass", "epochs=1"), tmp_path)
    with pytest.raises(Refusal, match="no metadata beside the pictures"):
        predict_parts(run, evaluate([run], resamples=100).truth.items, 1)


def test_columns_that_tell_the_answer_or_the_fold(tmp_path):
    rng, count = np.random.default_rng(0), 300
    label, fold = rng.integers(3, size=count), np.arange(count) // 10 % 3
    frame = pd.DataFrame({"id": [f"i{row}" for row in range(count)], "image": "a.png", "label": label, "price": label})
    frame["price"] = frame["price"] * 10 + rng.normal(size=count)
    frame["answer"] = [f"grade {'cab'[each]}" for each in label]
    frame["second"] = np.where(label == 1, rng.normal(3, 0.1, count), rng.choice([-9, 9], count))
    frame["patient"] = [f"p{number}" for number in rng.permutation(count)[np.arange(count) // 10]]
    frame["close"], frame["noise"] = frame["price"] + rng.normal(size=count), rng.normal(size=count)
    frame.loc[::7, ["answer", "second", "noise"]] = None
    frame.to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "a.png").touch()
    columns = {"numbers": ["second", "close", "noise"], "categories": ["answer", "patient"]}

    def notes(task, target, **chosen):
        table = read_table(tmp_path / "train.csv", task, tmp_path, Columns(target=target))
        return leak_notes(table, Units(**chosen), fold)

    found = notes("multiclass", "label", **columns)
    assert [note.split("'")[1] for note in found] == ["second", "close", "answer", "patient"]
    assert "alone tells 1 (0.9" in found[0] and "alone tells 0 (1.000), 1 (1.000), 2 (1.000)" in found[1]
    assert "out of fold): if it is only known once the answer is" in found[2] and "tells the fold" in found[3]
    found = notes("regression", "price", **columns)
    assert [note.split(" (")[0] for note in found] == [
        "warning: the column 'close' alone tells price",
        "warning: the column 'patient' alone tells the fold",
    ]
    assert "R² out of fold" in found[0]
