"""The data sets of the arena: one table each, in which the rows of fold 0 are held out from everybody.

    python benchmarks/arena/sets.py build/arena ../shared/data /usr/share/datasets/fashion-mnist

`build/arena/<set>/train.csv` has id, image, the target (label, labels, mask or value), group and fold (0: held out;
1: to train on).
"""

import csv
import gzip
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

EVERY = 5  # each fifth block of frames or house is held out
SCENE = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"]
SETS: dict[str, dict[str, Any]] = {
    "camvid_tiles": {"task": "multilabel", "metric": "f_beta", "target": "labels"},
    "camvid": {"task": "segmentation", "metric": "mean_iou", "target": "mask", "classes": SCENE, "ignore": 11},
    "fashion_500": {"task": "multiclass", "metric": "accuracy", "target": "label"},
    "fashion_5000": {"task": "multiclass", "metric": "accuracy", "target": "label"},
    "fashion_60000": {"task": "multiclass", "metric": "accuracy", "target": "label"},
    "houses": {"task": "regression", "metric": "r2", "target": "value"},  # looked at once, at the end
}


def write(folder: Path, rows: pd.DataFrame, root: Path | None) -> None:
    """Write the table; images are those of `root`, or in the folder already."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "masks"):
        if root is not None and (root / name).exists() and not (folder / name).exists():
            shutil.copytree(root / name, folder / name)  # a link would lead out of the data root
    rows.to_csv(folder / "train.csv", index=False, quoting=csv.QUOTE_MINIMAL)


def every_fifth(groups: Iterable[Any]) -> np.ndarray:
    """Fold of each row: 0 for each fifth group, in the order of their names, else 1."""
    _, number = np.unique(list(groups), return_inverse=True)
    return np.where(number % EVERY == 0, 0, 1)


def scenes(out: Path, data: Path) -> None:
    """CamVid's frames and tiles; 30 consecutive frames are held out together."""
    for name, target in (("camvid", "mask"), ("camvid_tiles", "labels")):
        table = pd.read_csv(data / name / "train.csv", keep_default_na=False)
        table = table.assign(group=table["block"], fold=every_fifth(table["block"]))
        write(out / name, table[["id", "image", target, "group", "fold"]], data / name)


def houses(out: Path, data: Path) -> None:
    """Log price of one picture, the house's front."""
    table = pd.read_csv(data / "houses/train.csv", dtype={"house": str})
    table = table[table["view"] == "frontal"]
    table = table.assign(value=np.log(table["price"]), group=table["house"], fold=every_fifth(table["house"]))
    write(out / "houses", table[["id", "image", "value", "group", "fold"]], data / "houses")


def fashion(out: Path, source: Path) -> None:
    """500, 5,000 and all 60,000 garments to train; the first 2,000 of the test set held out."""
    parts = {}
    for name in ("train", "t10k"):
        images = gzip.decompress((source / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((source / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
        parts[name] = np.frombuffer(images, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8)
    for count in (500, 5_000, 60_000):
        folder = out / f"fashion_{count}"
        rows = []
        for name, most, fold in (("train", count, 1), ("t10k", 2_000, 0)):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            for number, (image, label) in enumerate(zip(*parts[name], strict=True)):
                if number == most:
                    break
                path = f"images/{name}/{number}.png"
                if not (folder / path).exists():
                    cv2.imwrite(str(folder / path), cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))
                id = f"{name}-{number}"
                rows.append({"id": id, "image": path, "label": f"kind{label}", "group": id, "fold": fold})
        write(folder, pd.DataFrame(rows), None)


if __name__ == "__main__":
    out, data, garments = map(Path, sys.argv[1:])
    scenes(out, data)
    houses(out, data)
    if garments.exists():
        fashion(out, garments)
