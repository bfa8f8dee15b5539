"""Boxes found in predicted masks."""

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from pseudo_world import LABELLED, UNLABELLED, begin_run, write_world
from rich.console import Console
from scipy import ndimage
from tiny import CLASSES, prepare_tiny, tiny_config, train_folds

from foldwise.config import read_config
from foldwise.data.boxes import BOX
from foldwise.data.images import ImageError, read_image, to_unit
from foldwise.data.samples import TableItems
from foldwise.errors import Refusal
from foldwise.inference.predicting import Choices, predict_runs
from foldwise.inference.weights import load_model
from foldwise.predictions.finder import Finder, write_map
from foldwise.predictions.found_boxes import write_boxes, write_data_config
from foldwise.predictions.schema import Header
from foldwise.predictions.store import read_predictions
from foldwise.predictions.writers import PredictionWriter
from foldwise.settings import find_choice

NAMES = ["background", *CLASSES]
EMPTY = 3  # a training picture in which nothing is predicted


@pytest.mark.parametrize("how", ["union", "components", "peak"])
@pytest.mark.parametrize("shape", [(17, 23), (5, 40), (1, 1)])
def test_boxes_are_those_of_another_library_and_of_trying_all_places(how, shape):
    rng = np.random.default_rng(sum(shape))
    score = ndimage.gaussian_filter(rng.random(shape), 1).astype(np.float32)
    score = (score - score.min()) / max(float(np.ptp(score)), 1e-6)
    found = Finder(how, ("thing",), 0.6 if how != "peak" else 0.1, 3 if min(shape) > 1 else 1, 4).find(score)
    if how == "peak":
        height, width = min(4, shape[0]), min(4, shape[1])
        places = np.ndindex(shape[0] - height + 1, shape[1] - width + 1)
        means = {(y, x): score[y : y + height, x : x + width].mean() for y, x in places}
        top, left = max(means, key=means.get)
        assert [each.box for each in found] == ([(left, top, left + width, top + height)] if shape != (1, 1) else [])
        return
    labels, _ = ndimage.label(score >= 0.6, structure=np.ones((3, 3)))
    parts = [(y, x) for number, (y, x) in enumerate(ndimage.find_objects(labels), 1) if (labels == number).sum() >= 3]
    boxes = {(x.start, y.start, x.stop, y.stop) for y, x in parts}
    if how == "union" and boxes:
        left, top, right, bottom = zip(*boxes, strict=True)
        boxes = {(min(left), min(top), max(right), max(bottom))}
    assert {each.box for each in found} == boxes
    sizes = [each.mask.sum() for each in found]
    assert sizes == sorted(sizes, reverse=True)
    assert all(each.score == pytest.approx(score[each.mask].mean()) for each in found)


@pytest.fixture
def world(tmp_path):
    """A run whose maps are the true masks with a stripe cut out; nothing in one picture, the wrong class in another."""
    root = write_world(tmp_path / "world")
    run, values = begin_run(root, "run", "segmentation", ())
    for split, rows in (("oof", LABELLED), ("predictions/test-none", UNLABELLED)):
        header = Header(split="oof" if split == "oof" else "test", **values)
        with PredictionWriter(run / split, header) as writer:
            for row in rows:
                mask = cv2.imread(str(root / f"masks/{row}.png"), cv2.IMREAD_UNCHANGED)
                if row == 4:
                    mask[mask > 0] = mask[mask > 0] % 3 + 1
                middle = int(np.flatnonzero(mask.any(axis=0)).mean())
                mask[:, middle : middle + 2] = 0
                mask[:] = 0 if row == EMPTY else mask
                maps = np.eye(4)[mask].transpose(2, 0, 1)
                for fold in [row % 2] if split == "oof" else [0, 1]:
                    writer.add(f"row{row}", fold, "last", "identity", maps)
    return root, run


