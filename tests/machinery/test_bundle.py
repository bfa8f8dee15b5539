"""Bundles of runs made by hand: what infer.py writes is what predict.py, ensemble.py and submit.py write."""

import importlib.metadata
import json
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import bundle as command
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from rows import SAMPLES, scored
from tiny import CLASSES, make_spec, random_model, save_random_model, write_data

from foldwise.bundle import rehearse as rehearsing
from foldwise.bundle.build import build_bundle, write_notebook
from foldwise.bundle.engine import Engine
from foldwise.bundle.host import MANIFEST, check_host
from foldwise.bundle.inferring import SHARDS, infer
from foldwise.bundle.inputs import read_inputs
from foldwise.bundle.rehearse import rehearse, run_sandboxed
from foldwise.bundle.shards import read_rows
from foldwise.bundle.sources import open_sources
from foldwise.bundle.spec import from_plain, read_bundle, to_plain
from foldwise.bundle.time_limit import Active, Pace, keep_time
from foldwise.bundle.wheels import download_wheels, required_packages
from foldwise.data.decoding import stored_size
from foldwise.data.folds import write_folds
from foldwise.data.images import read_image, to_unit
from foldwise.data.samples import Samples
from foldwise.data.table import Columns, read_table
from foldwise.errors import Refusal
from foldwise.inference.predicting import Choices, predict_runs
from foldwise.inference.weights import Model, save_model
from foldwise.predictions.decisions.calibration import CALIBRATORS
from foldwise.predictions.decisions.deciding import Method, fit_decision
from foldwise.predictions.decisions.rules import rules_for
from foldwise.predictions.decisions.submission import difference
from foldwise.predictions.decisions.submit import make_submission
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.metrics import FBeta, MacroF1
from foldwise.predictions.store import read_predictions
from foldwise.predictions.writers import BAD
from foldwise.settings import find_choice

ROOT = Path(__file__).parents[1]
FOREIGN = ("hydra", "omegaconf", "lightning", "pytorch_lightning", "wandb", "git", "albumentations", "rich")
METRICS = {"multiclass": "MacroF1", "multilabel": "FBeta", "segmentation": "MeanIoU"}
COLUMNS = dict.fromkeys(("target", "group", "unit", "weight", "fold")) | {"id": "id", "image": "image"}
QUIET = Console(quiet=True)


def make_run(folder: Path, data: Path, task: str, seed: int) -> Path:
    """A run of two folds with random networks, and what predict.py says out of fold with kept views."""
    classes = ["background", *CLASSES] if task == "segmentation" else CLASSES
    for fold in (0, 1):
        save_random_model(folder / f"fold{fold}" / "model", task, classes, 10 * seed + fold)
    write_config_of(folder, data, task, classes, SAMPLES)
    predict(folder, "none", folder / "oof", oof=True)
    predict(folder, "flips", folder / "predictions" / "oof-flips", oof=True)
    if task != "segmentation":
        predict(folder, "flips", folder / "predictions" / "oof-flips-views", oof=True, keep_views=True)
    return folder


def write_config_of(folder: Path, data: Path, task: str, classes: list[str], samples: dict) -> None:
    section = {
        "name": "competition",
        "root": str(data),
        "table": str(data / "train.csv"),
        "test_table": str(data / "test.csv"),
        "prepared": str(data),
        "folds": 2,
        "classes": classes,
        "columns": COLUMNS,
    }
    metric = {"_target_": f"foldwise.predictions.metrics.{METRICS[task]}"}
    config = {"task": task, "data": section, "samples": samples, "metric": metric}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def predict(run: Path, tta: str, out: Path, table: Path | None = None, **choices: bool) -> None:
    predict_runs([run], Choices(tta=find_choice("tta", tta), workers=0, device="cpu", **choices), table, out, QUIET)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = write_data(tmp_path_factory.mktemp("data"))
    write_folds(root / "folds.csv", {f"row{row}": (row // 4) % 2 for row in range(24)})
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data) -> list[Path]:
    """Two multi-label runs."""
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / name, data, "multilabel", seed) for seed, name in enumerate("ab")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, runs) -> Path:
    """A bundle of both."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    build_bundle(runs, out, oof="oof-flips", decision="fixed-threshold")
    return out


def test_a_bundle_without_torch(tmp_path, data, runs, masks):
    """It answers as the same bundle of torch does; the rehearsal runs it where torch cannot be imported."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra `export`")
    for name, sources, options in (
        ("rows", runs, {"oof": "oof-flips", "decision": "fixed-threshold"}),
        ("masks", [masks[0]], {"decision": "minimum-area"}),
    ):
        built = build_bundle(sources, tmp_path / name, runtime="onnx", **options)
        assert "onnxruntime" in built.spec.needs and "torch" not in built.spec.needs
        assert not list((tmp_path / name).rglob("*.safetensors"))
        rehearsed = rehearse(tmp_path / name, data / "test.csv", rows=10, workers=2)
        assert rehearsed.problems == [] and len(rehearsed.bad) == rehearsed.planted == 7
    with pytest.raises(Refusal, match=r"--runtime onnx has no .*@0.75"):
        views = runs[0] / "predictions" / "oof-scales"
        shutil.copytree(runs[0] / "predictions" / "oof-flips", views)
        header = json.loads((views / "predictions.json").read_text())
        header["tta"]["views"] = ["identity", "identity@0.75"]
        (views / "predictions.json").write_text(json.dumps(header))
        build_bundle(runs[:1], tmp_path / "no", oof="oof-scales", runtime="onnx")


