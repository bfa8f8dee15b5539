"""Made-up individuals of the embedded sample: a fixed pattern each, under changing light, pose and crop.

All have the same two colours, so only the pattern tells them apart. Of some there is one training image, some come in
the test alone: both are new individuals to whoever has not seen them.
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from foldwise.files import write_csv

SIZE = 64  # pixels
SEED = 7
CANVAS = 96  # pixels of a pattern


class Herd(NamedTuple):
    """Identities of one kind, with so many images each in training and in the test."""

    identities: int
    train: int
    test: int


HERDS = (Herd(28, 6, 2), Herd(12, 1, 2), Herd(20, 0, 2))


def write_individuals(root: Path, herds: tuple[Herd, ...] = HERDS) -> None:
    """Write images, `train.csv`, `test.csv` and `test_solution.csv` into `root`."""
    rng = np.random.default_rng(SEED)
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    names = rng.permutation(sum(herd.identities for herd in herds)).tolist()
    for herd in herds:
        for _ in range(herd.identities):
            pattern, label = _pattern(rng), f"animal_{names.pop():03d}"
            rows += [(part, label, _picture(pattern, rng)) for part in ["train"] * herd.train + ["test"] * herd.test]
    table = pd.DataFrame([row[:2] for row in rows], columns=["part", "label"])
    table["number"] = rng.permutation(len(table))  # ids say nothing
    table["id"] = table["part"] + table["number"].map("_{:04d}".format)
    table["image"] = "images/" + table["id"] + ".png"
    for path, (_, _, picture) in zip(table["image"], rows, strict=True):
        write_picture(root / path, picture)
    known, table = set(table["label"][table["part"] == "train"]), table.sort_values("number")
    train, test = (table[table["part"] == part][["id", "image", "label"]] for part in ("train", "test"))
    solution = test.assign(label=test["label"].where(test["label"].isin(known), "new_individual"))
    write_tables(root, train, test.drop(columns="label"), solution.drop(columns="image"))


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write RGB (H, W, 3) uint8 as PNG."""
    cv2.imencode(".png", picture[:, :, ::-1])[1].tofile(path)


def write_tables(root: Path, train: pd.DataFrame, test: pd.DataFrame, solution: pd.DataFrame) -> None:
    """Write the tables of a sample; train.csv last: the sample is complete when it exists."""
    for name, frame in (("test", test), ("test_solution", solution), ("train", train)):
        write_csv(root / f"{name}.csv", frame)


def _pattern(rng: np.random.Generator) -> np.ndarray:
    """Draw the pattern of an individual: dark and light patches, (H, W) in [0, 1]."""
    field = cv2.resize(rng.random((4, 4)), (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    return np.clip((field - np.median(field)) * 8 + 0.5, 0, 1)


def _picture(pattern: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photograph a pattern: (64, 64, 3) uint8, on a background, in a pose, cropped, under some light."""
    angle, zoom = rng.uniform(-12, 12), rng.uniform(0.6, 0.72) * SIZE / 64
    pose = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), angle, zoom)
    pose[:, :2] = pose[:, :2] @ np.array([[1, rng.uniform(-0.15, 0.15)], [0, rng.uniform(0.85, 1.0)]])
    middle = pose[:, :2] @ np.full(2, CANVAS / 2)
    pose[:, 2] = SIZE / 2 + rng.uniform(-5, 5, 2) - middle
    y, x = np.mgrid[:CANVAS, :CANVAS] / CANVAS * 2 - 1
    body = np.asarray((x**2 + y**2 < 0.9), np.float64)
    skin, cover = (cv2.warpAffine(layer, pose, (SIZE, SIZE), flags=cv2.INTER_AREA) for layer in (pattern, body))
    dark, light = np.array([0.25, 0.22, 0.2]), np.array([0.8, 0.75, 0.65])
    ground = cv2.resize(rng.random((5, 5, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) * 0.6 + 0.2
    animal = dark + skin[:, :, None] * (light - dark)
    picture = ground + cover[:, :, None] * (animal - ground)
    direction, (v, u) = rng.uniform(0, 2 * np.pi), np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    shade = 1 + rng.uniform(0, 0.8) * (u * np.cos(direction) + v * np.sin(direction))
    picture = picture * shade[:, :, None] * rng.uniform(0.5, 1.2) * rng.uniform(0.85, 1.15, 3)
    return np.round(np.clip(picture + rng.normal(0, 0.04, picture.shape), 0, 1) * 255).astype(np.uint8)
