"""A training starts from another run's models, and only from models that have not seen what it holds out."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import open_tiny, prepare_tiny, tiny_config, train_folds, write_data

from foldwise.checks import check_config
from foldwise.data.holdout import Holdout
from foldwise.errors import Refusal
from foldwise.inference.weights import load_model, save_model
from foldwise.processes.group import Rank
from foldwise.training.build import build_training
from foldwise.training.fold import predict_held_out
from foldwise.training.initial import check_initial

PARTS = [Holdout((0,)), Holdout((1,))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set, and a run of one epoch on its two folds and on all rows."""
    root = write_data(tmp_path_factory.mktemp("world") / "data")
    config = tiny_config(root, "multiclass", "epochs=1")
    run = train_folds(config, root / "runs")
    train_folds(config | {"fold": "full"}, root / "runs")
    return root, run


def begun(config, part=PARTS[0]):
    """The weights that a training begins with."""
    torch.manual_seed(3)
    return build_training(config, prepare_tiny(config), part, Rank()).network.net.state_dict()


def stored(run, name):
    return load_file(run / name / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("part", "name"), [(PARTS[0], "fold0"), (PARTS[1], "fold1"), (Holdout(()), "full")], ids=["0", "1", "full"]
)
def test_each_model_starts_from_its_own(world, part, name):
    root, run = world
    config = tiny_config(root, "multiclass", f"init={run}", "model.pretrained=true", "epochs=3")
    check_initial(run, prepare_tiny(config), [part])
    start, source = begun(config, part), stored(run, name)
    assert start.keys() == source.keys() and all(torch.equal(start[key], source[key]) for key in source)


def test_before_its_first_step_it_predicts_out_of_fold_as_the_other_run(world, tmp_path):
    root, run = world
    config = tiny_config(root, "multiclass", f"init={run}")
    prepared, part = prepare_tiny(config), PARTS[0]
    own = open_tiny(config, tmp_path, prepared)
    start = build_training(config, prepared, part, Rank())
    save_model(own / part.name / "model", start.network, start.spec)
    models, rows = {"last": load_model(own / part.name / "model")}, prepared.predicted(part)
    predict_held_out(config, prepared, models, rows, torch.device("cpu"), own, part, "oof-0-of-1")
    found, expected = (folder / part.name / "oof-0-of-1" for folder in (own, run))
    assert (found / "predictions.parquet").read_bytes() == (expected / "predictions.parquet").read_bytes()


def test_it_trains_on_and_its_folds_stay_honest(world, tmp_path):
    """The labels of fold 0 are others in both runs: what decides about fold 0 stays the same to the byte."""
    root, weights = world[0], []
    for flipped in (False, True):
        data = shutil.copytree(root, tmp_path / str(flipped), ignore=shutil.ignore_patterns("runs", "prepared"))
        shutil.copytree(root / "prepared", data / "prepared")
        frame = pd.read_csv(data / "train.csv", keep_default_na=False)
        if flipped:
            folds = pd.read_csv(root / "prepared/folds.csv").set_index("id")["fold"]
            held = frame["id"].map(folds) == 0
            frame.loc[held, "label"] = frame.loc[held, "label"].map({"blue": "red", "red": "green", "green": "blue"})
            frame.to_csv(data / "train.csv", index=False)
        first = train_folds(tiny_config(data, "multiclass", "epochs=1", "fold=0"), data / "runs")
        second = train_folds(tiny_config(data, "multiclass", "epochs=1", "fold=0", f"init={first}"), data / "runs")
        weights.append(stored(second, "fold0"))
        assert any(not torch.equal(weights[-1][key], stored(first, "fold0")[key]) for key in weights[-1])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_head_for_other_classes_is_new_and_another_network_is_refused(world, tmp_path):
    root, run = world
    frame = pd.read_csv(root / "train.csv", keep_default_na=False)
    binary = tmp_path / "binary.csv"
    frame.assign(label=np.where(frame["label"] == "red", "red", "other")).to_csv(binary, index=False)
    config = tiny_config(root, "multiclass", f"init={run}", f"data.table={binary}")
    start, source = begun(config), stored(run, "fold0")
    new = [key for key in source if start[key].shape != source[key].shape]
    assert new == ["net.fc.bias", "net.fc.weight"]
    assert all(torch.equal(start[key], source[key]) for key in source if key not in new)
    config = tiny_config(root, "multiclass", f"init={run}", "model.name=test_efficientnet")
    with pytest.raises(Refusal, match=r"does not fit this network: \d+ of \d+ tensors before its head .*same model"):
        begun(config)


