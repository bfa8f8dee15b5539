"""Masks per class, which may overlap, and soft masks: stored, read, augmented, cropped, trained and scored."""

import io
import re

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from albumentations import Affine, HorizontalFlip, RandomResizedCrop
from layers import SIZE, config_of, world
from sklearn.metrics import f1_score
from tiny import prepare_tiny, tiny_config

from foldwise.checks import check_config, check_data
from foldwise.data.augmentation import Augmentation
from foldwise.data.class_masks import ClassMasks, SoftMasks
from foldwise.data.crops import crop_sample
from foldwise.data.fields import Field
from foldwise.data.problems import TableError
from foldwise.data.reading import fit_sample
from foldwise.data.run_lengths import decode_runs, encode_runs
from foldwise.errors import Refusal
from foldwise.models.losses import BinaryCrossEntropy, Brier, CrossEntropy, Dice, Focal
from foldwise.models.mixing import Mix
from foldwise.predictions.decisions.formats import Masks, RunLengths
from foldwise.predictions.decisions.layers import CUTS, ClassCuts, choose_cuts
from foldwise.predictions.metrics import Dice as DiceMetric
from foldwise.predictions.metrics import MeanIoU, PixelMae, PixelRmse
from foldwise.tasks import find_task

FIELDS = {"image": Field("image"), "one": Field("mask"), "target": Field("masks", train_only=True)}


def layers_of(numbers, classes=3, ignored=255):
    """Masks per class (H, W, C) of class numbers."""
    layers = (numbers[:, :, None] == np.arange(classes)).astype(np.uint8)
    layers[numbers == ignored] = ignored
    return layers


@pytest.mark.parametrize(
    ("target", "choices"),
    [
        ("[mask_a,mask_b]", ["data.mask_values={0:0,255:1,7:1}"]),
        ("both", []),
        ("[code_a,code_b]", ["data.mask_encoding=rle"]),
        ("[row_a,row_b]", ["data.mask_encoding=rle_by_row"]),
    ],
)
def test_every_way_of_storing_gives_the_same_masks(tmp_path, target, choices):
    truth = world(tmp_path)
    prepared = prepare_tiny(config_of(tmp_path, *choices, target=target))
    assert prepared.table.task == "segmentation_overlapping"
    for row, expected in enumerate(truth):
        np.testing.assert_array_equal(prepared.table.read_mask(row), expected)
    np.testing.assert_array_equal(np.stack(prepared.scan["pixels"].tolist()), [t.sum(axis=(1, 2)) for t in truth])
    again = prepare_tiny(config_of(tmp_path, *choices, target=target))  # from the record
    assert again.images_hash == prepared.images_hash
    np.testing.assert_array_equal(np.stack(again.scan["pixels"].tolist()), np.stack(prepared.scan["pixels"].tolist()))


def test_codes_that_change_make_another_run(tmp_path):
    world(tmp_path)
    first = prepare_tiny(config_of(tmp_path, "data.mask_encoding=rle", target="[code_a,code_b]"))
    frame = pd.read_csv(tmp_path / "train.csv", keep_default_na=False, dtype=str)
    frame.loc[1, "code_b"] = "1 3"
    frame.to_csv(tmp_path / "train.csv", index=False)
    second = prepare_tiny(config_of(tmp_path, "data.mask_encoding=rle", target="[code_a,code_b]"))
    assert first.images_hash != second.images_hash and second.scan["pixels"][1][1] == 3


def test_codes_are_decoded_pixel_by_pixel(tmp_path):
    rng = np.random.default_rng(3)
    for by_row in (False, True):
        mask = rng.random((7, 5)) < 0.4
        code = encode_runs(mask, by_row)
        expected = np.zeros(35, int)
        numbers = [int(number) for number in code.split()]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            for pixel in range(start - 1, start - 1 + length):
                expected[pixel] = 1
        expected = expected.reshape(7, 5) if by_row else expected.reshape(5, 7).T
        np.testing.assert_array_equal(decode_runs(code, (7, 5), by_row, tmp_path), expected)
    with pytest.raises(Refusal, match="leaves its 7 x 5 pixels"):
        decode_runs("30 7", (7, 5), False, tmp_path)


