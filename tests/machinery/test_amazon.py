"""The recipes for data of the Amazon competition's shape: 16-bit images of four channels, 17 labels, odd rules."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from tiny import ROOT, prepare_tiny, tiny_config, train_scored

from foldwise.config import compose_config, resolve_config

ROWS = 48
WEATHER = ["clear", "partly_cloudy", "haze", "cloudy"]


@pytest.fixture(scope="module")
def amazon(tmp_path_factory) -> Path:
    """A folder with `data/amazon` as docs/amazon.md describes it: TIFF and JPEG of the same scenes, and both tables."""
    folder = tmp_path_factory.mktemp("amazon")
    shutil.copytree(ROOT / "solution", folder / "solution")
    root = folder / "data/amazon"
    (root / "tif").mkdir(parents=True)
    (root / "jpg").mkdir()
    ground = compose_config(["data=amazon"]).data.classes[4:]
    rng = np.random.default_rng(0)
    rows = []
    for row in range(ROWS):
        weather = WEATHER[row % 4]
        labels = [weather]
        if weather != "cloudy":  # nothing is seen below clouds
            labels += ["primary", *np.array(ground[1:])[rng.random(len(ground) - 1) < 0.3], ground[row % len(ground)]]
        image = rng.integers(2000, 8000, (16, 16, 4)).astype(np.uint16)
        image[..., row % 4] += 20000
        tifffile.imwrite(root / f"tif/{row}.tif", image, photometric="rgb", extrasamples=["unspecified"])
        cv2.imwrite(str(root / f"jpg/{row}.jpg"), (image[..., :3] / 257).astype(np.uint8))
        names = {"id": f"train_{row}", "tif": f"tif/{row}.tif", "jpg": f"jpg/{row}.jpg"}
        rows.append(names | {"labels": " ".join(dict.fromkeys(labels))})
    table = pd.DataFrame(rows)
    table.to_csv(root / "train.csv", index=False)
    table[["id", "tif", "jpg"]].assign(id=table["id"].str.replace("train", "test")).to_csv(
        root / "test.csv", index=False
    )
    return folder


@pytest.mark.slow
def test_from_the_table_to_the_submission(amazon, tmp_path, monkeypatch, command):
    monkeypatch.chdir(amazon)
    few = ["data.folds=2", "data.image_size=32", "data.workers=0"]
    code, _, error = command("prepare.py", "--data", "amazon", "task=multilabel", *few)
    assert code == 0, error
    choices = [
        "experiment=amazon/alno",
        "data=amazon",
        "metric=f_beta",
        "model.name=test_resnet",
        "model.pretrained=false",
        "epochs=4",
    ]
    config = tiny_config(Path("data/amazon"), "multilabel", *choices, *few, "tta=d4", "experiment_name=amazon/alno")
    assert [phase["epochs"] for phase in config["phases"].values()] == [1] * 4
    run = train_scored(config, Path("runs"))
    assert run.parent == Path("runs/amazon")
    model = json.loads((run / "fold0/snapshots/again2/model.json").read_text())
    assert (model["network"]["channels"], model["images"]["image"]["scale"]) == ({"image": 4}, 65535)
    (output,) = model["outputs"]
    assert len(output["columns"]) == 17

    assert command("predict.py", run, "--tta", "d4", "--workers", 0)[0] == 0
    made = ["submit.py", "make", run, "--decision", "expected-f", "--out", tmp_path / "s.csv"]
    code, printed, error = command(*made)
    assert code == 0, error
    assert "1 exclusive groups, 1 labels that stand alone" in printed + Path("submissions.csv").read_text()
    submission = pd.read_csv(tmp_path / "s.csv", keep_default_na=False)
    assert sorted(submission["id"]) == sorted(f"test_{row}" for row in range(ROWS))
    assert {label for labels in submission["labels"] for label in labels.split()} <= set(output["columns"])


def test_the_jpeg_has_the_folds_of_the_tiff(amazon, monkeypatch):
    monkeypatch.chdir(amazon)
    both = []
    for name in ("amazon", "amazon_jpg"):
        config = compose_config([f"data={name}", "task=multilabel", "data.folds=2"])
        both.append(prepare_tiny(resolve_config(config)))
    tiff, jpeg = both
    assert tiff.folds_hash == jpeg.folds_hash
    assert (tiff.image["channels"], tiff.image["dtype"]) == (4, "uint16")
    assert (jpeg.image["channels"], jpeg.image["dtype"]) == (3, "uint8")