@pytest.fixture(scope="module")
def masks(tmp_path_factory, data) -> tuple[Path, Path]:
    """A segmentation run, and a bundle of it in half precision."""
    root = tmp_path_factory.mktemp("masks")
    run = make_run(root / "unet", data, "segmentation", 0)
    build_bundle([run], root / "bundle", decision="minimum-area", half=True)
    return run, root / "bundle"


def run_infer(bundle: Path, data: Path, out: Path, **values) -> Path:
    """The submission that infer.py writes."""
    return infer(bundle, out=out, **{"test": data / "test.csv", "workers": 0, "device": "cpu", **values})


# the whole way


@pytest.mark.parametrize("use", [pytest.param("mean", marks=pytest.mark.slow), "geometric"])
def test_an_ensemble_answers_as_ensemble_and_submit_do(tmp_path, data, runs, use):
    """Its probabilities, calibrated for each fold: what any decision would be made by."""
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for run in copies:
        predict(run, "flips", run / "predictions" / "test-flips")
        config = yaml.safe_load((run / "config.yaml").read_text())
        metric = {"_target_": "foldwise.predictions.metrics.LogLoss"}
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "metric": metric}))
    ensemble(copies, tmp_path / "both", oof="oof-flips", use=use)
    decision, ledger = "platt+clip", tmp_path / "submissions.csv"
    made = make_submission(tmp_path / "both", decision=decision, out=tmp_path / "made.csv", ledger=ledger)
    build_bundle([tmp_path / "both"], tmp_path / "bundle", decision=decision)
    answers = pd.read_csv(run_infer(tmp_path / "bundle", data, tmp_path / "out"))
    pd.testing.assert_frame_equal(answers, pd.read_csv(made.path), atol=1e-5)


