"""Random crops: image and mask stay together, rare classes are seen, and the same seed gives the same crop."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from items import item_dataset, read_one

from foldwise.data.augmentation import Augmentation, sample_seed
from foldwise.data.crops import crop_sample
from foldwise.data.dataset import EpochTransform
from foldwise.data.fields import Field
from foldwise.data.sampling import SampleKey
from foldwise.data.table import Columns, read_table

IGNORE = 255
FIELDS = {"image": Field("image"), "target": Field("mask")}


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose pixels say where they are, and a mask that can be told from them."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns], axis=2).astype(np.uint16), ((rows // 7 + columns // 5) % 3).astype(np.uint8)


def crop(image: np.ndarray, mask: np.ndarray, size: tuple[int, int], ignore: int, seed: int):
    """The crop of a picture and that of its mask."""
    found = crop_sample({"image": image, "target": mask}, FIELDS, size, ignore, seed)
    assert list(found) == ["image", "target"]
    return found["image"], found["target"]


def test_a_crop_is_a_part_of_the_image_with_its_mask():
    image, mask = scene(50, 70)
    corners = set()
    for seed in range(200):
        piece, cut = crop(image, mask, (16, 32), IGNORE, seed)
        top, left = piece[0, 0].tolist()
        corners.add((top, left))
        np.testing.assert_array_equal(piece, image[top : top + 16, left : left + 32])
        np.testing.assert_array_equal(cut, mask[top : top + 16, left : left + 32])
    tops, lefts = zip(*corners, strict=True)
    assert len(corners) > 150 and (min(tops), max(tops), min(lefts), max(lefts)) == (0, 34, 0, 38)  # up to all borders


def test_a_rare_class_is_seen_more_often_than_by_chance_and_ignored_pixels_are_not_sought():
    image, mask = scene(200, 200)[0], np.zeros((200, 200), np.uint8)
    mask[120:124, 60:64] = 7
    mask[:100] = IGNORE
    crops = [crop(image, mask, (32, 32), IGNORE, seed)[1] for seed in range(400)]
    rare = np.mean([(cut == 7).any() for cut in crops])
    assert 0.2 < rare < 0.4  # half of the crops seek one of two classes; by chance 4 of 100 would have it
    assert np.mean([(cut == IGNORE).all() for cut in crops]) < 0.25  # of the crops by chance, 2 of 5


@pytest.mark.parametrize("ignore", [IGNORE, 300])
def test_a_smaller_image_is_mirror_padded_and_the_padding_is_not_trained(ignore: int):
    image, mask = scene(10, 40)
    piece, cut = crop(image, mask, (33, 32), ignore, 0)
    left = piece[11, 0, 1]
    np.testing.assert_array_equal(
        piece, np.pad(image[:, left : left + 32], ((11, 12), (0, 0), (0, 0)), mode="symmetric")
    )
    assert (cut[11:21] == mask[:, left : left + 32]).all() and (np.delete(cut, np.s_[11:21], axis=0) == ignore).all()


def test_a_mask_of_ignored_pixels_alone_gives_a_crop():
    image, mask = scene(40, 40)
    for seed in range(4):
        assert crop(image, np.full_like(mask, IGNORE), (16, 16), IGNORE, seed)[0].shape == (16, 16, 2)


def test_the_dataset_crops_for_training_alone(tmp_path: Path):
    image, mask = scene(40, 60)
    image = np.dstack([image, image[:, :, :1]]).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    pd.DataFrame({"id": ["a"], "image": ["a.png"], "mask": ["mask.png"]}).to_csv(tmp_path / "t.csv", index=False)
    table = read_table(tmp_path / "t.csv", "segmentation", tmp_path, Columns(), ["x", "y", "z"])
    training = item_dataset(table, [EpochTransform(Augmentation([], FIELDS), (16, 16))], "tiles", seed=3)
    for key in (SampleKey(0, 0), SampleKey(0, 1), SampleKey(0, 1, 1)):
        expected = crop(image, mask, (16, 16), IGNORE, sample_seed(3, key.epoch, "a", key.repeat))
        item = read_one(training, key)
        np.testing.assert_array_equal(item["image"].permute(1, 2, 0), expected[0])
        np.testing.assert_array_equal(item["target"], expected[1])
    whole = read_one(item_dataset(table, [EpochTransform(None, None)], "tiles", seed=None), SampleKey(0, 0))
    np.testing.assert_array_equal(whole["image"].permute(1, 2, 0), image)
    np.testing.assert_array_equal(whole["target"], mask)
