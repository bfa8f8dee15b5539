"""predict.py on runs made by hand: what it writes, where, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from competition.data.images import ImageError
from competition.inference.predictor import Predictor
from competition.inference.runs import predict_runs
from competition.inference.tta import TTA
from competition.inference.weights import ModelSpec, load_model, save_model
from competition.models.networks import build_network
from competition.predictions.store import iter_maps, read_predictions

ROOT = Path(__file__).parents[1]
NETWORKS = {
    "multiclass": {"library": "timm", "name": "test_resnet"},
    "multilabel": {"library": "timm", "name": "test_resnet"},
    "segmentation": {
        "library": "smp",
        "name": "Unet",
        "encoder": "tu-test_resnet",
        "options": {"decoder_channels": [8, 8, 8, 8, 8]},
    },
}
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


def make_run(folder, data, task="multiclass", folds=(0, 1), classes=CLASSES, **data_config):
    for fold in folds:
        torch.manual_seed(fold)
        net = build_network(NETWORKS[task], 3, len(classes))
        spec = ModelSpec(
            task=task,
            architecture=NETWORKS[task],
            channels=3,
            classes=classes,
            image_size=(32, 32),
            fit="stretch",
            mode="stored",
            scale=None,
            mean=(0.5,) * 3,
            std=(0.2,) * 3,
        )
        save_model(folder / f"fold{fold}" / "model", net, spec)
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
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": task, "data": {**section, **data_config}}))
    (folder / "identity.json").write_text(json.dumps({"identity": {"content folds": "abc"}}))
    return folder


def tta(name):
    return ROOT / "configs" / "tta" / f"{name}.yaml"


def test_members_are_kept_apart_and_equal_the_predictor(tmp_path, data):
    run = make_run(tmp_path / "runs" / "a", data, "multilabel")
    (folder,) = predict_runs([run], tta_path=tta("flips"), workers=0, device="cpu")
    assert folder == run / "predictions" / "test-flips"
    back = read_predictions(folder)
    assert back.header.kind == "test" and back.header.folds_hash == "abc" and back.header.run == "a"
    assert back.header.tta == {"views": ["identity", "hflip"], "mean": "arithmetic"}
    assert back.header.members == [{"fold": fold, "snapshot": "last", "view": "mean"} for fold in (0, 1)]
    for fold in (0, 1):
        rows = back.frame[back.frame["fold"] == fold]
        assert rows["id"].tolist() == [f"{index:03d}" for index in range(5)]
        predictor = Predictor([load_model(run / f"fold{fold}" / "model")], TTA(["identity", "hflip"]), workers=0)
        expected = [result[0] for _, result in predictor.predict([data / f"{index}.png" for index in range(5)])]
        np.testing.assert_allclose(rows[list(CLASSES)], expected, atol=1e-5)


def test_several_runs_in_one_pass(tmp_path, data):
    runs = [make_run(tmp_path / name, data, folds=folds) for name, folds in (("a", (0, 1)), ("b", (1,)))]
    folders = predict_runs(runs, tta_path=tta("none"), out=tmp_path / "out", workers=0, device="cpu")
    assert folders == [tmp_path / "out" / "a", tmp_path / "out" / "b"]
    first, second = (read_predictions(folder).frame for folder in folders)
    assert len(first) == 10 and len(second) == 5
    pd.testing.assert_frame_equal(first[first["fold"] == 1].reset_index(drop=True), second, atol=1e-5)


def test_segmentation_writes_maps_at_the_stored_size_and_overlays(tmp_path, data):
    run = make_run(tmp_path / "run", data, "segmentation")
    (folder,) = predict_runs([run], tta_path=tta("d4"), workers=0, device="cpu", overlays=2)
    rows = list(iter_maps(read_predictions(folder)))
    assert [(row.id, row.fold) for row in rows[:3]] == [("000", 0), ("000", 1), ("001", 0)]
    assert rows[2].probability.shape == (3, 20, 50) and rows[4].probability.shape == (3, 64, 33)
    pictures = sorted(path.name for path in (folder / "overlays").iterdir())
    assert pictures == ["000000-000.png", "000004-004.png"]
    assert cv2.imread(str(folder / "overlays" / pictures[0])).ndim == 3


def test_an_existing_prediction_stays_and_the_way_out_is_named(tmp_path, data):
    runs = [make_run(tmp_path / name, data, folds=(0,)) for name in "ab"]
    (folder,) = predict_runs(runs[:1], tta_path=tta("none"), workers=0, device="cpu")
    before = (folder / "predictions.parquet").read_bytes()
    with pytest.raises(ValueError, match="exists and is not overwritten") as caught:
        predict_runs(runs, tta_path=tta("none"), workers=0, device="cpu")
    assert f"python predict.py {runs[1]}" in str(caught.value)
    assert f"--table {data / 'test.csv'} --tta none --out predictions/test-none-2" in str(caught.value)
    assert (folder / "predictions.parquet").read_bytes() == before


def test_a_broken_image_leaves_nothing(tmp_path, data):
    run = make_run(tmp_path / "run", data, "segmentation", folds=(0,))
    (data / "3.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"3\.png"):
        predict_runs([run], tta_path=tta("none"), workers=0, device="cpu", batch_size=1)
    assert list((run / "predictions").iterdir()) == []


def test_runs_that_do_not_go_together_or_are_none(tmp_path, data):
    run = make_run(tmp_path / "a", data, folds=(0,))
    other = make_run(tmp_path / "b", data, folds=(0,), classes=("x", "y", "z"))
    table = make_run(tmp_path / "c", data, folds=(0,), test_table="elsewhere.csv")
    bare = make_run(tmp_path / "e", data, folds=(0,), test_table=None)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.yaml").write_text("data: {}")
    cases = [
        ([run, other], "do not have the same classes"),
        ([run, table], "do not have the same test table"),
        ([run, run], "named twice"),
        ([bare], "without data.test_table: say what to predict with --table"),
        ([tmp_path / "nothing"], "is not a run"),
        ([data], "is not a run"),
        ([tmp_path / "d"], "has no model yet"),
    ]
    for runs, message in cases:
        with pytest.raises(ValueError, match=message):
            predict_runs(runs, tta_path=tta("none"), device="cpu")
    with pytest.raises(ValueError, match="--overlay"):
        predict_runs([run], tta_path=tta("none"), device="cpu", overlays=1)
    with pytest.raises(ValueError, match="--device nonsense"):
        predict_runs([run], tta_path=tta("none"), device="nonsense")


def test_the_command_line_ends_with_2_and_a_sentence(tmp_path):
    command = [sys.executable, str(ROOT / "predict.py")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.returncode == 0 and "python predict.py runs/" in shown.stdout
    failed = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert failed.returncode == 2 and "is not a run" in failed.stderr and "Traceback" not in failed.stderr
    assert subprocess.run([*command, "x", "--workers", "-1"], capture_output=True, cwd=ROOT).returncode == 2


def test_the_command_predicts_where_hydra_lightning_and_wandb_are_not_installed(tmp_path, data):
    """From another folder, too: a saved model predicts with the code and its files alone."""
    run = make_run(tmp_path / "run", data, folds=(0,))
    script = (
        "import runpy, sys\n"
        "for name in ('hydra', 'omegaconf', 'pytorch_lightning', 'lightning', 'wandb'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.argv = ['predict.py', {str(run)!r}, '--workers', '0', '--device', 'cpu']\n"
        f"runpy.run_path({str(ROOT / 'predict.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 images" in done.stdout and "written" in done.stdout
    assert len(read_predictions(run / "predictions" / "test-none").frame) == 5