@pytest.fixture(scope="module")
def stacked_runs(tmp_path_factory, runs) -> list[Path]:
    """Two runs of a table with a number and a camera, and one that knows only whether a picture is blank."""
    root = tmp_path_factory.mktemp("stacked")
    data = write_data(root / "data")
    write_folds(data / "folds.csv", {f"row{row}": (row // 4) % 2 for row in range(24)})
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(data / name).assign(height=np.arange(24) % 5 + 0.5, camera=[*"aabb"] * 6, blank=1, thing=0)
        frame.loc[::3, "height"] = np.nan
        frame.to_csv(data / name, index=False)
    paths = [shutil.copytree(run, root / run.name) for run in runs]
    blank = root / "blank"
    for fold in (0, 1):
        save_random_model(blank / f"fold{fold}" / "model", "multiclass", ["blank", "thing"], 90 + fold)
    for path, task, classes in ((paths[0], "multilabel", CLASSES), (blank, "multiclass", ["blank", "thing"])):
        write_config_of(path, data, task, classes, SAMPLES)
    for path, target in ((paths[0], None), (blank, ["blank", "thing"])):
        config = yaml.safe_load((path / "config.yaml").read_text())
        config["data"]["columns"] = COLUMNS | {"target": target}
        config["metric"] = {"_target_": "foldwise.predictions.metrics.LogLoss"}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(paths[0] / "config.yaml", paths[1] / "config.yaml")
    predict(blank, "flips", blank / "predictions" / "oof-flips", oof=True)
    for path in (*paths, blank):
        predict(path, "flips", path / "predictions" / "test-flips")
    return [*paths, blank]


@pytest.mark.parametrize(
    ("use", "inputs"),
    [
        ("logistic", {"columns": ["height", "camera"]}),
        ("boosting", {"relative_to": "camera"}),
        ("network", {"columns": ["camera"]}),
    ],
)
def test_a_stack_in_a_bundle_is_that_of_ensemble_and_submit(use, inputs, tmp_path, stacked_runs, monkeypatch):
    *members, blank = stacked_runs
    data, both = members[0].parent / "data", tmp_path / "both"
    ensemble(members, both, oof="oof-flips", use=use, features=[blank], **inputs)
    ledger = tmp_path / "submissions.csv"
    options = {"decision": "platt+clip", "kind": "columns"}
    made = make_submission(both, out=tmp_path / "made.csv", ledger=ledger, **options)
    built = build_bundle([both], tmp_path / "bundle", **options)
    assert built.chosen.outcome.overall == made.chosen.outcome.overall
    assert [run.feature for run in built.spec.runs] == [False, False, True]
    for name in FOREIGN:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    answers = pd.read_csv(run_infer(tmp_path / "bundle", data, tmp_path / "out", images=data))
    pd.testing.assert_frame_equal(answers, pd.read_csv(made.path), atol=1e-5)
    assert use == "boosting" or len(answers[CLASSES].drop_duplicates()) > 1  # too few rows for a tree
    monkeypatch.undo()
    with pytest.raises(Refusal, match="test.csv has no column .*camera, which the stacking of this bundle reads"):
        other = tmp_path / "test.csv"
        pd.read_csv(data / "test.csv").drop(columns=["height", "camera"]).to_csv(other, index=False)
        run_infer(tmp_path / "bundle", data, tmp_path / "no", test=other, images=data)
    monkeypatch.setattr(rehearsing, "run_sandboxed", run_here)
    rehearsed = rehearse(tmp_path / "bundle", data / "test.csv", rows=20, workers=1)
    assert rehearsed.problems == [] and (rehearsed.comparison.answers is None) is (use == "boosting")
    active = Active(built.spec)
    dropped = [active.drop() for _ in range(5)]
    assert dropped == ["blank hflip", "b hflip", "a hflip", "fold 1", ""]
    assert active.members == [(0, 0), (1, 0), (2, 0)]


def test_masks_are_those_of_submit(tmp_path, data, masks):
    run = shutil.copytree(masks[0], tmp_path / "unet")
    predict(run, "none", run / "predictions" / "test-none")
    for kind, suffix in (("rle", "csv"), ("masks", "zip")):
        out = tmp_path / f"made.{suffix}"
        make_submission(run, kind=kind, decision="minimum-area", out=out, ledger=tmp_path / f"{kind}.csv")
        build_bundle([run], tmp_path / kind, kind=kind, decision="minimum-area")
        assert difference(out, run_infer(tmp_path / kind, data, tmp_path / f"out-{kind}"), kind) < 0.002


def test_masks_in_tiles_are_those_of_submit(tmp_path, data, masks):
    """Pictures larger than the network's: what was cut into tiles out of fold, the bundle cuts into tiles."""
    run, tiled = shutil.copytree(masks[0], tmp_path / "unet"), "oof-none-tiles"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), np.uint8)
    for name, picture in zip("ab", pixels, strict=True):
        cv2.imwrite(str(data / f"{name}.png"), picture)
    table = tmp_path / "large.csv"
    pd.DataFrame({"id": ["a", "b"], "image": ["a.png", "b.png"]}).to_csv(table, index=False)
    predict(run, "none", run / "predictions" / tiled, oof=True, tiles=True)
    predict(run, "none", run / "predictions" / "test-none", table, tiles=True)
    out, common = tmp_path / "made.zip", {"kind": "masks", "decision": "argmax"}
    make_submission(run, oof=tiled, out=out, ledger=tmp_path / "submissions.csv", **common)
    answers = {}
    for oof in ("oof", tiled):
        bundle = tmp_path / f"bundle-{oof}"
        build_bundle([run], bundle, oof=oof, **common)
        answers[oof] = run_infer(bundle, data, tmp_path / f"out-{oof}", test=table, images=data)
    assert difference(out, answers[tiled], "masks") < 0.002 < 0.05 < difference(out, answers["oof"], "masks")
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / "predictions" / tiled)
    shutil.copytree(other / "oof", other / "predictions" / tiled)
    with pytest.raises(Refusal, match="one is in tiles and the other is not"):
        open_sources([run, other], tiled)