def true_box(root, row):
    y, x = np.nonzero(cv2.imread(str(root / f"masks/{row}.png"), cv2.IMREAD_UNCHANGED))
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_one_box_a_picture_beside_its_columns(world):
    root, run = world
    train, test = write_boxes(run, root / "boxes.csv", Finder("union", tuple(CLASSES)))
    frame, before = pd.read_csv(root / "boxes.csv"), pd.read_csv(root / "train.csv")
    pd.testing.assert_frame_equal(frame[before.columns], before)
    assert train.without == [f"row{EMPTY}"] and train.rows == 16 and not test.without
    assert frame[list(BOX)].iloc[EMPTY].isna().all()
    for row in set(LABELLED) - {EMPTY}:
        assert frame[list(BOX)].iloc[row].tolist() == true_box(root, row)
    assert frame["fold"].tolist() == [row % 2 for row in LABELLED]
    frame = pd.read_csv(root / "boxes_test.csv")
    assert frame[list(BOX)].to_numpy().tolist() == [true_box(root, row) for row in UNLABELLED]
    assert "fold" not in frame
    with pytest.raises(Refusal, match="exist"):
        write_boxes(run, root / "boxes.csv", Finder("union", tuple(CLASSES)))


def test_a_row_per_component_has_its_true_class(world):
    root, run = world
    write_boxes(run, root / "parts.csv", Finder("components", tuple(CLASSES)))
    frame = pd.read_csv(root / "parts.csv")
    assert set(frame["picture"]) == {f"row{row}" for row in LABELLED} - {f"row{EMPTY}"}
    assert (frame.groupby("picture").size() == 2).all() and frame["id"].is_unique
    numbers = frame["picture"].str.removeprefix("row").astype(int)
    assert frame["label"].tolist() == [CLASSES[number % 3] for number in numbers]
    assert (frame["predicted"] == frame["label"]).tolist() == (numbers != 4).tolist()
    assert (frame["fold"] == numbers % 2).all()
    assert frame["area"].tolist() == ((frame["x1"] - frame["x0"]) * (frame["y1"] - frame["y0"])).tolist()


def test_found_boxes_train_in_their_own_folds_alone(world, tmp_path):
    root, run = world
    boxes = write_boxes(run, root / "parts.csv", Finder("components", tuple(CLASSES)))
    path = write_data_config(read_config(run)["data"], tmp_path, boxes, components=True)
    settings = yaml.safe_load(path.read_text())
    assert settings.pop("defaults") == ["competition", "_self_"]
    crop = "+samples.crop={box: [x0, y0, x1, y1]}"
    config = tiny_config(root, "multiclass", crop)
    config["data"] |= {name: value for name, value in settings.items() if name != "columns"}
    config["data"]["columns"] |= settings["columns"]
    prepared = prepare_tiny(config)
    assert list(prepared.table.classes) == CLASSES
    frame = prepared.table.frame
    assert (frame["fold"] == frame["picture"].str.removeprefix("row").astype(int) % 2).all()
    config["data"]["columns"]["fold"] = None
    with pytest.raises(Refusal, match=r"would leak labels: set data\.columns\.fold=fold"):
        prepare_tiny(config)


def test_a_test_picture_without_components_is_read_whole(world):
    root, run = world
    parts = write_boxes(run, root / "parts.csv", Finder("components", ("blue",)))
    frame = pd.read_csv(root / "parts_test.csv")
    assert set(frame["picture"]) == {f"row{row}" for row in UNLABELLED}
    empty = frame[frame["x0"].isna()]
    assert empty["picture"].tolist() == parts[1].without and len(empty)
    assert pd.read_csv(root / "parts.csv")["x0"].notna().all()


