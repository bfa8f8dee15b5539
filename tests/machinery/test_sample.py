"""The embedded sample: complete, the same every time, and made so that mistakes show."""

import colorsys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from foldwise.data.images import read_image, read_mask
from foldwise.data.sample import SPECS, sample_classes, write_sample
from foldwise.data.table import Columns, Table, read_table


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("samples")
    for task in SPECS:
        write_sample(root / task, task)
    return {task: root / task for task in SPECS}


def read(root: Path, task: str) -> Table:
    return read_table(root / "train.csv", task, root, Columns(), sample_classes(task))


@pytest.mark.parametrize("task", SPECS)
def test_the_sample_is_a_whole_competition(samples, task):
    root = samples[task]
    train = read(root, task)
    test = read_table(root / "test.csv", task, root, Columns(), sample_classes(task), has_target=False)
    solution = pd.read_csv(root / "test_solution.csv", dtype=str, na_filter=False)
    assert len(train) >= 400 and len(test) >= 100 and solution["id"].tolist() == test.ids
    assert not set(train.ids) & set(test.ids)
    assert len(list((root / "images").iterdir())) == len(train) + len(test)
    sizes = {read_image(train.image_path(row)).shape for row in range(40)}
    assert len(sizes) > 20 and all(shape[2] == 3 and min(shape[:2]) >= 56 for shape in sizes)


def test_the_same_files_every_time(samples, tmp_path):
    task = "segmentation"
    write_sample(tmp_path, task)
    first = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    root = samples[task]
    assert first == {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_some_images_have_no_label_and_some_labels_are_rare(samples):
    table = read(samples["multilabel"], "multilabel")
    counts = dict(zip(table.classes, table.target.sum(axis=0), strict=True))
    assert (table.target.sum(axis=1) == 0).mean() > 0.03 and table.target.sum(axis=1).max() >= 3
    assert sorted(name for name, count in counts.items() if count < 80) == ["eight", "seven", "three"]
    assert min(counts.values()) >= 5


def hue(pixels: np.ndarray) -> float:
    return colorsys.rgb_to_hsv(*(np.median(pixels, axis=0) / 255))[0] * 360


def test_masks_are_exact_and_six_is_red_and_nine_is_blue(samples):
    table = read(samples["segmentation"], "segmentation")
    rows = range(60)
    for row in rows:
        image, mask = read_image(table.image_path(row)), read_mask(table.mask_files(row)[0])
        assert mask.shape == image.shape[:2] and mask.max() < len(table.classes)
        # Digits are brighter than any background in every channel: half covered is bright, bare is dark.
        least = image.min(axis=2)
        assert np.median(least[mask > 0]) > 85 > np.median(image.max(axis=2)[mask == 0]) - 20
        for name, expected in (("six", 0), ("nine", 240)):
            pixels = image[mask == table.classes.index(name)]
            if len(pixels):
                assert abs((hue(pixels) - expected + 180) % 360 - 180) < 30
    assert {value for row in rows for value in np.unique(read_mask(table.mask_files(row)[0]))} == set(range(6))


def test_masks_overlap_and_soft_masks_are_the_ink(samples):
    table = read(samples["segmentation_overlapping"], "segmentation_overlapping")
    masks = [table.read_mask(row) for row in range(80)]
    assert {(mask.shape[0], mask.max()) for mask in masks} == {(5, 0), (5, 1)}
    assert np.mean([(mask.sum(axis=0) > 1).any() for mask in masks]) > 0.1
    assert 0.02 < np.mean([not mask.any() for mask in masks]) < 0.2
    values = read(samples["segmentation_soft"], "segmentation_soft").read_mask(0)
    assert values.dtype == np.float32 and 0 < ((values > 0) & (values < 1)).mean() < 0.2 and values.max() == 1


def test_a_shifted_mask_loses_a_third_of_the_iou(samples):
    table = read(samples["segmentation"], "segmentation")
    masks = [read_mask(table.mask_files(row)[0]) > 0 for row in range(50)]
    shifted = [np.roll(mask, 2, axis=1) for mask in masks]
    both = sum((mask & other).sum() for mask, other in zip(masks, shifted, strict=True))
    either = sum((mask | other).sum() for mask, other in zip(masks, shifted, strict=True))
    assert both / either < 0.7
