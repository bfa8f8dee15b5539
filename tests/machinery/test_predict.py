"""predict.py on runs made by hand: what it writes, where, and what it refuses."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from rows import SAMPLES
from tiny import save_random_model

from foldwise.bundle.contents import find_imports
from foldwise.data.images import ImageError
from foldwise.data.table import Columns, read_table
from foldwise.errors import ProcessFailed, Refusal, show_notes
from foldwise.inference import sharing
from foldwise.inference.device import choose_devices
from foldwise.inference.predicting import Choices, predict_runs
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model
from foldwise.predictions.store import iter_maps, read_predictions
from foldwise.predictions.writers import PredictionWriter
from foldwise.settings import find_choice

ROOT = Path(__file__).parents[1]
CLASSES = ("ground", "cat", "dog")


@pytest.fixture
def data(tmp_path):
    """A root with five images of different sizes and their tables."""
    root = tmp_path / "data"
    root.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index, size in enumerate([(32, 32), (20, 50), (64, 33), (32, 32), (10, 10)]):
        cv2.imwrite(str(root / f"{index}.png"), cv2.resize(rng.integers(0, 256, (5, 5, 3), np.uint8), size[::-1]))
        rows.append({"id": f"{index:03d}", "image": f"{index}.png"})
    pd.DataFrame(rows).to_csv(root / "test.csv", index=False)
    return root


def make_run(folder, data, task="multiclass", folds=(0, 1), classes=CLASSES, seed=0, **data_config):
    for fold in folds:
        save_random_model(folder / f"fold{fold}" / "model", task, classes, fold + 10 * seed)
    section = {
        "root": str(data),
        "table": str(data / "train.csv"),
        "test_table": str(data / "test.csv"),
        "folds": 2,
        "columns": {
            "id": "id",
            "image": "image",
            "target": None,
            "group": None,
            "unit": None,
            "weight": None,
            "fold": None,
        },
    }
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"task": task, "samples": SAMPLES, "data": {**section, **data_config}})
    )
    (folder / "identity.json").write_text(json.dumps({"identity": {"content folds": "abc"}}))
    return folder


def predict(runs, tta="none", table=None, out=None, root=None, **choices):
    """`predict_runs` on the CPU, reading images in this process."""
    return predict_runs(
        runs, Choices(tta=find_choice("tta", tta), **{"workers": 0, "device": "cpu", **choices}), table, out, root=root
    )


def test_members_are_kept_apart_and_equal_the_predictor(tmp_path, data):
    run = make_run(tmp_path / "runs" / "a", data, "multilabel")
    (folder,) = predict([run], "flips")
    assert folder == run / "predictions" / "test-flips"
    back = read_predictions(folder)
    assert back.header.split == "test" and back.header.folds_hash == "abc" and back.header.run == "a"
    assert back.header.tta == {"views": ["identity", "hflip"], "mean": "arithmetic"}
    assert back.header.members == [{"fold": fold, "snapshot": "last", "view": "mean"} for fold in (0, 1)]
    table = read_table(data / "test.csv", "multilabel", data, Columns(), CLASSES, has_target=False)
    for fold in (0, 1):
        rows = back.frame[back.frame["fold"] == fold]
        assert rows["id"].tolist() == [f"{index:03d}" for index in range(5)]
        predictor = Predictor([load_model(run / f"fold{fold}" / "model")], TTA.choose(["identity", "hflip"]), workers=0)
        expected = [found[""][0, 0] for _, found in predictor.predict(table)]
        np.testing.assert_allclose(rows[list(CLASSES)], expected, atol=1e-5)


def test_several_runs_in_one_pass(tmp_path, data):
    runs = [make_run(tmp_path / name, data, folds=folds) for name, folds in (("a", (0, 1)), ("b", (1,)))]
    folders = predict(runs, "none", out=tmp_path / "out")
    assert folders == [tmp_path / "out" / "a", tmp_path / "out" / "b"]
    first, second = (read_predictions(folder).frame for folder in folders)
    assert len(first) == 10 and len(second) == 5
    pd.testing.assert_frame_equal(first[first["fold"] == 1].reset_index(drop=True), second, atol=1e-5)


def test_segmentation_writes_maps_at_the_stored_size_and_overlays(tmp_path, data):
    run = make_run(tmp_path / "run", data, "segmentation")
    (folder,) = predict([run], "d4", overlays=2)
    rows = list(iter_maps(read_predictions(folder)))
    assert [(row.id, row.fold) for row in rows[:3]] == [("000", 0), ("000", 1), ("001", 0)]
    assert rows[2].probability.shape == (3, 20, 50) and rows[4].probability.shape == (3, 64, 33)
    pictures = sorted(path.name for path in (folder / "overlays").iterdir())
    assert pictures == ["000000-000.png", "000004-004.png"]
    assert cv2.imread(str(folder / "overlays" / pictures[0])).ndim == 3


def test_an_existing_prediction_stays_and_the_way_out_is_named(tmp_path, data):
    runs = [make_run(tmp_path / name, data, folds=(0,)) for name in "ab"]
    (folder,) = predict(runs[:1], "none")
    before = (folder / "predictions.parquet").read_bytes()
    with pytest.raises(Refusal, match="exists and is not overwritten") as caught:
        predict(runs, "none")
    assert f"python predict.py {runs[1]}" in str(caught.value)
    assert "--tta none --out predictions/test-none-2" in str(caught.value)
    assert (folder / "predictions.parquet").read_bytes() == before


def test_a_broken_image_leaves_nothing(tmp_path, data):
    run = make_run(tmp_path / "run", data, "segmentation", folds=(0,))
    (data / "3.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"3\.png"):
        predict([run], "none", batch_size=1)
    assert not (run / "predictions" / "test-none").exists()


@pytest.mark.parametrize("processes", [None, 2])
def test_oriented_and_damaged_pictures_are_noted_once(tmp_path, data, processes, forks, capfd):
    run = make_run(tmp_path / "run", data)
    tags = Image.Exif()
    tags[0x0112] = 6
    for number in (1, 2):
        with Image.open(data / f"{number}.png") as picture:
            picture.save(tmp_path / "turned.png", exif=tags)
        shutil.move(tmp_path / "turned.png", data / f"{number}.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    encoded = bytearray(cv2.imencode(".jpg", noise)[1].tobytes())
    encoded[2000:2200] = bytes(200)
    (data / "3.png").write_bytes(encoded)
    with show_notes():
        predict([run], devices=processes)
    lines = capfd.readouterr().err.splitlines()
    turned = [line for line in lines if line.startswith("note: these pictures have an EXIF orientation")]
    assert sum(line.count("(6)") for line in turned) == 2 and len(turned) == (processes or 1)
    damaged = [line for line in lines if line.startswith("note: 1 JPEGs are damaged inside")]
    assert [str(data / "3.png") in line for line in damaged] == [True] * (find_spec("simplejpeg") is not None)
    assert not any("Corrupt JPEG" in line for line in lines)


@pytest.mark.parametrize(("processes", "keep_views", "tta"), [(None, False, "none"), (2, True, "flips")])
@pytest.mark.parametrize("task", ["multiclass", "segmentation"])
def test_bad_images_get_the_fallback_and_are_listed(task, processes, keep_views, tta, tmp_path, data, forks, capsys):
    """All others are predicted as without them; a bad one has the class shares, or zeros of the size that it had."""
    options = {"keep_views": keep_views, "devices": processes, "batch_size": 2 if keep_views else 1}
    labels = ["cat", "cat", "dog", "cat", "ground"]
    table = pd.read_csv(data / "test.csv", dtype=str)
    table.assign(label=labels).to_csv(data / "train.csv", index=False)
    train = tmp_path / "train"  # the training table is intact
    shutil.copytree(data, train)
    places = {"root": str(train), "table": str(train / "train.csv"), "name": "competition"}
    run = make_run(tmp_path / "run", data, task, **places)
    (whole,) = predict([run], tta, data / "test.csv", tmp_path / "whole", data, **options)
    (data / "1.png").write_bytes(b"no picture")
    tifffile.imwrite(data / "2.png", np.zeros((64, 33, 7), np.uint8), photometric="minisblack")
    with pytest.raises((ImageError, ProcessFailed), match=None if processes else "add --fallback") as error:
        predict([run], tta, data / "test.csv", tmp_path / "none", data, **options)
    assert processes or "1.png" in str(error.value)
    (found,) = predict([run], tta, data / "test.csv", tmp_path / "found", data, fallback=True, **options)
    bad = pd.read_csv(found / "bad_images.csv", dtype=str)
    assert bad["id"].tolist() == ["001", "002"] and bad["image"].tolist() == [str(data / f"{n}.png") for n in (1, 2)]
    assert "is text ('no picture'...)" in bad["problem"][0] and "has 7 channels" in bad["problem"][1]
    console = capsys.readouterr().out.replace("\n", " ")
    assert "2 of 5 images could not be read and got the fallback" in console and "002: " in console
    before, after = read_predictions(whole), read_predictions(found)
    keys = ["id", "fold", "snapshot", "view"]
    pd.testing.assert_frame_equal(before.frame[keys], after.frame[keys])
    broken = after.frame["id"].isin(bad["id"]).to_numpy()
    if task == "multiclass":
        assert np.allclose(after.frame.loc[broken, list(CLASSES)], [1 / 5, 3 / 5, 1 / 5])
        same = [each.frame.loc[~broken, list(CLASSES)] for each in (before, after)]
        np.testing.assert_allclose(*same, atol=1e-5)
    else:
        maps = [list(iter_maps(each)) for each in (before, after)]
        for is_bad, old, new in zip(broken, *maps, strict=True):
            if is_bad:
                shape = (64, 33) if new.id == "002" else (32, 32)  # unknown: that of the first image
                assert new.probability.shape == (3, *shape) and not new.probability.any()
            else:
                np.testing.assert_allclose(old.probability, new.probability, atol=1.01 / 255)


def test_nothing_is_written_if_no_image_can_be_read(tmp_path, data):
    run = make_run(tmp_path / "run", data, "segmentation", folds=(0,))
    for path in data.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(Refusal, match=r"no image of .*test\.csv could be read; the first problem is: .*0\.png"):
        predict([run], fallback=True)
    assert not (run / "predictions" / "test-none").exists()


def test_with_no_bad_image_the_fallback_changes_nothing(tmp_path, data):
    run = make_run(tmp_path / "run", data, "segmentation", folds=(0,))
    folders = [predict([run], out=tmp_path / str(number), fallback=number > 0)[0] for number in (0, 1)]
    files = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in folders]
    assert files[0] == files[1] and len(files[0]) > 5


def test_fallbacks_of_an_interrupted_command_are_not_kept(tmp_path, data, monkeypatch):
    """The image is fixed before the command runs again."""
    run = make_run(tmp_path / "run", data, "segmentation", folds=(0,))
    (expected,) = predict([run], out=tmp_path / "expected")
    intact = (data / "3.png").read_bytes()
    (data / "3.png").write_bytes(b"no picture")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PredictionWriter, "__exit__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        predict([run], out=tmp_path / "found", fallback=True)
    (data / "3.png").write_bytes(intact)
    (found,) = predict([run], out=tmp_path / "found", fallback=True)
    assert not (found / "bad_images.csv").exists()
    for old, new in zip(iter_maps(read_predictions(expected)), iter_maps(read_predictions(found)), strict=True):
        assert old.id == new.id and np.array_equal(old.probability, new.probability)


def test_a_table_of_images_in_another_folder(tmp_path, data):
    run = make_run(tmp_path / "run", data, "segmentation", folds=(0,))
    (expected,) = predict([run], out=tmp_path / "expected")
    elsewhere = tmp_path / "elsewhere"
    data.rename(elsewhere)
    with pytest.raises(Refusal, match="data root"):
        predict([run], table=elsewhere / "test.csv")
    (found,) = predict([run], table=elsewhere / "test.csv", root=elsewhere, overlays=1)
    pd.testing.assert_frame_equal(read_predictions(expected).frame, read_predictions(found).frame)
    assert len(list((found / "overlays").iterdir())) == 1


def test_runs_that_do_not_go_together_or_are_none(tmp_path, data):
    run = make_run(tmp_path / "a", data, folds=(0,))
    other = make_run(tmp_path / "b", data, folds=(0,), classes=("x", "y", "z"))
    table = make_run(tmp_path / "c", data, folds=(0,), test_table="elsewhere.csv")
    bare = make_run(tmp_path / "e", data, folds=(0,), test_table=None)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.yaml").write_text("data: {}")
    shutil.copytree(tmp_path / "d", tmp_path / "f")
    (tmp_path / "f" / "ensemble.json").write_text("{}")
    cases = [
        ([run, other], "differ in classes"),
        ([run, table], "differ in test table"),
        ([run, run], "named twice"),
        ([bare], "without data.test_table: add --table"),
        ([tmp_path / "nothing"], "is not a run"),
        ([data], "is not a run"),
        ([tmp_path / "d"], "has no model yet"),
        ([tmp_path / "f"], "is an ensemble, which has no models of its own"),
    ]
    for runs, message in cases:
        with pytest.raises(Refusal, match=message):
            predict(runs, "none")
    with pytest.raises(Refusal, match="--overlay"):
        predict([run], "none", overlays=1)
    with pytest.raises(Refusal, match="--device nonsense"):
        predict([run], "none", device="nonsense")


def test_the_command_line_ends_with_2_and_a_message(tmp_path):
    command = [sys.executable, str(ROOT / "predict.py")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.returncode == 0 and "python predict.py runs/" in shown.stdout
    failed = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert failed.returncode == 2 and "is not a run" in failed.stderr and "Traceback" not in failed.stderr
    assert subprocess.run([*command, "x", "--workers", "-1"], capture_output=True, cwd=ROOT).returncode == 2


FOREIGN = ("hydra", "omegaconf", "pytorch_lightning", "lightning", "wandb")


def test_the_command_imports_nothing_that_only_training_needs(tmp_path, data, command, monkeypatch):
    """As modules are loaded, which here they are already, and as the command runs."""
    assert not set(find_imports(ROOT / "predict.py", ROOT).needs) & set(FOREIGN)
    for name in FOREIGN:
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    code, said, error = command("predict.py", make_run(tmp_path / "run", data), "--workers", 0, "--device", "cpu")
    assert (code, error) == (0, "") and "5 images" in said and "written" in said


@pytest.mark.slow
def test_the_command_predicts_where_hydra_lightning_and_wandb_are_not_installed(tmp_path, data):
    """From another folder, too: a saved model predicts with the code and its files alone."""
    run = make_run(tmp_path / "run", data, folds=(0,))
    script = (
        "import runpy, sys\n"
        f"for name in {FOREIGN}: sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.argv = ['predict.py', {str(run)!r}, '--workers', '0', '--device', 'cpu']\n"
        f"runpy.run_path({str(ROOT / 'predict.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read_predictions(run / "predictions" / "test-none").frame) == 5


def make_snapshots(run):
    """Two snapshots a fold where `make_run` made one model."""
    for fold in (0, 1):
        for number, name in enumerate(("cycle1", "cycle2")):
            folder = run / f"fold{fold}" / "snapshots" / name
            shutil.copytree(run / f"fold{fold if number else 1 - fold}" / "model", folder)


def test_snapshots_predict_instead_of_the_last_weights(tmp_path, data):
    run = make_run(tmp_path / "run", data)
    (last,) = predict([run])
    make_snapshots(run)
    (folder,) = predict([run], out=tmp_path / "snapshots")
    members = {(fold, name) for fold in (0, 1) for name in ("cycle1", "cycle2")}
    frame = read_predictions(folder).frame
    assert set(zip(frame["fold"], frame["snapshot"], strict=True)) == members
    old = read_predictions(last).frame.set_index(["fold", "id"])[list(CLASSES)].loc[1].to_numpy()
    crossed = frame[(frame["fold"] == 0) & (frame["snapshot"] == "cycle1")]
    np.testing.assert_allclose(crossed[list(CLASSES)], old, atol=1e-6)
    shutil.rmtree(run / "fold1" / "snapshots" / "cycle2")
    with pytest.raises(Refusal, match="fold1 has snapshots"):
        predict([run])


@pytest.mark.parametrize("task", ["multiclass", "segmentation"])
@pytest.mark.parametrize("kept", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_an_interrupted_prediction_resumes_where_it_stopped(task, kept, tmp_path, data, monkeypatch):
    runs = [make_run(tmp_path / name, data, task) for name in "ab"]
    whole = predict(runs, out=tmp_path / "whole")
    predict_batch = Predictor.predict
    predicted = []

    def stopped(self, table, items):
        for place, result in predict_batch(self, table, items):
            if len(predicted) == kept:
                raise KeyboardInterrupt
            predicted.append(items[place])
            yield place, result

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict(runs, out=tmp_path / "out", batch_size=1)
    assert not list((tmp_path / "out").glob("[!.]*"))
    left = []

    def counted(self, table, items):
        left.extend(items)
        return predict_batch(self, table, items)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", counted)
        again = predict(runs, out=tmp_path / "out", batch_size=1)
    assert sorted([*predicted, *left]) == list(range(5))
    for first, second in zip(whole, again, strict=True):
        old, new = read_predictions(first), read_predictions(second)
        keys = ["id", "fold"]
        pd.testing.assert_frame_equal(
            old.frame.drop(columns="file", errors="ignore").sort_values(keys, ignore_index=True),
            new.frame.drop(columns="file", errors="ignore").sort_values(keys, ignore_index=True),
            atol=1e-6,
        )
        if task == "segmentation":
            for one, other in zip(iter_maps(old), iter_maps(new), strict=True):
                np.testing.assert_allclose(one.probability, other.probability, atol=1.01 / 255)
    assert not list((tmp_path / "out").glob(".*"))


def test_what_was_begun_with_other_models_is_not_taken_up(tmp_path, data, monkeypatch):
    run = make_run(tmp_path / "run", data)

    def stopped(self, table, items):
        yield 0, {"": np.ones((2, 1, 3)) / 3}
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict([run])
    monkeypatch.undo()
    make_run(tmp_path / "run", data, seed=7)
    (folder,) = predict([run])
    assert not np.allclose(read_predictions(folder).frame[list(CLASSES)], 1 / 3)


def test_out_of_fold_predictions_come_from_the_models_that_did_not_see_the_row(tmp_path, data):
    names = [f"{index:03d}" for index in range(5)]
    folds = [0, 1, 1, 0, 1]
    frame = pd.read_csv(data / "test.csv", dtype=str).assign(label=["cat", "dog", "ground", "cat", "dog"], part=folds)
    frame.to_csv(data / "labelled.csv", index=False)
    columns = dict.fromkeys(("target", "group", "unit", "weight")) | {"id": "id", "image": "image", "fold": "part"}
    run = make_run(tmp_path / "run", data, table=str(data / "labelled.csv"), columns=columns)
    (folder,) = predict([run], "flips", oof=True)
    assert folder.name == "oof-flips"
    oof, (test,) = read_predictions(folder), predict([run], "flips")
    assert oof.header.split == "oof"
    both = read_predictions(test).frame.set_index(["id", "fold"])
    for id, fold in zip(names, folds, strict=True):
        row = oof.frame[oof.frame["id"] == id]
        assert row["fold"].tolist() == [fold]
        np.testing.assert_allclose(row[list(CLASSES)].iloc[0], both.loc[(id, fold), list(CLASSES)], atol=1e-6)


def test_test_images_that_equal_training_images_are_reported(tmp_path, data, capsys):
    shutil.copy(data / "3.png", data / "copy.png")
    pd.DataFrame({"id": ["t"], "image": ["copy.png"], "label": ["a"]}).to_csv(data / "known.csv", index=False)
    run = make_run(tmp_path / "run", data, table=str(data / "known.csv"))
    predict([run])
    assert "1 images are identical to a training image with a known label: 003 = t" in capsys.readouterr().out


@pytest.fixture
def forks(monkeypatch):
    """Processes as plain forks: the command's server would import torch anew."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    monkeypatch.setattr(sharing, "start_server", lambda preload: multiprocessing.get_context("fork"))