def test_what_is_missing_is_listed(world, tmp_path):
    root, run = world
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "fold1")
    shutil.rmtree(copy / "full")
    prepared = prepare_tiny(tiny_config(root, "multiclass"))
    with pytest.raises(Refusal) as refused:
        check_initial(copy, prepared, [*PARTS, Holdout(())])
    assert str(refused.value).splitlines() == [
        f"init={copy} has no model in fold1: train it with python train.py run={copy} fold=1",
        f"init={copy} has no model in full: train it with python train.py run={copy} fold=full",
    ]
    (copy / "fold0/snapshots/best1").mkdir(parents=True)
    shutil.copy(copy / "fold0/model/model.json", copy / "fold0/snapshots/best1")
    with pytest.raises(Refusal, match=f"average them with python tools/average_weights.py {copy}"):
        check_initial(copy, prepared, PARTS[:1])


def test_other_folds_are_taken_from_a_table_without_anything_in_common(world, tmp_path):
    root, run = world
    data = tmp_path / "own"
    data.mkdir()
    shutil.copytree(root / "images", data / "images")
    frame = pd.read_csv(root / "train.csv", keep_default_na=False).drop(columns="mask")
    frame.to_csv(data / "train.csv", index=False)
    frame[["id", "image"]].to_csv(data / "test.csv", index=False)
    config = tiny_config(data, "multiclass", f"init={run}", "seed=7")
    with pytest.raises(Refusal) as refused:
        check_initial(run, prepare_tiny(config), PARTS)
    lines = str(refused.value).splitlines()
    assert lines[1].startswith("  24 ids: row0, row1, row10") and lines[2].startswith("  24 pictures: ")
    assert lines[-1].endswith("train it with the same folds")

    for image in (data / "images").iterdir():  # a byte after the end: another file, the same picture
        image.write_bytes(image.read_bytes() + b"x")
    frame.assign(id=[f"other{row}" for row in range(len(frame))]).to_csv(data / "train.csv", index=False)
    shutil.rmtree(data / "prepared")
    prepared = prepare_tiny(config)
    check_initial(run, prepared, PARTS)
    start, source = begun(config), stored(run, "full")
    assert all(torch.equal(start[key], source[key]) for key in source)


def test_a_run_is_named_by_what_it_starts_from(world, tmp_path):
    root, run = world
    moved = shutil.copytree(run, tmp_path / "moved")
    other = shutil.copytree(run, tmp_path / "other")
    values = json.loads((other / "identity.json").read_text())
    values["identity"]["config seed"] = "43"
    (other / "identity.json").write_text(json.dumps(values))
    names = [
        open_tiny(tiny_config(root, "multiclass", f"init={init}"), tmp_path / "runs").name
        for init in ("null", run, moved, other)
    ]
    assert names[1] == names[2] and len(set(names)) == 3


def test_bad_values_are_refused_early(world, tmp_path):
    root, run = world
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    for overrides, message in (
        ([f"init={tmp_path}"], "is not a run"),
        ([f"init={run}", f"model.weights={weights}"], "init and model.weights exclude each other"),
    ):
        with pytest.raises(Refusal, match=message):
            check_config(tiny_config(root, "multiclass", *overrides))
