"""Pictures cut by columns of boxes."""

import cv2
import numpy as np
import pandas as pd
import pytest
from tiny import make_spec, prepare_tiny, random_model, tiny_config, write_data

from foldwise.audit.descriptors import PixelDescriber
from foldwise.audit.image_notes import audit_images
from foldwise.data.boxes import Crop
from foldwise.data.images import ImageError, read_image
from foldwise.data.problems import TableError
from foldwise.data.samples import Rows, Samples, TableItems
from foldwise.data.table import Columns, read_table
from foldwise.data.units import Units
from foldwise.errors import Refusal
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA
from foldwise.reporting.pictures import FRAME_COLOR, draw_samples

BOX = ["x0", "y0", "x1", "y1"]


def write_boxes(root, *boxes, **columns):
    """A picture of 30 x 20 whose pixels say where they are, and a table with a row a box."""
    y, x = np.mgrid[:20, :30]
    cv2.imwrite(str(root / "a.png"), np.stack([0 * x, y, x], axis=2).astype(np.uint8))  # OpenCV writes BGR
    frame = pd.DataFrame(boxes, columns=BOX).assign(image="a.png", label="thing", **columns)
    frame.assign(id=[f"r{row}" for row in range(len(frame))]).to_csv(root / "train.csv", index=False)


def rows_of(root, samples, targets=True):
    table = read_table(root / "train.csv", "multiclass", root, Columns(), ["other", "thing"], has_target=targets)
    return TableItems.of(table, samples, targets)


def cut(items, row=0, rng=None):
    """Left, top, right and bottom pixel of what is read."""
    image = items.samples.read(items.rows, items.items[row], {}, rng)["image"]
    return [int(image[0, 0, 0]), int(image[0, 0, 1]), int(image[0, -1, 0]) + 1, int(image[-1, 0, 1]) + 1]


@pytest.mark.parametrize(
    ("box", "settings", "expected"),
    [
        ((10, 5, 20, 15), {}, [10, 5, 20, 15]),
        ((10.4, 5.6, 19.2, 14.1), {}, [10, 5, 20, 15]),
        ((10, 5, 20, 10), {"margin": 0.2}, [8, 4, 22, 11]),
        ((-9, -9, 99, 99), {}, [0, 0, 30, 20]),
        ((10, 8, 20, 10), {"square": True}, [10, 4, 20, 14]),
        ((10, 0, 20, 2), {"square": True}, [10, 0, 20, 10]),  # moved inside
        ((25, 4, 30, 14), {"square": True}, [20, 4, 30, 14]),
        ((0, 5, 29, 9), {"square": True}, [0, 0, 29, 20]),  # higher than the picture
        ((29.5, 19.5, 29.7, 19.6), {}, [29, 19, 30, 20]),
        ((0.5, 0.25, 1.0, 0.75), {"shares": True}, [15, 5, 30, 15]),
        ((None,) * 4, {"margin": 0.2, "square": True}, [0, 0, 30, 20]),
    ],
)
def test_boxes_are_cut(tmp_path, box, settings, expected):
    write_boxes(tmp_path, box)
    for samples in (Samples(crop={"box": BOX} | settings), Units(crop={"box": BOX} | settings)):
        assert cut(rows_of(tmp_path, samples)) == expected
    for row, rng in enumerate((None, np.random.default_rng(0))):
        assert cut(rows_of(tmp_path, samples), 0, rng) == expected, f"no jitter, {row}"


def test_jitter_moves_each_edge_in_training_alone(tmp_path):
    write_boxes(tmp_path, (5, 6, 25, 11))
    items = rows_of(tmp_path, Samples(crop={"box": BOX, "jitter": 0.2}))
    assert cut(items) == [5, 6, 25, 11]
    drawn = np.array([cut(items, 0, np.random.default_rng(seed)) for seed in range(200)])
    assert (abs(drawn - [5, 6, 25, 11]) <= [4, 1, 4, 1]).all()
    assert (np.ptp(drawn, axis=0) >= [7, 1, 7, 1]).all()
    assert cut(items, 0, np.random.default_rng(7)) == cut(items, 0, np.random.default_rng(7))