def test_class_numbers_become_a_mask_per_class_with_what_is_ignored(tmp_path):
    numbers = np.random.default_rng(0).choice([0, 1, 2, 9], SIZE).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "m.png"), numbers)
    masks = ClassMasks(("x", "y", "z"), ignore_index=9)
    read = masks.read(["m.png"], tmp_path, tmp_path / "none.png")
    np.testing.assert_array_equal(read, layers_of(numbers, ignored=9).transpose(2, 0, 1))
    figures = masks.figures(["m.png"], tmp_path, tmp_path / "none.png")
    assert masks.pixels(figures["values"]).tolist() == [(numbers == value).sum() for value in range(3)]


def test_an_ignored_value_of_the_files_is_ignored(tmp_path):
    stored = np.random.default_rng(0).choice([0, 128, 255], SIZE).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "m.png"), stored)
    read = ClassMasks(("x",), {0: 0, 255: 1, 128: 200}, ignore_index=200).read(["m.png"], tmp_path, tmp_path / "i.png")
    np.testing.assert_array_equal(read[0], np.select([stored == 255, stored == 128], [1, 200], 0))


def test_all_problems_at_once(tmp_path):
    """Sizes and values in one error, before anything trains."""
    world(tmp_path)
    cv2.imwrite(str(tmp_path / "a/1.png"), np.zeros((5, 5), np.uint8))
    cv2.imwrite(str(tmp_path / "a/2.png"), np.full(SIZE, 3, np.uint8))
    cv2.imwrite(str(tmp_path / "b/4.png"), np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(TableError) as error:
        prepare_tiny(config_of(tmp_path))
    text = str(error.value)
    for part in ("its masks differ in size", "a/1.png 5 x 5", "b/4.png: the mask of a class must have one channel",
                 "the masks have the values 0, 3, 7, 255", "mask_values: {0: 0, 3: 1, 7: 1, 255: 1}"):  # fmt: skip
        assert part in text, text


@pytest.mark.parametrize(
    ("columns", "target", "choices", "expected"),
    [
        ({"code_b": "3 2 x"}, "[code_a,code_b]", ["data.mask_encoding=rle"], "'3 2 x' in column 'code_b' is no run-"),
        ({"code_b": "3"}, "[code_a,code_b]", ["data.mask_encoding=rle"], "8 rows, lines 2, 3, 4, 5, 6 and 3 more"),
        ({}, "[code_a,code_b]", [], "the column 'code_a' has run-length codes, not files: set data.masks=overlapping"),
        ({"code_b": f"{2**70} 1"}, "[code_a,code_b]", ["data.mask_encoding=rle"], "in column 'code_b' is no run-"),
        ({"code_b": "600 2"}, "[code_a,code_b]", ["data.mask_encoding=rle"], "leaves its 20 x 30 pixels"),
        ({"mask_b": "b/9.png"}, "[mask_a,mask_b]", [], "b/9.png does not exist"),
        ({}, "[mask_a,mask_b]", ["data.classes=[a,b,c]"], "data.classes has 3 names (a, b, c), but data.col"),
        ({}, "both", ["data.classes=[a,b,c]"], "0.tif (and 7 more) has 2 channels, but there are 3 classes"),
        ({}, "both", ["data.ignore_index=1"], "with a mask per class it must be from 2 to 255"),
        ({}, "both", ["data.mask_values={0:0,1:3}"], "1 becomes 3, which is neither 0, 1 nor data.ignore_index"),
        ({}, "both", ["data.mask_scale=3"], "data.mask_scale is for data.masks=soft"),
        ({}, "both", ["data.mask_encoding=png"], "must be one of files, rle, rle_by_row"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(tmp_path, columns, target, choices, expected):
    world(tmp_path, **columns)
    with pytest.raises(Refusal, match=re.escape(expected)):
        prepare_tiny(config_of(tmp_path, *choices, target=target))


def test_many_values_are_numbers_rather_than_classes():
    found = dict.fromkeys(range(256), "a/1.png")
    (problem,) = ClassMasks(("x",))._value_problems(found)
    assert "for numbers such as shares set data.masks=soft" in problem and "254:" not in problem


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(Refusal, match="data.masks is 'both'; it must be one of exclusive, overlapping, soft"):
        tiny_config(tmp_path, "segmentation", "data.masks=both")
    config = tiny_config(tmp_path, "multilabel", "data.masks=soft")
    with pytest.raises(Refusal, match="data.masks=soft is for task=segmentation, but the task is multilabel"):
        check_config(config)
    with pytest.raises(Refusal, match="data.masks=soft is for task=segmentation"):
        check_data(config)
    with pytest.raises(Refusal, match="data.unit_reduction=max needs units"):
        check_config(tiny_config(tmp_path, "multilabel", "data.unit_reduction=max"))
    assert find_task("segmentation_soft").describe_settings() == (
        "task=segmentation data.masks=soft loss=bce_dice metric=pixel_mae"
    )


def test_soft_masks_are_scaled_and_nan_is_ignored(tmp_path):
    rng = np.random.default_rng(0)
    deep, real = rng.integers(0, 1000, SIZE).astype(np.uint16), rng.random(SIZE).astype(np.float32)
    real[3, 4] = np.nan
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    tifffile.imwrite(tmp_path / "real.tif", real)
    image = tmp_path / "i.png"
    masks = SoftMasks(("x",), scale=1000)
    np.testing.assert_allclose(masks.read(["deep.png"], tmp_path, image)[0], deep / 1000, rtol=1e-6)
    assert masks.pixels(masks.figures(["deep.png"], tmp_path, image)["values"]) == pytest.approx(deep.sum() / 1000)
    read = SoftMasks(("x",)).read(["real.tif"], tmp_path, image)
    np.testing.assert_array_equal(read[0], np.where(np.isnan(real), np.float32(255), real))
    row = {"dtype": "uint8", "image": "i", "mask": "deep.png", "height": 20, "width": 30}
    scan = pd.DataFrame([masks.figures(["deep.png"], tmp_path, image) | row])
    assert masks.problems(scan) == []
    assert "no mask has a value above 0.001, where 1 is expected" in SoftMasks(("x",), scale=1e6).problems(scan)[0]
    assert "deep.png has values from 0 to" in SoftMasks(("x",), scale=500).problems(scan)[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("classes", [1, 3, 6])
def test_masks_per_class_are_augmented_as_class_numbers_are(classes, dtype):
    """All classes alike, more than a picture has channels too, and what geometry exposes is ignored in each."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, classes, (24, 24)).astype(np.uint8)
    sample = {"image": rng.integers(0, 255, (24, 24, 3), np.uint8), "one": numbers,
              "target": layers_of(numbers, classes).astype(dtype)}  # fmt: skip
    transforms = [HorizontalFlip(p=0.5), Affine(rotate=(-40, 40), p=1), RandomResizedCrop((16, 20), p=0.5)]
    augmentation = Augmentation(transforms, FIELDS, 255)
    ignored = 0
    for seed in range(6):
        result = augmentation(sample, seed)
        expected = layers_of(result["one"], classes)
        ignored += (result["one"] == 255).sum()
        np.testing.assert_array_equal(result["target"], expected)
        assert result["target"].dtype == dtype
        fitted = fit_sample(result, FIELDS, (8, 12), "stretch")
        np.testing.assert_array_equal(fitted["target"], layers_of(fitted["one"], classes).transpose(2, 0, 1))
    assert ignored


def test_crops_hold_rare_classes_and_ignore_what_lies_outside():
    numbers = np.zeros((60, 60), np.uint8)
    numbers[50:53, 2:5] = 1  # rare
    sample = {"image": np.zeros((60, 60, 3), np.uint8), "target": layers_of(numbers, 2)}
    fields = {"image": Field("image"), "target": Field("masks")}
    crops = [crop_sample(sample, fields, (16, 16), 255, seed)["target"] for seed in range(200)]
    assert np.mean([(crop[:, :, 1] == 1).any() for crop in crops]) > 0.2  # 1 % of the places by chance
    small = crop_sample(sample, fields, (80, 64), 255, 0)["target"]
    assert small.shape == (80, 64, 2) and (small == 255).sum() == 2 * (80 * 64 - 60 * 60)


def test_mixing():
    with pytest.raises(Refusal, match="mixup cannot mix the masks one, target"):
        Mix(0.4, 0.0, FIELDS)
    torch.manual_seed(1)
    one = torch.arange(4).view(4, 1, 1).expand(4, 8, 8)
    layers = one[:, None].expand(4, 2, 8, 8).to(torch.uint8)
    batch = {"image": torch.rand(4, 3, 8, 8), "one": one, "target": layers, "weight": torch.ones(4)}
    mixed = Mix(0.0, 1.0, FIELDS)(batch)
    assert torch.equal(mixed["target"][:, 0].long(), mixed["one"]) and (mixed["one"] != batch["one"]).any()


def draw(seed=0, ignored=True, soft=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 5, 4, generator=generator)
    target = torch.rand(3, 2, 5, 4, generator=generator)
    target = target if soft else (target > 0.6).float()
    if ignored:
        target[torch.rand(target.shape, generator=generator) < 0.3] = 255
        target[2] = 255  # nothing of this sample counts
    return logits.requires_grad_(), target


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weights", [None, [2.0, 0.5]])
def test_losses_are_means_over_what_counts(soft, weights):
    logits, target = draw(soft=soft)
    expected = {BinaryCrossEntropy: [], Brier: [], Focal: []}
    for sample in range(3):
        terms = {kind: [] for kind in expected}
        for place in np.ndindex(2, 5, 4):
            t, p = float(target[sample][place]), float(torch.sigmoid(logits.detach()[sample][place]))
            if t != 255:
                w = 1.0 if weights is None else weights[place[0]]
                terms[BinaryCrossEntropy].append(-w * t * np.log(p) - (1 - t) * np.log(1 - p))
                terms[Brier].append(w * (p - t) ** 2)
                terms[Focal].append(-w * t * (1 - p) ** 2 * np.log(p) - (1 - t) * p**2 * np.log(1 - p))
        for kind, values in terms.items():
            expected[kind].append(np.mean(values) if values else 0.0)
    for kind, values in expected.items():
        options = {"task": "segmentation_soft"} if kind is Focal else {}
        loss = kind(class_weights=weights, **options)
        weight = torch.tensor([1.0, 3.0, 2.0])
        value = loss(logits, target.to(torch.float32), weight)
        assert float(value.detach()) == pytest.approx((np.array(values) * [1, 3, 2]).mean(), rel=1e-5)
        gradient = torch.autograd.grad(value, logits)[0]
        assert torch.isfinite(gradient).all() and not gradient[target == 255].any()


def test_dice_is_that_of_the_sigmoids_of_each_class():
    logits, target = draw()
    valid = target != 255
    p = torch.sigmoid(logits).detach()
    expected = []
    for c in range(2):
        inside = valid[:, c]
        both, all_ = (p[:, c] * target[:, c])[inside].sum(), p[:, c][inside].sum() + target[:, c][inside].sum()
        expected.append(float(1 - 2 * both / all_))
    assert float(Dice()(logits, target)) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(Dice()(logits, torch.full_like(target, 255))) == 0


def test_losses_of_exclusive_classes_refuse_masks_per_class():
    logits, target = draw()
    for loss in (CrossEntropy(), Focal(task="segmentation")):
        with pytest.raises(Refusal, match="for a mask per class add loss=bce_dice"):
            loss(logits, target)
    with pytest.raises(Refusal, match="for exclusive classes use CrossEntropy"):
        BinaryCrossEntropy()(logits, torch.zeros(3, 5, 4, dtype=torch.int64))


def test_metrics_of_masks_per_class():
    rng = np.random.default_rng(0)
    masks = [(rng.random((3, 6, 7)) < 0.4).astype(np.uint8) for _ in range(4)]
    maps = [rng.random((3, 6, 7)).astype(np.float32) for _ in masks]
    for mask, values in zip(masks, maps, strict=True):
        mask[2], values[2] = 0, 0.1  # neither there nor predicted
    masks[0][0, :3] = 255
    names = ("segmentation_overlapping", list("abc"))
    pooled, each = DiceMetric().for_task(*names), DiceMetric(per_image=True).for_task(*names)
    evidence = np.stack([pooled.measure(*pair) for pair in zip(masks, maps, strict=True)])
    of_class, of_image = [], []
    for c in range(3):
        parts = [(m[c][m[c] != 255], p[c][m[c] != 255] >= 0.5) for m, p in zip(masks, maps, strict=True)]
        of_class.append(f1_score(*(np.concatenate(side) for side in zip(*parts, strict=True)), zero_division=np.nan))
        of_image.append([f1_score(*part, zero_division=1.0) for part in parts])
    with pytest.warns(match="leaves out 1 of 3"):
        assert pooled.reduce(evidence) == pytest.approx(np.nanmean(of_class))  # the first class counts too
    assert each.reduce(evidence) == pytest.approx(np.mean(of_image)) and np.mean(of_image[2]) == 1
    with pytest.warns(match="leaves out"):
        iou = MeanIoU().for_task(*names).reduce(evidence)
    assert iou == pytest.approx(np.nanmean([d / (2 - d) for d in of_class]))


def test_errors_per_pixel():
    rng = np.random.default_rng(0)
    masks = [rng.random((2, 5, size)).astype(np.float32) for size in (4, 9)]
    maps = [rng.random(mask.shape).astype(np.float32) for mask in masks]
    masks[1][0, 2] = 255
    errors = [[np.abs(m[c] - p[c])[m[c] != 255] for m, p in zip(masks, maps, strict=True)] for c in range(2)]
    flat = [np.concatenate(of_class).astype(np.float64) for of_class in errors]
    for metric, expected in ((PixelMae(), np.mean([f.mean() for f in flat])),
                             (PixelRmse(), np.mean([np.sqrt((f**2).mean()) for f in flat]))):  # fmt: skip
        ready = metric.for_task("segmentation_soft", ["a", "b"])
        evidence = np.stack([ready.measure(*pair) for pair in zip(masks, maps, strict=True)])
        assert ready.reduce(evidence) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(Refusal, match="PixelMae is for segmentation_overlapping and segmentation_soft"):
        PixelMae().for_task("segmentation", ["a", "b"])


def noisy_images(count=12, seed=0):
    """Of two classes; b is best cut at 0.3, and has specks of few pixels."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        mask = np.zeros((2, 40, 40), np.uint8)
        mask[0, 5:20, 5:20] = mask[1, 15:35, 10:30] = 1
        probability = np.clip(mask * [[[0.9]], [[0.4]]] + rng.normal(0, 0.03, mask.shape), 0, 1)
        for _ in range(12):
            top, left = rng.integers(0, 38, 2)
            probability[1, top : top + 2, left : left + 2] = 0.6
        yield f"i{number}", mask, probability.astype(np.float32), number % 3


def test_thresholds_and_areas_are_fitted_for_each_class():
    metric = DiceMetric().for_task("segmentation_overlapping", ["a", "b"])
    chosen = choose_cuts(metric, noisy_images())
    assert chosen.outcome.name == "class-thresholds+minimum-area"
    cuts = chosen.decision
    assert 0.1 <= cuts.thresholds[1] <= 0.3 and cuts.areas[1] > 0 and cuts.thresholds[0] == 0.5 and cuts.areas[0] == 0
    for _, mask, probability, _ in noisy_images(2, seed=1):
        answer = cuts(probability)
        assert answer.dtype == bool and answer.shape == mask.shape
        assert (answer & (mask > 0)).sum() / (answer | (mask > 0)).sum() > 0.97
    assert {outcome.name for outcome in chosen.outcomes} == set(CUTS)
    scores = {outcome.name: outcome.overall for outcome in chosen.outcomes}
    assert scores["fixed-threshold"] < scores["class-thresholds"] < scores["class-thresholds+minimum-area"]


def test_submissions_have_the_runs_of_each_class_and_files_with_channels():
    answer = np.zeros((2, 3, 4), bool)
    answer[0, 0, 0] = answer[:, 1, 2] = True
    layout = RunLengths(classes=["a", "b"], painted=["a", "b"])
    assert layout.encode(answer).decode() == "1 1 8 1\n8 1"
    assert RunLengths(classes=["a", "b"], painted=["b"], empty="-1").encode(np.zeros((2, 3, 4))).decode() == "-1"
    zipped = Masks(classes=["a", "b"], layers=True)
    assert zipped.file_name("x/1") == "x/1.tif"

    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(zipped.encode(answer))), answer * 255)
    one = Masks(classes=["a"], layers=True)
    values = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    png = cv2.imdecode(np.frombuffer(one.encode(values), np.uint8), cv2.IMREAD_UNCHANGED)
    assert one.file_name("1") == "1.png" and png.tolist() == [[0, 128, 255]]


def test_cuts_without_anything_to_learn_stay_at_a_half():
    metric = DiceMetric(per_image=True).for_task("segmentation_overlapping", ["a"])
    empty = [(f"i{n}", np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.float32), n % 2) for n in range(4)]
    decision = choose_cuts(metric, empty).decision
    assert decision.thresholds.tolist() == [0.5] and decision.areas.tolist() == [0.0]
    assert str(ClassCuts(np.array([0.5, 0.25]), np.array([0.0, 0.001]))) == "0.5 0.25 from 0.10% of the image"
