"""Overlapping masks the whole way, from the table to a rehearsed bundle, and soft masks to a submission."""

import io
import re
import shutil
import zipfile

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from layers import SIZE, config_of, world
from rich.console import Console
from stopping import Stop, watched
from tiny import prepare_tiny, train_folds, train_here, train_scored

from foldwise.bundle.build import build_bundle
from foldwise.bundle.inferring import infer
from foldwise.bundle.rehearse import rehearse
from foldwise.code.source import read_code, trust
from foldwise.data.batches import unpack
from foldwise.data.holdout import Holdout
from foldwise.errors import Refusal
from foldwise.inference.predicting import Choices, predict_runs
from foldwise.labelling.lists import list_uncertain
from foldwise.predictions.decisions.submit import make_submission
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.evaluation.evaluate import evaluate
from foldwise.predictions.pseudo.labelling import pseudo_label
from foldwise.predictions.pseudo.rules import Confident
from foldwise.predictions.pseudo.teachers import check_probabilities
from foldwise.predictions.store import iter_average_maps, iter_maps, read_predictions
from foldwise.processes.group import Rank
from foldwise.reporting.evaluation_report import write_evaluation
from foldwise.reporting.pictures import draw_samples
from foldwise.settings import find_choice
from foldwise.training.loaders import training_loader, with_pseudo

QUIET = Console(quiet=True)
CHOICES = ["data.mask_values={0:0,255:1,7:1}", "epochs=14", "optimizer.lr=0.01", "augmentation=light", "tta=flips"]


