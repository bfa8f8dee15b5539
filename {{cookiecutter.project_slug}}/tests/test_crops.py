"""Random crops: image and mask stay together, rare classes are seen, and the same seed gives the same crop."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from foldwise.data.augmentation import Augmentation
from foldwise.data.crops import random_crop
from foldwise.data.dataset import Draw, ImageDataset, Look, sample_seed
from foldwise.data.table import Columns, read_table

IGNORE = 255


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose pixels say where they are, and a mask that can be told from them."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns], axis=2).astype(np.uint16), ((rows // 7 + columns // 5) % 3).astype(np.uint8)


def test_a_crop_is_a_piece_of_the_picture_with_its_own_mask():
    image, mask = scene(50, 70)
    corners = set()
    for seed in range(200):
        crop, cut = random_crop(image, mask, (16, 32), IGNORE, seed)
        top, left = crop[0, 0].tolist()
        corners.add((top, left))
        np.testing.assert_array_equal(crop, image[top : top + 16, left : left + 32])
        np.testing.assert_array_equal(cut, mask[top : top + 16, left : left + 32])
    tops, lefts = zip(*corners, strict=True)
    assert len(corners) > 150 and (min(tops), max(tops), min(lefts), max(lefts)) == (0, 34, 0, 38)  # up to all borders


def test_a_rare_class_is_seen_more_often_than_by_chance_and_ignored_pixels_are_not_sought():
    image, mask = scene(200, 200)[0], np.zeros((200, 200), np.uint8)
    mask[120:124, 60:64] = 7
    mask[:100] = IGNORE
    crops = [random_crop(image, mask, (32, 32), IGNORE, seed)[1] for seed in range(400)]
    rare = np.mean([(crop == 7).any() for crop in crops])
    assert 0.2 < rare < 0.4  # half of the crops seek one of two classes; by chance 4 of 100 would have it
    assert np.mean([(crop == IGNORE).all() for crop in crops]) < 0.25  # of the crops by chance, 2 of 5


@pytest.mark.parametrize("ignore", [IGNORE, 300])
def test_a_smaller_picture_is_mirrored_and_what_is_mirrored_is_not_trained(ignore: int):
    image, mask = scene(10, 40)
    crop, cut = random_crop(image, mask, (33, 32), ignore, 0)
    left = crop[11, 0, 1]
    np.testing.assert_array_equal(
        crop, np.pad(image[:, left : left + 32], ((11, 12), (0, 0), (0, 0)), mode="symmetric")
    )
    assert (cut[11:21] == mask[:, left : left + 32]).all() and (np.delete(cut, np.s_[11:21], axis=0) == ignore).all()


def test_nothing_but_ignored_pixels_still_gives_a_crop():
    image, mask = scene(40, 40)
    for seed in range(4):
        assert random_crop(image, np.full_like(mask, IGNORE), (16, 16), IGNORE, seed)[0].shape == (16, 16, 2)


def test_the_dataset_crops_for_training_and_gives_whole_pictures_else(tmp_path: Path):
    image, mask = scene(40, 60)
    image = np.dstack([image, image[:, :, :1]]).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    pd.DataFrame({"id": ["a"], "image": ["a.png"], "mask": ["mask.png"]}).to_csv(tmp_path / "t.csv", index=False)
    table = read_table(tmp_path / "t.csv", "segmentation", tmp_path, Columns(), ["x", "y", "z"])
    training = ImageDataset(table, [Look(Augmentation([]), (16, 16))], "tiles", seed=3)
    for draw in (Draw(0, 0), Draw(0, 1), Draw(0, 1, 1)):
        expected = random_crop(image, mask, (16, 16), IGNORE, sample_seed(3, draw.epoch, "a", draw.repeat))
        item = training[draw]
        np.testing.assert_array_equal(item["image"].permute(1, 2, 0), expected[0])
        np.testing.assert_array_equal(item["target"], expected[1])
    whole = ImageDataset(table, [Look(None, None)], "tiles")[Draw(0, 0)]
    np.testing.assert_array_equal(whole["image"].permute(1, 2, 0), image)
    np.testing.assert_array_equal(whole["target"], mask)
