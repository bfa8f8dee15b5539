"""The built-in sample competition, one per task, made of scikit-learn's handwritten digits.

It is written as image files and tables like a real one, so everything runs offline. Each handwritten digit is used
once, so nothing leaks between folds.

It is built to expose pipeline bugs. Sixes are red, nines are blue, and half of both are upside down: without the right
colour channels they look the same. Mask strokes are about five pixels wide: a shift of two pixels costs a third of the
IoU. The number of a picture is the share that its digit covers, in percent, and negative if the digit is blue: swapped
channels turn the sign around. Images differ in size and are not square.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from foldwise.data.class_masks import encode_layers
from foldwise.data.individuals import write_individuals, write_picture, write_tables
from foldwise.locks import lock

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BACKGROUNDS = ("plain", "gradient", "stripes", "clouds")
HUES = {6: 0, 9: 240}  # degrees; the other digits have any hue
SEED = 7


@dataclass(frozen=True)
class SampleSpec:
    """Design of the images of one task.

    Attributes:
        at_most: limits on how many drawings of a digit are used.
        per_image: probabilities of 0, 1, 2... digits in an image.
        hues: in degrees, of the digits that have one.
        size, height, width: smallest and largest, in pixels, of a digit and of the image.
        test: number of test images.
        overlap: digits cross the borders of their quarters.
    """

    target: str
    digits: tuple[int, ...]
    at_most: dict[int, int]
    per_image: tuple[float, ...]
    size: tuple[int, int]
    height: tuple[int, int]
    width: tuple[int, int]
    test: int
    hues: Mapping[int, float] = field(default_factory=lambda: HUES)
    overlap: bool = False


SPECS = {
    "multiclass": SampleSpec("label", tuple(range(10)), {}, (0, 1), (48, 52), (56, 72), (56, 72), 200),
    "multilabel": SampleSpec(
        "labels", tuple(range(10)), {3: 70, 7: 45, 8: 25}, (0.08, 0.5, 0.34, 0.08), (26, 30), (64, 72), (64, 72), 200
    ),
    "regression": SampleSpec(
        *("value", tuple(range(10)), dict.fromkeys(range(10), 70), (0, 1), (24, 52), (56, 72), (56, 72), 100),
        hues={digit: 240.0 * (digit % 2) for digit in range(10)},
    ),
    "segmentation": SampleSpec("mask", (0, 1, 4, 6, 9), {}, (0, 0.5, 0.4, 0.1), (28, 32), (64, 72), (72, 88), 100),
}
# Pairs of digits of which the second lies over a corner of the first; the mask of each is whole.
SPECS["segmentation_overlapping"] = replace(SPECS["segmentation"], per_image=(0.1, 0.3, 0.5, 0.1), overlap=True)
# How much of each pixel is covered by ink.
SPECS["segmentation_soft"] = SPECS["segmentation"]


def is_sample(data: Mapping[str, Any]) -> bool:
    return data["name"] == "sample"


def provide_classes(data: Mapping[str, Any], task: str) -> Sequence[str] | None:
    """Return the configured classes. For the sample, write it on first use and default to its classes."""
    if not is_sample(data):
        return data["classes"]
    root, table = Path(data["root"]), Path(data["table"])
    if not table.exists():
        with lock(root / ".lock"):  # several jobs may start at once
            if not table.exists():
                write_sample(root, task)
    return data["classes"] or sample_classes(task)


def sample_classes(task: str) -> tuple[str, ...] | None:
    """Classes of the sample; None takes those in its table, as for identities."""
    if task not in SPECS:
        return None
    names = tuple(DIGITS[digit] for digit in SPECS[task].digits)
    if task == "regression":
        return (SPECS[task].target,)
    return ("background", *names) if task == "segmentation" else names


def write_sample(root: Path, task: str) -> None:
    """Write images (and masks), `train.csv`, `test.csv` and `test_solution.csv` (the ground truth) into `root`.

    The files are the same every time. `train.csv` is written last: if it exists, the sample is complete.
    """
    if task == "retrieval":
        return write_individuals(root)
    spec = SPECS[task]
    rng = np.random.default_rng(SEED)
    contents = _compose(spec, rng)
    (root / "images").mkdir(parents=True, exist_ok=True)
    if spec.target == "mask":
        (root / "masks").mkdir(exist_ok=True)
    rows = []
    for number, digits in enumerate(contents):
        name = f"test_{number:04d}" if number < spec.test else f"train_{number - spec.test:04d}"
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        image, inks = _draw(digits, spec, background, rng)
        write_picture(root / "images" / f"{name}.png", image)
        labels = sorted({digit for digit, _ in digits})
        target = " ".join(DIGITS[digit] for digit in labels)
        if task == "segmentation":
            target = f"masks/{name}.png"
            mask = np.zeros(image.shape[:2], np.uint8)
            for (digit, _), ink in zip(digits, inks, strict=True):
                mask[ink > 0.5] = spec.digits.index(digit) + 1
            cv2.imencode(".png", mask)[1].tofile(root / target)
        elif spec.target == "mask":
            target = f"masks/{name}.tif"
            layers = np.zeros((len(spec.digits), *image.shape[:2]))
            for (digit, _), ink in zip(digits, inks, strict=True):
                layers[spec.digits.index(digit)] = np.maximum(layers[spec.digits.index(digit)], ink)
            layers = layers > 0.5 if spec.overlap else layers
            (root / target).write_bytes(encode_layers(np.rint(layers * 255).astype(np.uint8)))
        elif task == "regression":
            target = round((-1) ** labels[0] * 100 * (inks[0] > 0.5).mean(), 2)
        rows.append({"id": name, "image": f"images/{name}.png", spec.target: target, "background": background})
    table = pd.DataFrame(rows)
    test, train = table[: spec.test], table[spec.test :]
    write_tables(root, train, test.drop(columns=spec.target), test[["id", spec.target]])


def _compose(spec: SampleSpec, rng: np.random.Generator) -> list[list[tuple[int, np.ndarray]]]:
    """Distribute the drawings over images: lists of (digit, 8 x 8 drawing in [0, 1])."""
    from sklearn.datasets import load_digits

    source = load_digits()
    drawings, digits = source.images / 16, source.target
    chosen = [rng.permutation(np.flatnonzero(digits == digit))[: spec.at_most.get(digit)] for digit in spec.digits]
    remaining = rng.permutation(np.concatenate(chosen)).tolist()
    images = []
    while remaining:
        count = int(rng.choice(len(spec.per_image), p=spec.per_image))
        images.append([(int(digits[index]), drawings[index]) for index in remaining[:count]])
        remaining = remaining[count:]
    return images


def _draw(
    digits: Sequence[tuple[int, np.ndarray]], spec: SampleSpec, background: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw an RGB image (H, W, 3) uint8; also return the ink of each digit, (H, W) in [0, 1]."""
    height, width = int(rng.integers(*spec.height, endpoint=True)), int(rng.integers(*spec.width, endpoint=True))
    image = _background(background, height, width, rng)
    inks = []
    # Several digits go into different quarters of the image, so they never overlap, unless these are larger.
    several = len(spec.per_image) > 2
    quarters = rng.permutation(4)
    for number, (digit, drawing) in enumerate(digits):
        size = rng.uniform(*spec.size)
        box = (0.0, 0.0, float(height), float(width))
        if several:
            row, column = divmod(int(quarters[number]), 2)
            box = (row * height / 2, column * width / 2, height / 2, width / 2)
            if spec.overlap:
                box = (row * height / 4, column * width / 4, height * 3 / 4, width * 3 / 4)
        ink = _ink(drawing, digit, size, box, (height, width), rng)
        hue = rng.uniform(0, 360) if digit not in spec.hues else spec.hues[digit] + rng.uniform(-20, 20)
        # Brighter than the background in red, green and blue.
        color = _rgb(hue, rng.uniform(0.4, 0.6), rng.uniform(0.9, 1.0))
        image = image * (1 - ink[:, :, None]) + color * ink[:, :, None]
        inks.append(ink)
    return np.round(image * 255).astype(np.uint8), inks