@pytest.mark.parametrize("how", ["union", "components"])
def test_maps_are_channels_of_their_pictures(world, how):
    root, run = world
    boxes = write_boxes(run, root / "things.csv", Finder(how, ("blue", "red"), map=True))
    target = "label" if how == "union" else "predicted"
    overrides = ["data.columns.fold=fold", f"data.columns.target={target}", "+samples.channels=[score_map]"]
    overrides += ["data.columns.group=picture"] if how == "components" else []
    overrides += [f"data.table={root}/things.csv", f"data.test_table={root}/things_test.csv", "data.classes=null"]
    cropped = tiny_config(root, "multiclass", *overrides, "+samples.crop={box: [x0, y0, x1, y1]}")
    config = tiny_config(root, "multiclass", *overrides)
    prepared = prepare_tiny(config)
    items = TableItems.of(prepared.source, prepared.samples)
    frame = prepared.source.frame
    for row, item in enumerate(items.items):
        image = items.samples.read(items.rows, item, {}, None)["image"]
        number = int((frame["picture"] if how == "components" else frame["id"])[row].removeprefix("row"))
        mask = cv2.imread(str(root / f"masks/{number}.png"), cv2.IMREAD_UNCHANGED)
        assert image.shape == (*mask.shape, 4) and image.dtype == np.uint8
        if number not in (4, EMPTY):  # there the run predicts others
            expected = np.isin(mask, [1, 3])
            middle = int(np.flatnonzero(mask.any(axis=0)).mean())
            expected[:, middle : middle + 2] = False
            assert np.array_equal(image[:, :, 3], 255 * expected)
    trained = train_folds(cropped, root / "runs")
    model = load_model(trained / "fold0" / "model")
    assert model.spec.network["channels"] == {"image": 4} and len(model.spec.images["image"]["mean"]) == 4
    tta = find_choice("tta", "none")
    (folder,) = predict_runs([trained], Choices(tta=tta, workers=0, device="cpu"), console=Console(quiet=True))
    assert len(read_predictions(folder).frame) == 2 * boxes[1].rows

    # The identity depends on the pixels of the maps, and other folds are refused without a crop too.
    (name,) = set(frame["score_map"][:1])
    cv2.imwrite(str(root / name), np.zeros((3, 3), np.uint8))
    with pytest.raises(ImageError, match=r"has 3 x 3 pixels of uint8, and its picture \d+ x \d+ pixels of uint8"):
        items.samples.read(items.rows, items.items[0], {}, None)
    config["data"]["columns"]["fold"] = None
    with pytest.raises(Refusal, match=r"would leak labels: set data\.columns\.fold=fold"):
        prepare_tiny(config)


def test_maps_have_the_bits_of_their_pictures(tmp_path):
    score = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 12)  # one pixel high
    names = [write_map(tmp_path, number, score, scale) for number, scale in enumerate((255, 4095, 65535))]
    assert write_map(tmp_path, 0, score[:, ::-1], 255) != names[0]
    for name, scale in zip(names, (255, 4095, 65535), strict=True):
        stored = read_image(tmp_path / name)
        assert stored.dtype == (np.uint8 if scale == 255 else np.uint16)
        np.testing.assert_allclose(
            to_unit(stored, scale)[:, :, 0] / (255 if scale == 255 else 1), score, atol=0.51 / scale
        )


def test_what_no_box_can_be_found_in_is_refused(world, command):
    root, run = world
    for how, option in (("peak", "--least"), ("union", "--side")):
        code, _, error = command("tools/crop.py", run, "--classes", "a", "--out", "b.csv", "--how", how, option, "9")
        assert code == 2 and f"{option} has no meaning with --how {how}" in error
    code, _, error = command("tools/crop.py", run, "--classes", "blue", "--out", root / "sample.csv")
    assert code == 2 and "there is a data=sample already" in error and not list(root.glob("sample*"))
    with pytest.raises(Refusal, match="--classes has car; the classes are background, blue"):
        write_boxes(run, root / "boxes.csv", Finder("union", ("car",)))
    with pytest.raises(Refusal, match="nothing was found in 16 images"):
        write_boxes(run, root / "boxes.csv", Finder("components", tuple(CLASSES), least=2000))
    for threshold in (1.5, float("nan")):
        with pytest.raises(Refusal, match=f"--threshold {threshold} is no probability"):
            write_boxes(run, root / "boxes.csv", Finder("union", ("blue",), threshold))
    with pytest.raises(Refusal, match="--classes has a class twice"):
        write_boxes(run, root / "boxes.csv", Finder("union", ("blue", "blue")))
    (run / "ensemble.json").write_text("{}")
    with pytest.raises(Refusal, match="is an ensemble"):
        write_boxes(run, root / "boxes.csv", Finder("union", tuple(CLASSES)))
    assert not list(root.glob("boxes*"))
