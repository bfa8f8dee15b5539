"""Images with masks that overlap, stored in several ways, for the tests of masks per class."""

import cv2
import numpy as np
import pandas as pd
from tiny import tiny_config

from foldwise.data.class_masks import encode_layers
from foldwise.data.run_lengths import encode_runs

SIZE = (20, 30)


def world(root, count=8, seed=0, **columns):
    """Images with two masks that overlap, b empty in every third one; as files, channels, numbers and codes."""
    rng = np.random.default_rng(seed)
    rows, truth = [], []
    for number in range(count):
        a, b = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
        top, left = rng.integers(0, 8), rng.integers(0, 12)
        a[top : top + 10, left : left + 10] = 1
        if number % 3:
            b[top + 4 : top + 14, left + 3 : left + 15] = 1
        for folder in ("images", "a", "b", "both", "soft"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 80, (*SIZE, 3)).astype(np.uint8)
        image[:, :, 0] += 150 * a
        image[:, :, 1] += 150 * b
        cv2.imwrite(str(root / f"images/{number}.png"), image)
        cv2.imwrite(str(root / f"soft/{number}.png"), cv2.GaussianBlur(a * np.uint8(255), (0, 0), 3))
        cv2.imwrite(str(root / f"a/{number}.png"), a * 255)
        cv2.imwrite(str(root / f"b/{number}.png"), b * 7)
        (root / f"both/{number}.tif").write_bytes(encode_layers(np.stack([a, b])))
        rows.append(
            {
                "id": f"r{number}",
                "image": f"images/{number}.png",
                "mask_a": f"a/{number}.png",
                "mask_b": f"b/{number}.png" if number % 3 else "",
                "both": f"both/{number}.tif",
                "code_a": encode_runs(a > 0),
                "code_b": encode_runs(b > 0),
                "row_a": encode_runs(a > 0, by_row=True),
                "row_b": encode_runs(b > 0, by_row=True),
                "soft": f"soft/{number}.png",
                "part": number % 2,
            }
        )
        truth.append(np.stack([a, b]))
    frame = pd.DataFrame(rows).assign(**columns)
    frame.to_csv(root / "train.csv", index=False)
    frame[["id", "image"]].to_csv(root / "test.csv", index=False)
    return truth


def config_of(root, *overrides, masks="overlapping", target="[mask_a,mask_b]"):
    overrides = (f"data.masks={masks}", f"data.columns.target={target}", "data.columns.fold=part", *overrides)
    return tiny_config(root, "segmentation", "loss=bce_dice", "metric=dice", "data.classes=[a,b]", *overrides)