def predict(run, tta="flips", **choices):
    values = {"tta": find_choice("tta", tta), "workers": 0, "device": "cpu"} | choices
    predict_runs([run], Choices(**values), None, None, QUIET)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    world(root, 24)
    return root


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Two runs with predictions of the test images."""
    made = []
    for seed in (1, 2):
        config = config_of(data, *CHOICES, f"seed={seed}")
        made.append(train_here(config, tmp_path_factory.mktemp(f"runs{seed}")))
        predict(made[-1])
    return made


def contents(run):
    files = [*run.glob("fold*/model*/*.safetensors"), *run.glob("oof/*"), *run.glob("oof/maps/*")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files if path.is_file()}


def test_a_resumed_run_ends_as_one_never_stopped(data, runs, tmp_path):
    config = config_of(data, *CHOICES, "seed=1")
    with watched(Stop(5, 1)), pytest.raises(OSError, match="killed"):
        train_here(config, tmp_path)
    assert contents(train_scored(config, tmp_path)) == contents(runs[0])


def test_it_is_learnt_scored_and_reported(data, runs, tmp_path):
    oof = read_predictions(runs[0] / "oof")
    assert (oof.header.task, oof.header.tta["views"]) == ("segmentation_overlapping", ["identity", "hflip"])
    evaluation = evaluate(runs, resamples=20, by=[])
    assert [type(metric).__name__ for metric in evaluation.metrics] == ["Dice", "MeanIoU"]
    assert evaluation.scores["score"].min() > 0.6
    classes = evaluation.evidence[0].classes
    assert classes.confusion is None and classes.counts[:, 2].tolist() == [
        sum(mask[c].sum() for mask in map(evaluation.truth.table.read_mask, range(24))) for c in (0, 1)
    ]
    write_evaluation(tmp_path / "page.html", evaluation)
    assert "every pixel and class" in (tmp_path / "page.html").read_text()
    assert "Dice per class" in (runs[0] / "report.html").read_text()
    config = config_of(data, *CHOICES)
    assert cv2.imread(str(draw_samples(config["data"], prepare_tiny(config)))).size


def test_scales_tiles_and_overlays(data, runs, tmp_path):
    predict(runs[0], "scales", oof=True)
    predict(runs[0], "none", oof=True, tiles=True, overlays=1)
    for name in ("oof-scales", "oof-none-tiles"):
        found = evaluate([runs[0]], oof=name, resamples=20, by=[]).scores["score"]
        assert found.min() > 0.4, name
    assert list((runs[0] / "predictions").glob("oof-none-tiles/overlays/*.png"))


def test_run_length_codes_are_predicted_again_out_of_fold(data, tmp_path):
    config = config_of(data, "data.mask_encoding=rle", "epochs=1", target="[code_a,code_b]")
    run = train_folds(config, tmp_path)
    predict(run, "none", oof=True)
    assert read_predictions(run / "predictions" / "oof-none").frame["id"].nunique() == 24


def test_training_in_tiles(data, tmp_path):
    config = config_of(data, *CHOICES[:-1], "data.fit=tiles", "data.image_size=16", "fold=0", "tta=none")
    run = train_folds(config, tmp_path)
    history = pd.read_csv(run / "fold0" / "history.csv")
    assert np.isfinite(history.select_dtypes("number")).all().all()


def test_an_ensemble_is_better_or_says_so(runs, tmp_path):
    comparison, folders = ensemble(runs, tmp_path / "both", methods=["all"], strict=False)
    assert comparison.names == ["single", "mean", "geometric", "simplex"]
    maps = [
        dict(iter_average_maps(read_predictions(folder))) for folder in (*(run / "oof" for run in runs), folders[0])
    ]
    if comparison.names[comparison.chosen] == "mean":
        for id, values in maps[2].items():
            np.testing.assert_allclose(values, (maps[0][id] + maps[1][id]) / 2, atol=1 / 255)


def test_a_submission_has_codes_of_each_class(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make_submission(runs[0], decision="class-thresholds+minimum-area")
    frame = pd.read_csv(made.path, dtype=str, keep_default_na=False)
    assert frame["id"].tolist()[:3] == ["r0_a", "r0_b", "r1_a"] and len(frame) == 48
    maps = dict(iter_average_maps(read_predictions(runs[0] / "predictions" / "test-flips")))
    for name, code in frame.itertuples(index=False):
        id, _, label = name.partition("_")
        numbers = [int(number) for number in code.split()]
        decoded = np.zeros(SIZE[0] * SIZE[1], bool)
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            decoded[start - 1 : start - 1 + length] = True
        answer = made.chosen.decision(maps[id])["ab".index(label)]
        np.testing.assert_array_equal(decoded.reshape(SIZE[::-1]).T, answer)
    zipped = make_submission(runs[0], kind="masks", decision="fixed-threshold")
    with zipfile.ZipFile(zipped.path) as archive:
        first = tifffile.imread(io.BytesIO(archive.read("r0.tif")))
    np.testing.assert_array_equal(first, (maps["r0"] >= 0.5) * 255)


def test_a_bundle_answers_as_the_runs_do_and_survives_bad_images(data, runs, tmp_path):
    build_bundle(runs[:1], tmp_path / "bundle", oof="oof", decision="class-thresholds+minimum-area")
    rehearsed = rehearse(tmp_path / "bundle", data / "test.csv", rows=24, workers=0)
    assert rehearsed.problems == [] and rehearsed.comparison.answers < 0.01 and len(rehearsed.bad) == rehearsed.planted
    for folder in (tmp_path / "bundle" / "code").iterdir():
        trust(read_code(folder).digest)
    test = tmp_path / "test"
    (test / "images").mkdir(parents=True)
    (test / "images" / "bad.png").write_bytes(b"no image")
    (test / "images" / "good.png").write_bytes((data / "images" / "1.png").read_bytes())
    path = infer(tmp_path / "bundle", out=tmp_path / "out", test=test / "images", workers=0, device="cpu")
    codes = pd.read_csv(path, keep_default_na=False).set_index("id").iloc[:, 0]
    assert codes["bad_a"] == codes["bad_b"] == "" and codes["good_a"]


def test_pseudo_labels_are_trained(data, runs):
    students = pseudo_label(runs[:1], data / "pseudo.csv", Confident(0.9))
    assert all(student.rows for student in students)
    table = pd.read_csv(data / "pseudo.csv", keep_default_na=False)
    fold, id = int(table["student"][0]), table["id"][0]
    maps = {row.id: row.probability for row in iter_fold(runs[0], fold)}
    expected = np.select([maps[id] >= 0.9, 1 - maps[id] >= 0.9], [1, 0], 255)
    np.testing.assert_array_equal(tifffile.imread(data / table["mask"][0]), expected)
    config = config_of(data, *CHOICES, "augmentation=none")
    config["data"]["pseudo"] = str(data / "pseudo.csv")
    prepared = prepare_tiny(config)
    joined, rows = with_pseudo(prepared, Holdout((fold,)))
    loader, _ = training_loader(config, joined, {}, np.flatnonzero(prepared.fold_of_items != fold), rows, Rank())
    assert set(np.unique(unpack(next(iter(loader)))["target"])) == {0, 1, 255}
    np.testing.assert_array_equal(joined.table.read_mask(len(prepared.table)), expected)
    new = pd.read_csv(data / "test.csv").head(6)
    for path in new["image"]:
        shutil.copyfile(data / path, data / f"{path}.new.png")
    new.assign(id="new" + new["id"], image=new["image"] + ".new.png").to_csv(data / "new.csv", index=False)
    choices = Choices(tta=find_choice("tta", "none"), workers=0, device="cpu")
    predict_runs(runs[:1], choices, data / "new.csv", runs[0] / "predictions" / "test-new", QUIET)
    assert len(list_uncertain(runs[:1], data / "uncertain.csv", 5, test="test-new", table=data / "new.csv")) == 5


def iter_fold(run, fold):
    return [row for row in iter_maps(read_predictions(run / "predictions" / "test-flips")) if row.fold == fold]


def test_soft_masks_to_a_submission(data, tmp_path, monkeypatch):
    choices = ["data.classes=[ink]", "epochs=14", "optimizer.lr=0.01", "metric=pixel_mae"]
    losses = ["loss=bce", "loss=brier", "loss=bce_dice"]
    scores = {}
    for loss in losses:
        run = train_here(config_of(data, *choices, loss, masks="soft", target="soft"), tmp_path / loss)
        evaluation = evaluate([run], resamples=20, by=[])
        scores[loss] = dict(zip(evaluation.scores["metric"], evaluation.scores["score"], strict=True))
    constant = np.mean([np.abs(m - 0.25).mean() for m in map(evaluation.truth.table.read_mask, range(24))])
    assert max(each["PixelMae"] for each in scores.values()) < constant, scores
    assert all(each["Dice"] > 0.6 for each in scores.values()), scores
    assert read_predictions(run / "oof").header.task == "segmentation_soft"
    page = (run / "report.html").read_text()
    assert "PixelMae per class" in page and "absolute error" in page and "Dice" not in page
    predict(run, "none")
    monkeypatch.chdir(tmp_path)
    made = make_submission(run)
    assert made.path.suffix == ".zip" and str(made.chosen.decision) == "probabilities"
    maps = dict(iter_average_maps(read_predictions(run / "predictions" / "test-none")))
    with zipfile.ZipFile(made.path) as archive:
        assert sorted(archive.namelist()) == sorted(f"{id}.png" for id in maps)
        written = cv2.imdecode(np.frombuffer(archive.read("r3.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(written, maps["r3"][0] * 255, atol=0.51)
    with pytest.raises(Refusal, match=re.escape("--format rle: PixelMae scores numbers")):
        make_submission(run, kind="rle")
    check_probabilities(evaluation.truth)
    with pytest.raises(Refusal, match="soft masks are numbers: there is no rule for them yet"):
        pseudo_label([run], data / "soft.csv", Confident(0.9))
