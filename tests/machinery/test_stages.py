"""Bundles of two stages: a run of masks finds the boxes, as tools/crop.py does, and others predict what is in them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_bundle import make_run, predict, run_here, run_infer
from tiny import CLASSES, make_spec, random_model, write_data

from foldwise.bundle import rehearse as rehearsing
from foldwise.bundle.build import build_bundle
from foldwise.bundle.first_stage import BOXES, MAPS
from foldwise.bundle.first_stage import SHARDS as FIRST
from foldwise.bundle.inferring import REPORT, SHARDS
from foldwise.bundle.shards import read_rows
from foldwise.bundle.spec import read_bundle
from foldwise.bundle.time_limit import Pace
from foldwise.data.boxes import BOX
from foldwise.data.folds import write_folds
from foldwise.errors import Refusal
from foldwise.inference.weights import load_model, save_model
from foldwise.predictions.finder import Finder
from foldwise.predictions.found_boxes import write_boxes
from foldwise.predictions.store import iter_average_maps, read_predictions
from foldwise.predictions.writers import BAD

CROP = {"box": list(BOX), "margin": 0.1, "square": True}
ROWS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = write_data(tmp_path_factory.mktemp("data"))
    write_folds(root / "folds.csv", {f"row{row}": (row // 4) % 2 for row in range(ROWS)})
    return root


@pytest.fixture(scope="module")
def masks(tmp_path_factory, data) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "masks", data, "segmentation", 0)
    for fold in (0, 1):  # a random head is so sure that no threshold lies between two pictures
        model = load_model(run / f"fold{fold}" / "model")
        for module in model.network.net.head():
            for parameter in module.parameters():
                parameter.data *= 0.4
        save_model(run / f"fold{fold}" / "model", model.network, model.spec)
    shutil.rmtree(run / "oof")
    predict(run, "none", run / "oof", oof=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"scale": 230.0, "mode": "stored"}
    config |= {"top_k": 0, "phases": {}, "callbacks": {}, "scheduler": {"_target_": "constant"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    header = json.loads((run / "oof" / "predictions.json").read_text())
    (run / "identity.json").write_text(
        json.dumps({"format_version": 1, "identity": {"content folds": header["folds_hash"]}})
    )
    predict(run, "none", run / "predictions" / "test-none")
    return run


def threshold_of(masks: Path, how: str) -> float:
    """Reached in three of four pictures."""
    maps = [probability[1] for _, probability in iter_average_maps(read_predictions(masks / "predictions/test-none"))]
    peak = Finder("peak", ("blue",), 0, side=9)
    return float(np.quantile([peak.find(each)[0].score if how == "peak" else each.max() for each in maps], 0.25))


@pytest.fixture(scope="module", params=["union", "components", "peak"])
def stages(request, tmp_path_factory, data, masks) -> tuple[Path, list[Path]]:
    """The folder of the tables that crop.py writes, and two runs of two folds on them; one with the maps too."""
    how = request.param
    root = tmp_path_factory.mktemp(how)
    write_boxes(masks, root / "boxes.csv", Finder(how, ("blue",), threshold_of(masks, how), side=9, map=how != "peak"))
    columns = {"id": "id", "image": "image", "fold": "fold", **dict.fromkeys(("target", "group", "unit", "weight"))}
    if how == "components":
        columns |= {"unit": "picture", "group": "picture"}
        frame = pd.read_csv(root / "boxes.csv").drop(columns="label")
        labels = pd.read_csv(data / "train.csv").set_index("id")["label"]
        frame.assign(label=frame["picture"].map(labels)).to_csv(root / "boxes.csv", index=False)
    section = {
        "name": "boxes",
        "root": str(data),
        "table": str(root / "boxes.csv"),
        "test_table": str(root / "boxes_test.csv"),
        "prepared": str(root),
        "folds": 2,
        "classes": CLASSES,
        "columns": columns,
    }
    runs = []
    for number, name in enumerate("ab"):
        channels = {"channels": ["score_map"]} if number and how != "peak" else {}
        reader = {"mode": "stored", "crop": CROP, **channels}
        count = 4 if channels else 3
        images = {"image": {"scale": 230.0, "mean": [0.4] * count, "std": [0.3] * count}}
        spec = {"samples": {"_target_": "foldwise.data.samples:Samples", **reader}, "images": images}
        run = root / name
        for fold in (0, 1):
            model = random_model(make_spec("multiclass", CLASSES, count, **spec), 10 * number + fold)
            save_model(run / f"fold{fold}" / "model", model.network, model.spec)
        samples = {"_target_": "foldwise.data.samples.Samples", **reader}
        metric = {"_target_": "foldwise.predictions.metrics.MacroF1"}
        config = {"task": "multiclass", "data": section, "samples": samples, "metric": metric}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        predict(run, "margins" if number else "none", run / "oof", oof=True)
        predict(run, "margins" if number else "none", run / "predictions" / "test-none")
        runs.append(run)
    return root, runs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, stages) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    build_bundle(stages[1], out, decision="argmax")
    return out


def test_a_bundle_finds_the_boxes_of_crop_py_and_predicts_as_predict_py(tmp_path, data, masks, stages, bundle):
    root, runs = stages
    out = tmp_path / "out"
    submission = pd.read_csv(run_infer(bundle, data, out, keep_shards=True))
    assert submission["id"].tolist() == [f"row{row}" for row in range(ROWS)]
    found, expected = (pd.read_csv(path, dtype=str) for path in (out / BOXES, root / "boxes_test.csv"))
    if "score_map" in found:  # the hash of the pixels is in the name
        of_map, of_table = (frame["score_map"].str.partition("/")[2] for frame in (found, expected))
        assert (of_map == of_table).mean() > 0.9  # rounding
    maps = ["box_score", "score_map"]
    pd.testing.assert_frame_equal(
        found.drop(columns=maps, errors="ignore"), expected.drop(columns=maps, errors="ignore")
    )
    report = json.loads((out / REPORT).read_text())
    without = found["x0"].isna().sum()
    assert 0 < without < ROWS and report["first_stage"]["without_box"] == without
    assert any("have no box and are read whole" in note for note in report["notes"])
    answers = read_rows(out / SHARDS, read_bundle(bundle), len(found))
    for number, run in enumerate(runs):
        frame = read_predictions(run / "predictions" / "test-none").frame
        for fold in (0, 1):
            of_fold = frame[frame["fold"] == fold].set_index("id").loc[expected["id"], CLASSES]
            np.testing.assert_allclose(answers[:, 2 * number + fold], of_fold, atol=2e-3)

    # Killed within the second stage, it finds nothing again; and without the shards nothing is left behind.
    (out / "submission.csv").unlink()
    before = (out / FIRST / "done.jsonl").read_text()
    again = pd.read_csv(run_infer(bundle, data, out))
    pd.testing.assert_frame_equal(again, submission)
    assert before.count("\n") == ROWS and not any((out / name).exists() for name in (FIRST, SHARDS, MAPS))


def test_a_picture_that_cannot_be_read_costs_its_own_answer(tmp_path, data, bundle):
    test = pd.DataFrame({"id": ["x", "y", "row1"], "image": ["images/1.png", "broken.png", "images/1.png"]})
    test.to_csv(tmp_path / "test.csv", index=False)
    (tmp_path / "images").symlink_to(data / "images")
    (tmp_path / "broken.png").write_bytes(b"broken")
    submission = pd.read_csv(run_infer(bundle, tmp_path, tmp_path / "out"), index_col="id")
    assert submission["label"]["x"] == submission["label"]["row1"] and "y" in submission.index
    bad = pd.read_csv(tmp_path / "out" / BAD)
    assert bad["id"].str.partition("-")[0].tolist() == ["y"]
    assert not (tmp_path / "out" / MAPS).exists()


@pytest.mark.parametrize("sandboxed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_rehearsal_covers_both_stages(data, bundle, sandboxed, monkeypatch):
    if not sandboxed:
        monkeypatch.setattr(rehearsing, "run_sandboxed", run_here)
    rehearsed = rehearsing.rehearse(bundle, data / "train.csv", rows=30, workers=0, hidden=1000)
    assert rehearsed.problems == [] and len(rehearsed.bad) == rehearsed.planted == 7
    assert rehearsed.report["first_stage"]["images"] == 37
    seconds = rehearsed.report["first_stage"]["seconds_per_image"] + rehearsed.report["seconds_per_image"]
    assert rehearsed.hidden_seconds > 900 * seconds
    assert any(line.startswith("boxes ") for line in rehearsing.describe(rehearsed, 1000))


def test_one_limit_for_both_stages(tmp_path, data, bundle):
    late = pd.read_csv(run_infer(bundle, data, tmp_path / "out", batch_size=8, time_limit=1e-3))
    assert len(late) == ROWS and late["label"].nunique() <= 2
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["first_stage"]["without_box"] >= ROWS - 8
    now = [0.0]
    pace = Pace(100, 100, clock=lambda: now[0], later=1)
    for _ in range(2):
        now[0] += 5
        pace.advance(10, passes=2)
    assert pace.forecast(2) == pytest.approx(10 + 80 * 2 * 0.25 + 100 * 0.25)  # a pass takes a quarter of a second


def test_boxes_of_other_masks_are_refused(tmp_path, masks, stages):
    _, runs = stages
    identity = (masks / "identity.json").read_text()
    (masks / "identity.json").write_text("{}")
    with pytest.raises(Refusal, match=r"masks of .*masks, which a bundle needs and which is not here or has changed"):
        build_bundle(runs, tmp_path / "bundle")
    (masks / "identity.json").write_text(identity)
    assert not (tmp_path / "bundle").exists()