def test_mix_draws_the_boxes_that_are_there(tmp_path):
    other = {"a0": [0, None], "b0": [0, None], "a1": [5, None], "b1": [5, None]}
    write_boxes(tmp_path, (10, 5, 20, 15), (10, 5, 20, 15), **other)
    crop = {
        "box": {"first": BOX, "second": ["a0", "b0", "a1", "b1"]},
        "mix": {"first": 0.5, "second": 0.3, "whole": 0.2},
    }
    items = rows_of(tmp_path, Samples(crop=crop))
    names = {(10, 5, 20, 15): "first", (0, 0, 5, 5): "second", (0, 0, 30, 20): "whole"}
    for row, chances in enumerate([{"first": 0.5, "second": 0.3, "whole": 0.2}, {"first": 5 / 7, "whole": 2 / 7}]):
        drawn = [names[tuple(cut(items, row, np.random.default_rng(seed)))] for seed in range(1500)]
        shares = {name: drawn.count(name) / len(drawn) for name in names.values()}
        assert shares == pytest.approx({name: chances.get(name, 0) for name in names.values()}, abs=0.04)
        assert cut(items, row) == [10, 5, 20, 15]


def test_wrong_boxes_are_named_together(tmp_path):
    write_boxes(tmp_path, (10, 5, 20, 15), (10, 5, None, 15), (20, 5, 10, 15), (3, 5, 10, 5))
    with pytest.raises(TableError) as error:
        rows_of(tmp_path, Samples(crop={"box": BOX}))
    assert "some of its four edges: ids r1" in str(error.value)
    assert "no area (left, top, right, bottom): ids r2, r3" in str(error.value)
    write_boxes(tmp_path, (10, 5, 20, 15))
    with pytest.raises(TableError, match="shares: false"):
        rows_of(tmp_path, Samples(crop={"box": BOX, "shares": True}))
    write_boxes(tmp_path, (0.1, 0.2, 0.3, 0.4))
    with pytest.raises(TableError, match="shares: true"):
        rows_of(tmp_path, Samples(crop={"box": BOX}))
    write_boxes(tmp_path, (30, 5, 40, 15))
    items = rows_of(tmp_path, Samples(crop={"box": BOX}), targets=False)
    with pytest.raises(ImageError, match="the box 30, 5, 40, 15 lies outside of the picture of 30 x 20"):
        cut(items)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (3, "samples.crop is 3; it takes box"),
        ({"margin": 0.1}, "has no box"),
        ({"box": 3}, "name four columns"),
        ({"box": BOX, "square": "no"}, "square is 'no'; it must be true or false"),
        ({"box": BOX, "mix": 3}, "chances for box, whole"),
        ({"box": BOX, "jiter": 0.1}, "has jiter; it takes box, shares"),
        ({"box": BOX[:3]}, "name four columns"),
        ({"box": BOX, "margin": 2}, "margin is 2"),
        ({"box": BOX, "mix": {"body": 1.0}}, "chances for box, whole"),
        ({"box": BOX, "mix": {"whole": 0}}, "above 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(Refusal, match=message):
        Crop.of(settings)


def test_missing_columns_are_named_in_a_test_table_too(tmp_path):
    write_boxes(tmp_path, (10, 5, 20, 15))
    pd.read_csv(tmp_path / "train.csv").drop(columns=["x1", "label"]).to_csv(tmp_path / "test.csv", index=False)
    table = read_table(tmp_path / "test.csv", "multiclass", tmp_path, Columns(), ["other", "thing"], has_target=False)
    with pytest.raises(TableError, match="no column 'x1'"):
        Rows(table, Samples(crop={"box": BOX}))


@pytest.fixture
def world(tmp_path):
    """Rows of `write_data`, each cut around its coloured square, and once more whole."""
    root = write_data(tmp_path / "world")
    frame = pd.read_csv(root / "train.csv")
    for row, path in enumerate(frame["mask"]):
        y, x = np.nonzero(cv2.imread(str(root / path), cv2.IMREAD_UNCHANGED))
        frame.loc[row, BOX] = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    again = frame.assign(id=frame["id"] + "b", x0=0, y0=0, x1=32, y1=32)
    pd.concat([frame, again]).to_csv(root / "train.csv", index=False)
    return root


def test_pictures_with_several_boxes_stay_in_one_fold(world):
    crop = "+samples.crop={box: [x0, y0, x1, y1]}"
    with pytest.raises(Refusal, match=r"24 pictures have several boxes.*data\.columns\.group"):
        prepare_tiny(tiny_config(world, "multiclass", crop))
    config = tiny_config(world, "multiclass", crop, "data.columns.group=image")
    prepared = prepare_tiny(config)
    folds = pd.Series(prepared.folds)
    pictures = prepared.table.frame.set_index("id")["image"]
    assert (folds.groupby(pictures).nunique() == 1).all()
    # measured are the crops, each by itself
    assert len(prepared.scan) == 48
    assert set(prepared.scan["height"][:24]) == {14}
    assert set(prepared.scan["height"][24:]) == {32}
    stored = [read_image(world / path) for path in prepared.table.frame["image"][:24]]
    boxes = pd.read_csv(world / "train.csv")[BOX].to_numpy(int)[:24]
    crops = [image[y0:y1, x0:x1].reshape(-1, 3) for image, (x0, y0, x1, y1) in zip(stored, boxes, strict=True)]
    crops += [image.reshape(-1, 3) for image in stored]
    np.testing.assert_allclose(prepared.image["mean"], np.concatenate(crops).mean(axis=0) / 255, atol=1e-4)
    notes = audit_images(config["data"], prepared, None, PixelDescriber(), progress=False)
    assert not any("duplicates" in note for note in notes)
    picture = cv2.imread(str(draw_samples(config["data"], prepared)))[:, :, ::-1]
    assert (picture == FRAME_COLOR).all(axis=2).sum() > 1000


def test_masks_are_not_cut(world):
    with pytest.raises(Refusal, match="not their masks"):
        prepare_tiny(tiny_config(world, "segmentation", "+samples.crop={box: [x0, y0, x1, y1]}"))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_margin_is_predicted_as_by_a_model_with_that_margin(tmp_path, bits):
    """At the border, without a box, several boxes of a picture; two models, one of several pictures."""
    image = np.random.default_rng(0).integers(0, 1 << bits, (20, 30, 3), f"uint{bits}")
    cv2.imwrite(str(tmp_path / "a.png"), image)
    frame = pd.DataFrame([(10, 5, 20, 15), (0, 0, 9, 7), (25, 19, 30, 20), (None,) * 4], columns=BOX)
    frame = frame.assign(id=[*"abcd"], image="a.png", label="thing")
    frame.to_csv(tmp_path / "train.csv", index=False)
    table = read_table(tmp_path / "train.csv", "multiclass", tmp_path, Columns(), ["other", "thing"])

    def models(margin):
        crop = {"box": BOX, "margin": margin, "square": True}
        reader = {"mode": "stored", "crop": crop}
        specs = [{"samples": {"_target_": "foldwise.data.samples:Samples", **reader}}]
        network = {"_target_": "foldwise.models.pooled:PooledNetwork", "name": "test_resnet", "pool": "mean"}
        network |= {"channels": {"image": 3}, "outputs": {"logits": 2}}
        specs += [{"samples": {"_target_": "foldwise.data.units:Units", "unit": "image", **reader}, "network": network}]
        scaled = {"images": {"image": {"scale": float((1 << bits) - 1), "mean": [0.5] * 3, "std": [0.3] * 3}}}
        return [random_model(make_spec("multiclass", ["other", "thing"], **spec, **scaled), 1) for spec in specs]

    def predict(number, margin, tta, **choices):
        predictor = Predictor([models(margin)[number]], tta, workers=0, **choices)
        return np.stack([values[""][0] for _, values in predictor.predict(table)])

    tta = TTA.choose(["identity", "hflip"], margins=[0, 0.3])
    for number, items in enumerate((4, 1)):
        expected = [predict(number, margin, TTA.choose(["identity", "hflip"]), keep_views=True) for margin in (0, 0.3)]
        views = predict(number, 0.1, tta, keep_views=True)
        assert views.shape == (items, 4, 2)
        np.testing.assert_allclose(views, np.concatenate(expected, axis=1), atol=1e-6)
        np.testing.assert_allclose(predict(number, 0.1, tta)[:, 0], views.mean(axis=1), atol=1e-6)
        assert np.abs(views[:, 0] - views[:, 2]).max() > 1e-3