def same_predictions(first, second):
    """Whether two folders say the same but for rounding, file by file: an image's batch is another in each."""
    one, other = read_predictions(first), read_predictions(second)
    pd.testing.assert_frame_equal(one.frame, other.frame, atol=1e-6)
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    if one.header.task == "segmentation":
        for a, b in zip(iter_maps(one), iter_maps(other), strict=True):
            np.testing.assert_allclose(a.probability, b.probability, atol=1.01 / 255)


@pytest.mark.parametrize(
    ("task", "processes", "choices"),
    [
        ("multilabel", 2, {"tta": "flips", "keep_views": True}),
        pytest.param("segmentation", 6, {}, marks=pytest.mark.slow),
        ("segmentation", 2, {"tiles": True}),
    ],
)
def test_several_processes_write_what_one_writes(task, processes, choices, tmp_path, data, forks):
    """Also where there are fewer images than processes."""
    runs = [make_run(tmp_path / name, data, task) for name in "ab"]
    whole = predict(runs, out=tmp_path / "whole", **choices)
    shared = predict(runs, out=tmp_path / "shared", devices=processes, **choices)
    for one, other in zip(whole, shared, strict=True):
        same_predictions(one, other)
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize("task", ["multiclass", pytest.param("segmentation", marks=pytest.mark.slow)])
def test_an_error_names_its_process_and_another_number_of_processes_resumes(task, tmp_path, data, forks, capfd):
    run = make_run(tmp_path / "run", data, task)
    (whole,) = predict([run], out=tmp_path / "whole")
    good = (data / "3.png").read_bytes()
    (data / "3.png").write_bytes(b"no picture")
    with pytest.raises(ProcessFailed, match="then run the same command to resume"):
        predict([run], batch_size=1, devices=2)
    assert f"error of rank 1: {data}/3.png" in capfd.readouterr().err
    (data / "3.png").write_bytes(good)
    (folder,) = predict([run], batch_size=1, devices=3)
    assert "images were predicted before" in capfd.readouterr().out
    same_predictions(whole, folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_devices_that_are_not_there_are_refused():
    assert choose_devices("cpu") == ["cpu"] and choose_devices("cpu", 3) == ["cpu"] * 3
    if torch.cuda.is_available():
        with pytest.raises(Refusal, match=r"--devices 99, but --device cuda has \d+ here"):
            choose_devices("cuda", 99)


@pytest.mark.slow
def test_the_command_predicts_in_two_processes(tmp_path, data):
    """From the server that imports torch, as a user starts it."""
    run = make_run(tmp_path / "run", data)
    command = [sys.executable, str(ROOT / "predict.py"), str(run), "--device", "cpu", "--workers", "1"]
    for name, devices in (("one", "1"), ("two", "2")):
        done = subprocess.run(
            [*command, "--devices", devices, "--out", str(tmp_path / name)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert f"5 images, models: 2, views: 1, on {', '.join(['cpu'] * int(devices))}\n" in done.stdout
    same_predictions(tmp_path / "one", tmp_path / "two")