def _ink(
    drawing: np.ndarray,
    digit: int,
    size: float,
    box: tuple[float, float, float, float],
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Rotate and shear a digit a little, place it in the box; returns the coverage of each pixel, (H, W) in [0, 1]."""
    top, left, height, width = box
    center = (
        left + rng.uniform(size / 2, max(width - size / 2, size / 2 + 1)),
        top + rng.uniform(size / 2, max(height - size / 2, size / 2 + 1)),
    )
    angle = np.deg2rad(rng.uniform(-8, 8) + (180 if digit in HUES and rng.random() < 0.5 else 0))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Enlarge and smooth first: eight pixels alone give jagged, broken strokes.
    large = cv2.GaussianBlur(cv2.resize(np.pad(drawing, 1), (80, 80), interpolation=cv2.INTER_CUBIC), (0, 0), 3)
    matrix = turn @ np.array([[1, rng.uniform(-0.1, 0.1)], [0, 1]]) * (size / 64)
    offset = np.array(center) - matrix @ np.array([39.5, 39.5])
    ink = cv2.warpAffine(large, np.column_stack([matrix, offset]), shape[::-1], flags=cv2.INTER_AREA)
    return np.clip((ink - 0.25) / 0.25, 0, 1)


def _background(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a dark background (H, W, 3) in [0, 0.4]: plain or textured, with noise."""
    first, second = (_rgb(rng.uniform(0, 360), rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.35)) for _ in range(2))
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    blend: np.ndarray = np.zeros((height, width))
    if kind == "gradient":
        blend = (along - along.min()) / np.ptp(along)
    elif kind == "stripes":
        blend = (np.sin(along * rng.uniform(0.4, 1.2)) + 1) / 2
    elif kind == "clouds":
        blend = np.asarray(cv2.resize(rng.random((6, 6)), (width, height), interpolation=cv2.INTER_LINEAR))
    image = first + blend[:, :, None] * (second - first)
    return np.clip(image + rng.normal(0, 0.03, image.shape), 0, 0.4)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    import colorsys

    return np.array(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))