def run_here(command, host, work, without=()):
    """As `run_sandboxed`, without what takes seconds: a process that imports torch anew. So nothing is isolated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(host)
        patch.setattr(sys, "argv", command[1:])
        runpy.run_path(command[1], run_name="__main__")
    return subprocess.CompletedProcess(command, 0)


@pytest.mark.parametrize("sandboxed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_rehearsal_of_rows(data, bundle, sandboxed, monkeypatch):
    if not sandboxed:
        monkeypatch.setattr(rehearsing, "run_sandboxed", run_here)
    with pytest.raises(Refusal, match=r"--table nowhere\.csv does not exist"):
        rehearse(bundle, Path("nowhere.csv"))
    rehearsed = rehearse(bundle, data / "test.csv", rows=60, workers=1)
    assert rehearsed.problems == []
    assert rehearsed.report["images"] == 60 + rehearsed.planted
    assert len(rehearsed.bad) == rehearsed.planted == 7
    assert rehearsed.comparison.images == 24 and rehearsed.comparison.answers == 0


@pytest.mark.slow  # another process that imports torch; the way of masks is above
def test_the_rehearsal_of_masks_in_half_precision(data, masks):
    rehearsed = rehearse(masks[1], data / "test.csv", rows=30, workers=0, hidden=1000)
    assert rehearsed.problems == [] and len(rehearsed.bad) == 7
    assert rehearsed.hidden_seconds > rehearsed.report["seconds_to_first_batch"]


# what is in a bundle


def test_a_bundle_has_what_it_needs_and_nothing_else(bundle, masks):
    for folder in (bundle, masks[1]):
        code = [path.read_text() for path in folder.rglob("*.py")]
        assert not any(re.search(rf"^(import|from) ({'|'.join(FOREIGN)})\b", text, re.M) for text in code)
        assert not list(folder.glob("foldwise/training")) and not list(folder.rglob("*.ckpt"))
        listed = json.loads((folder / MANIFEST).read_text())["files"]
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert there == {*listed, MANIFEST}
        (cell,) = json.loads((folder / "notebook.ipynb").read_text())["cells"]
        assert "infer.py" in "".join(cell["source"])
    assert {"segmentation_models_pytorch", "tifffile", "torch"} <= set(read_bundle(masks[1]).needs)
    assert "segmentation_models_pytorch" not in read_bundle(bundle).needs


def test_no_folder_of_this_machine_is_uploaded(tmp_path, data, runs, monkeypatch):
    monkeypatch.chdir(runs[0].parent)
    build_bundle([Path("a"), runs[1]], tmp_path / "out", oof="oof-flips", decision="fixed-threshold")
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".py", ".json", ".ipynb")]
    assert not any(str(folder) in text for text in texts for folder in (runs[0].parent, data, tmp_path, ROOT))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="there is no run a, b here"):
        rehearse(tmp_path / "out", data / "test.csv")


def test_it_infers_where_what_trains_is_not_installed(tmp_path, data, bundle, masks, monkeypatch):
    for name in FOREIGN:
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    for number, folder in enumerate((bundle, masks[1])):
        assert run_infer(folder, data, tmp_path / str(number)).is_file()


def test_half_precision_takes_half_the_room(masks):
    run, folder = masks
    whole, half = (next(root.rglob("model.safetensors")).stat().st_size for root in (run, folder))
    assert 0.4 < half / whole < 0.6


def test_what_cannot_be_bundled_is_refused_and_leaves_nothing(tmp_path, runs, bundle, capsys):
    stack = tmp_path / "stack"
    stack.mkdir()
    (stack / "ensemble.json").write_text(json.dumps({"method": "logistic", "weights": None, "sources": []}))
    above = tmp_path / "above"
    above.mkdir()
    source = {"folder": str(stack), "oof": str(stack / "oof")}
    made = {"method": "network", "weights": None, "folds": [0, 1], "sources": [source], "features": []}
    (above / "ensemble.json").write_text(json.dumps(made))
    (above / "stack.json").write_text("{}")
    drawn = shutil.copytree(runs[0], tmp_path / "drawn")
    header = json.loads((drawn / "oof" / "predictions.json").read_text())
    (drawn / "oof" / "predictions.json").write_text(
        json.dumps({**header, "tta": {"views": ["identity#0"], "mean": "arithmetic"}})
    )
    out = tmp_path / "out"
    for arguments, message in (
        ([stack], "uses stacking (logistic), but has no stack.json with the fitted models"),
        ([above], f"stacks the ensemble {stack}: make one of runs"),
        ([stack, runs[0]], "combine all sources with ensemble.py"),
        ([drawn], "random draws"),
        ([tmp_path], "is not a run"),
        ([*runs, "--budget-mb", "1"], "models/a"),
        ([runs[0], "--decision", "coin"], "there is no --decision coin"),
        ([runs[0], "--oof", "oof-x"], "is not a prediction folder"),
    ):
        sys.argv = ["bundle.py", *map(str, arguments), "--out", str(out)]
        with pytest.raises(SystemExit) as ended:
            command.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and message in said and "Traceback" not in said
        assert not out.exists() and not list(tmp_path.glob(".out*"))
    with pytest.raises(Refusal, match="exists and is not overwritten"):
        build_bundle(runs, bundle)


@pytest.mark.parametrize(("task", "metric"), [("multiclass", MacroF1()), ("multilabel", FBeta())])
def test_decisions_come_back_from_plain_values(task, metric):
    rng = np.random.default_rng(0)
    target = np.eye(4)[rng.integers(0, 4, 300)]  # exclusive labels, which expected-f finds
    probability = (0.5 * target + rng.dirichlet(np.ones(4), 300)) / 1.5
    metric = metric.for_task(task, list("abcd"))
    for calibrator in CALIBRATORS[task == "multiclass"]:
        for rule in rules_for(metric):
            fitted = fit_decision(Method(calibrator, rule), metric, scored(target, probability, np.arange(300) % 3))
            back = from_plain(json.loads(json.dumps(to_plain(fitted))))
            for fold in (0, 5):  # a fold of its own, and a model of no fold
                np.testing.assert_array_equal(
                    back.rule.decide(back.calibrate(fold, probability)),
                    fitted.rule.decide(fitted.calibrate(fold, probability)),
                )


def test_a_folder_that_is_no_bundle_or_of_another_version_is_refused(tmp_path):
    with pytest.raises(Refusal, match="is not a bundle"):
        read_bundle(tmp_path)
    for values in ({"version": 1}, {"version": 99, "class": "BundleSpec"}):
        (tmp_path / "bundle.json").write_text(json.dumps(values))
        with pytest.raises(Refusal, match=r"another version of foldwise: write the bundle again"):
            read_bundle(tmp_path)


def of_sets(model: Model, root: Path, chosen: list[list[int]]) -> np.ndarray:
    """The mean probabilities of sets of pictures, given by their numbers."""
    images = [[read_image(root / f"images/{number}.png") for number in numbers] for numbers in chosen]
    stacks = [np.stack([to_unit(image, 230) for image in each]) for each in images]
    with torch.no_grad():
        logits = [model.network({"image": torch.from_numpy(each.transpose(0, 3, 1, 2))[None]}) for each in stacks]
    return torch.cat([each["logits"] for each in logits]).sigmoid().mean(0).numpy()


def test_sets_of_frames_and_corrupt_ones(tmp_path):
    """Houses of four pictures in an order that a GRU notices; tta=frames has four sets of two."""
    root, run = write_data(tmp_path / "data"), tmp_path / "run"
    house = [f"h{row // 4}" for row in range(24)]
    for name in ("train", "test"):
        frame = pd.read_csv(root / f"{name}.csv", keep_default_na=False).assign(house=house, number=[3, 2, 1, 0] * 6)
        frame.assign(labels="red").to_csv(root / f"{name}.csv", index=False)
    write_folds(root / "folds.csv", {name: number % 2 for number, name in enumerate(dict.fromkeys(house))})
    reader = {"_target_": "foldwise.data.units:Units", "unit": "house", "order": "number", "frames": 2}
    network = {"_target_": "foldwise.models.pooled:PooledNetwork", "name": "test_resnet", "pool": "gru"}
    network |= {"channels": {"image": 3}, "outputs": {"logits": 3}}
    models = [random_model(make_spec("multilabel", CLASSES, network=network, samples=reader), fold) for fold in (0, 1)]
    for fold, model in enumerate(models):
        save_model(run / f"fold{fold}" / "model", model.network, model.spec)
    write_config_of(run, root, "multilabel", CLASSES, {**reader, "_target_": "foldwise.data.units.Units"})
    predict(run, "frames", run / "oof", oof=True)
    found = read_predictions(run / "oof").frame.set_index("id").loc["h1", CLASSES].to_numpy(float)
    np.testing.assert_allclose(found, of_sets(models[1], root, [[7, 5], [7, 5], [6, 4], [6, 4]]), atol=1e-5)
    build_bundle([run], tmp_path / "bundle", kind="columns")

    (root / "images/7.png").write_bytes(b"broken")
    cv2.imwrite(str(root / "images/5.png"), np.zeros((1, 40, 3), np.uint8))  # too small to be one
    out, spec = tmp_path / "out", read_bundle(tmp_path / "bundle")
    run_infer(tmp_path / "bundle", root, out, keep_shards=True)
    answers = read_rows(out / SHARDS, spec, 6)[1]  # of the eight that are read, 7 7 6 6 5 5 4 4, four are left
    expected = [of_sets(model, root, [[6], [6], [4], [4]]) for model in models]
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    bad = pd.read_csv(out / BAD)
    assert set(bad["id"]) == {"h1"} and {Path(path).name for path in bad["image"]} == {"5.png", "7.png"}


# whatever the test is


def test_other_rows_missing_ones_and_a_folder(tmp_path, data, bundle):
    whole = pd.read_csv(run_infer(bundle, data, tmp_path / "whole"), dtype=str, keep_default_na=False)
    whole = whole.set_index("id")["labels"]
    pd.DataFrame({"id": ["row3", "row7", "row5", "gone"], "labels": "x"}).to_csv(tmp_path / "sample.csv", index=False)
    pd.DataFrame({"id": ["row5", "row3", "row9"]}).to_csv(tmp_path / "some.csv", index=False)  # no image column
    for name in ("row3", "row5", "row9"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        shutil.copy(data / "images" / f"{name[3:]}.png", tmp_path / "pictures" / f"{name}.png")
    for test in (tmp_path / "some.csv", tmp_path / "pictures"):
        out = tmp_path / test.stem
        path = run_infer(bundle, data, out, test=test, images=tmp_path / "pictures", sample=tmp_path / "sample.csv")
        found = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("id")["labels"]
        assert found.index.tolist() == ["row3", "row7", "row5", "gone"]
        assert found["row3"] == whole["row3"] and found["row5"] == whole["row5"]
        assert found["gone"] == found["row7"] != ""  # the fallback: labels that are frequent
        assert not (out / SHARDS).exists()


def test_what_is_wrong_with_the_test_is_refused_before_anything_is_run(tmp_path, data, bundle):
    pd.DataFrame({"id": ["x"], "labels": ""}).to_csv(tmp_path / "other.csv", index=False)
    pd.DataFrame({"id": ["row1"], "cat": 0}).to_csv(tmp_path / "columns.csv", index=False)
    for values, message in (
        ({"test": tmp_path / "none.csv"}, "does not exist"),
        ({"test": tmp_path / "other.csv", "images": tmp_path / "none"}, "is not a folder"),
        ({"sample": tmp_path / "other.csv"}, "belongs to an image of the test"),
        ({"sample": tmp_path / "columns.csv", "test": tmp_path}, "there is no image"),
    ):
        with pytest.raises(Refusal, match=message):
            run_infer(bundle, data, tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()


def test_images_of_units_and_ids_that_come_twice(tmp_path, data):
    frame = pd.read_csv(data / "test.csv", dtype=str).head(4).assign(thing=["u", "v", "u", "v"])
    pd.concat([frame, frame.head(1)]).to_csv(tmp_path / "t.csv", index=False)
    columns, reader = {"id": "id", "image": "image", "unit": "thing"}, Samples()
    found = read_inputs(tmp_path / "t.csv", data, columns, set(), reader)
    assert [(image.id, image.unit) for image in found.images] == list(zip(frame["id"], "uvuv", strict=True))
    assert "1 ids" in found.notes[0]
    with pytest.raises(Refusal, match="no column thing"):
        read_inputs(data / "test.csv", data, columns, set(), reader)


def test_an_item_with_a_bad_picture_is_answered_from_its_others(tmp_path):
    root, run = write_data(tmp_path / "data"), tmp_path / "run"
    things = [f"t{row % 4 + 4 * (row // 12)}" for row in range(24)]  # three pictures of the same labels each
    for name in ("train", "test"):
        pd.read_csv(root / f"{name}.csv", keep_default_na=False).assign(thing=things).to_csv(
            root / f"{name}.csv", index=False
        )
    write_folds(root / "folds.csv", {thing: number % 2 for number, thing in enumerate(dict.fromkeys(things))})
    reader = {"_target_": "foldwise.data.units:Units", "unit": "thing"}
    network = {"_target_": "foldwise.models.pooled:PooledNetwork", "name": "test_resnet", "pool": "attention"}
    network |= {"channels": {"image": 3}, "outputs": {"logits": 3}}
    for fold in (0, 1):
        model = random_model(make_spec("multilabel", CLASSES, network=network, samples=reader), fold)
        save_model(run / f"fold{fold}" / "model", model.network, model.spec)
    write_config_of(run, root, "multilabel", CLASSES, {**reader, "_target_": "foldwise.data.units.Units"})
    predict(run, "none", run / "oof", oof=True)
    build_bundle([run], tmp_path / "bundle", kind="columns")

    test = pd.read_csv(root / "test.csv")
    (root / test["image"][5]).write_bytes(b"broken")
    test.drop(5).to_csv(root / "rest.csv", index=False)
    found, rest = (
        pd.read_csv(run_infer(tmp_path / "bundle", root, tmp_path / f"out-{name}", test=root / f"{name}.csv"))
        for name in ("test", "rest")
    )
    assert found["id"].tolist() == list(dict.fromkeys(things))
    pd.testing.assert_frame_equal(found, rest)
    bad = pd.read_csv(tmp_path / "out-test" / BAD)
    assert bad["id"].tolist() == [things[5]] and "images/5.png" in bad.to_csv()


def test_sizes_are_read_from_the_head(tmp_path):
    picture = np.zeros((3, 5, 3), np.uint8)
    for suffix in ("png", "jpg", "webp", "bmp", "tif"):
        cv2.imwrite(str(tmp_path / f"p.{suffix}"), picture)
        assert stored_size(tmp_path / f"p.{suffix}") == (3, 5)
    (tmp_path / "text.png").write_bytes(b"text")
    assert stored_size(tmp_path / "text.png") == stored_size(tmp_path / "gone.png") == (0, 0)


def with_exif(run: Path, folder: Path, exif: str | None) -> Path:
    """A copy of a run whose models say so."""
    copy = shutil.copytree(run, folder / run.name)
    for path in copy.glob("fold*/model/model.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"exif": exif}))
    return copy


@pytest.mark.parametrize("exif", ["apply", "ignore", None])
def test_orientations_and_grey_pictures_of_a_hidden_test(tmp_path, data, masks, exif, capsys):
    """Turned, or not, like the same pictures stored so; bad ones get an empty mask of the size that they have."""
    bundle = tmp_path / "bundle"
    run = with_exif(masks[0], tmp_path, exif)
    build_bundle([run], bundle, decision="minimum-area", kind="masks")
    tags = Image.Exif()
    tags[0x0112] = 6
    with Image.open(data / "images/3.png") as picture:
        stored = picture.crop((0, 0, 24, 32))
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    (tmp_path / "test").mkdir()
    (tmp_path / "plain").mkdir()
    stored.save(tmp_path / "test/a.png", exif=tags)
    (stored if exif == "ignore" else upright).save(tmp_path / "plain/a.png")
    stored.convert("L").save(tmp_path / "test/grey.png")
    stored.convert("L").convert("RGB").save(tmp_path / "plain/grey.png")
    stored.save(tmp_path / "test/bad.jpg", exif=tags)
    (tmp_path / "test/bad.jpg").write_bytes((tmp_path / "test/bad.jpg").read_bytes()[:-100])
    np.testing.assert_array_equal(stored_size(tmp_path / "test/a.png"), (24, 32))
    found = {}
    for name in ("test", "plain"):
        submission = run_infer(bundle, data, tmp_path / f"out-{name}", test=tmp_path / name)
        with zipfile.ZipFile(submission) as archive:
            found[name] = {each: np.array(Image.open(archive.open(each))) for each in archive.namelist()}
        console = capsys.readouterr().out
        assert ("a.png (6)" in console) == (name == "test" and exif is None)
        assert ("converted as with data.mode=rgb: " in console) == (name == "test")
    empty = found["test"].pop("bad.png")
    assert empty.shape == ((32, 24) if exif == "ignore" else (24, 32)) and not empty.any()
    assert found["test"].keys() == found["plain"].keys() == {"a.png", "grey.png"}
    for name, mask in found["plain"].items():
        np.testing.assert_array_equal(found["test"][name], mask)


def test_a_bundle_of_mapped_masks_is_that_of_plain_ones(tmp_path, data, masks):
    """Masks that store 0, 50, 100 and 150, with `data.mask_values`: the same post-processing and score."""
    run = shutil.copytree(masks[0], tmp_path / "unet")
    stored = shutil.copytree(data, tmp_path / "data")
    for path in (stored / "masks").iterdir():
        cv2.imwrite(str(path), 50 * cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    config = yaml.safe_load((run / "config.yaml").read_text())
    paths = {"root": str(stored), "table": str(stored / "train.csv"), "prepared": str(stored)}
    config["data"] |= paths | {"mask_values": {0: 0, 50: 1, 100: 2, 150: 3}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    build_bundle([run], tmp_path / "bundle", decision="minimum-area", half=True)
    mapped, plain = (to_plain(read_bundle(folder)) for folder in (tmp_path / "bundle", masks[1]))
    assert mapped["score"] == plain["score"] and mapped["decision"] == plain["decision"]


# memory, time, interruptions


def test_out_of_memory_halves_the_batch_and_an_image_that_never_fits_is_left_out(data, bundle):
    engine = Engine(bundle, read_bundle(bundle), "cpu", 16, "32")  # 8 images in two views
    table = read_table(data / "test.csv", "multilabel", data, Columns(), CLASSES, has_target=False)

    def predict_nine():
        return [result for batch in engine.batches(table, range(9), 0) for result in engine.predict(batch)]

    def too_large(net, arguments):
        if len(arguments[0]["image"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    whole = predict_nine()
    engine.predictors[1].models[engine.model_index[1, 0, 0]].network.register_forward_pre_hook(too_large)
    most = 4  # two images in two views
    halved = predict_nine()
    assert engine.batch_size == 2 and len(engine.notes) == 2
    assert [number for number, _ in halved] == list(range(9))
    for (_, one), (_, other) in zip(whole, halved, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=1e-5)
    most = 1
    assert [each for _, each in predict_nine()] == [None] * 9


def test_killed_it_resumes_where_it_stopped(tmp_path, data, bundle, monkeypatch):
    whole = run_infer(bundle, data, tmp_path / "whole").read_text()
    predicted: list[int] = []
    predict_batch = Engine.predict

    def killed(self, batch):
        if len(predicted) >= 12:
            raise KeyboardInterrupt
        predicted.extend(batch.numbers)
        return predict_batch(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            run_infer(bundle, data, tmp_path / "out", batch_size=8)
    assert not (tmp_path / "out" / "submission.csv").exists()
    with (tmp_path / "out" / SHARDS / "done.jsonl").open("a") as lines:
        lines.write('[20, "')  # the kill came within a line
    again: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "predict", lambda self, batch: again.extend(batch.numbers) or predict_batch(self, batch))
        assert run_infer(bundle, data, tmp_path / "out", batch_size=8).read_text() == whole
    assert len(again) == 24 - len(predicted)


def test_when_time_is_over_the_rest_gets_the_fallback_with_a_loud_warning(tmp_path, data, bundle, capsys):
    whole = pd.read_csv(run_infer(bundle, data, tmp_path / "whole"), dtype=str, keep_default_na=False)
    path = run_infer(bundle, data, tmp_path / "out", batch_size=8, time_limit=1e-3)
    late = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert late["id"].tolist() == whole["id"].tolist()
    assert (late["labels"][:4] == whole["labels"][:4]).all() and late["labels"][4:].nunique() == 1
    bad = pd.read_csv(tmp_path / "out" / BAD)
    assert len(bad) == 20 and set(bad["problem"]) == {"no time was left"}
    assert "WARNING: 20 of 24 images" in capsys.readouterr().err


def test_short_of_time_views_go_first_then_models_and_the_rest_predicts(data, bundle, capsys):
    engine = Engine(bundle, read_bundle(bundle), "cpu", 32, "32")
    now = [0.0]
    pace = Pace(100, 100, clock=lambda: now[0])
    for seconds in (5, 20):  # 80 images are left, of 2 s each with eight passes
        now[0] += seconds
        pace.advance(10, engine.active.passes)
    assert keep_time(pace, engine.active) == ["b hflip", "a hflip", "b fold 1"]
    assert "short of time, dropped: b hflip, a hflip, b fold 1" in capsys.readouterr().out
    assert engine.active.views == [["identity"]] * 2 and engine.active.members == [(0, 0), (0, 1), (1, 0)]
    assert keep_time(pace, engine.active) == []
    table = read_table(data / "test.csv", "multilabel", data, Columns(), CLASSES, has_target=False)
    (batch,) = engine.batches(table, [0], 0)
    ((_, predicted),) = engine.predict(batch)
    assert predicted.values.shape == (3, len(CLASSES)) and predicted.present is None


def test_what_goes_is_in_a_fixed_order_and_one_model_stays(bundle):
    spec = read_bundle(bundle)
    models = [replace(model, snapshot=number) for model in spec.runs[0].models for number in range(3)]
    active = Active(replace(spec, runs=[replace(spec.runs[0], models=models), spec.runs[1]]))
    gone = []
    while name := active.drop():
        gone.append(name)
    assert gone == ["b hflip", "a hflip", "a snapshot 0", "a snapshot 1", "b fold 1", "a fold 1", "b fold 0"]
    assert active.members == [(0, 0)] and active.snapshots[0] == [2] and active.passes == 1


def test_forecasts_are_exact_where_a_pass_always_takes_as_long():
    now = [0.0]
    pace = Pace(1000, 100, clock=lambda: now[0])
    now[0] = 7.0  # starting takes its time
    pace.advance(50, passes=4)
    assert pace.forecast(4) is None and pace.seconds is None
    for _ in range(2):
        now[0] += 10
        pace.advance(50, passes=4)
    assert pace.forecast(4) == pytest.approx(27 + 850 * 0.2) and pace.seconds == pytest.approx(0.2)
    now[0] += 5
    pace.advance(100, passes=1)
    assert pace.forecast(1) == pytest.approx(32 + 750 * 0.05)
    assert not pace.is_over
    now[0] = 96.0
    assert pace.is_over


# the host


def test_versions_and_files_that_differ_are_named(tmp_path, bundle, capsys):
    other = shutil.copytree(bundle, tmp_path / "other")
    spec = json.loads((other / "bundle.json").read_text())
    here = spec["versions"]["numpy"]
    newer = str(int(here.split(".")[0]) + 1) + here[1:]

    def made_with(**versions):
        text = json.dumps({**spec, "versions": spec["versions"] | versions})
        (other / "bundle.json").write_text(text)
        manifest = json.loads((other / MANIFEST).read_text())
        manifest["files"]["bundle.json"]["bytes"] = len(text.encode())
        (other / MANIFEST).write_text(json.dumps(manifest))

    made_with(numpy=f"{here}.1")
    check_host(other, any_version=False)
    assert f"note: numpy is {here} here, but {here}.1" in capsys.readouterr().out
    made_with(numpy=newer)
    with pytest.raises(Refusal, match=f"numpy is {here} here, but {newer}"):
        check_host(other, any_version=False)
    check_host(other, any_version=True)
    made_with(no_such_module="1.0")
    with pytest.raises(Refusal, match="no_such_module cannot be imported here; bundle.py --wheels"):
        check_host(other, any_version=True)
    (other / "infer.py").unlink()
    with pytest.raises(Refusal, match=r"infer\.py is missing"):
        check_host(other, any_version=True)


def test_wheels_are_never_of_torch_or_cuda():
    required = required_packages(["timm", "torch"])
    assert {"timm", "safetensors", "huggingface-hub"} <= required
    assert not [name for name in required if re.match("torch|nvidia|triton|cuda", name)]


@pytest.fixture
def host(tmp_path) -> Path:
    """What pip freeze prints on a host with all that is here but torch and iniconfig, and with another OpenCV."""
    names = {each.name.lower() for each in importlib.metadata.distributions()} - {"torch", "iniconfig"}
    names = {name for name in names if "opencv" not in name} | {"opencv-contrib-python"}
    (tmp_path / "host.txt").write_text("".join(f"{name}==0\n" for name in names))
    return tmp_path / "host.txt"


def test_a_host_that_lacks_nothing_gets_no_wheels(tmp_path, host):
    with host.open("a") as lines:
        lines.write("iniconfig==2.0\n")
    download_wheels(["pytest", "torch", "cv2"], host, tmp_path / "wheels")
    write_notebook(tmp_path, "bundle")
    assert not (tmp_path / "wheels").exists() and "pip install" not in (tmp_path / "notebook.ipynb").read_text()


@pytest.mark.slow  # pip, and where uv made the environment it is fetched first
def test_what_the_host_lacks_is_downloaded_and_can_be_imported(tmp_path, host, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "0")
    wheels = tmp_path / "wheels"
    try:
        download_wheels(["pytest", "torch", "cv2"], host, wheels)
    except Refusal as error:
        if not re.search("(?i)connection|resolution|dns|timed out|no matching distribution", str(error)):
            raise
        pytest.skip(f"no package index can be reached: {error}")
    (wheel,) = wheels.iterdir()
    assert wheel.name == f"iniconfig-{importlib.metadata.version('iniconfig')}-py3-none-any.whl"
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import iniconfig; print(iniconfig.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(str(wheel))


def test_a_sandbox_has_no_network(tmp_path):
    inside, work = tmp_path / "in", tmp_path / "work"
    inside.mkdir()
    work.mkdir()
    script = (
        "import pathlib, socket\n"
        "try: socket.create_connection(('127.0.0.1', 9), timeout=5)\n"
        "except OSError as error: print(error)\n"
        f"pathlib.Path({str(work / 'out')!r}).write_text('x')\n"
    )
    done = run_sandboxed([sys.executable, "-c", script], inside, work)
    assert done.returncode == 0, done.stderr
    assert (work / "out").read_text() == "x" and "the rehearsal has no network" in done.stdout


def test_the_help_needs_no_torch():
    code = "import sys, bundle\ntry: bundle.parse(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and "--rehearse" in done.stdout
