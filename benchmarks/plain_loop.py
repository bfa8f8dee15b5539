"""A training loop as one writes it in an evening, on the embedded sample of digits; training_loop.py runs it.

    cd build/demo/demo && ../../../.venv/bin/python ../../../benchmarks/plain_loop.py <epochs>

Prints the seconds of each epoch. Nothing of the project takes part: OpenCV and the same two albumentations, a Dataset,
AdamW on one cycle, no validation.
"""

import csv
import sys
import time
from pathlib import Path

import albumentations
import cv2
import numpy as np
import timm
import torch
from torch.utils.data import DataLoader, Dataset

ROOT = Path("data/sample/multiclass")
SIDE = 32  # as configs/data/sample.yaml has it


class Pictures(Dataset):
    """The training pictures of fold 0."""

    def __init__(self) -> None:
        with (ROOT / "prepared/folds.csv").open() as folds, (ROOT / "train.csv").open() as table:
            held = {row["id"] for row in csv.DictReader(folds) if row["fold"] == "0"}
            self.rows = [row for row in csv.DictReader(table) if row["id"] not in held]
        self.classes = sorted({row["label"] for row in self.rows})
        self.augment = albumentations.Compose(
            [
                albumentations.Affine(translate_percent=(-0.06, 0.06), scale=(0.9, 1.1), rotate=(-10, 10), p=0.7),
                albumentations.RandomBrightnessContrast(0.15, 0.15, p=0.5),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        row = self.rows[index]
        image = self.augment(image=cv2.cvtColor(cv2.imread(str(ROOT / row["image"])), cv2.COLOR_BGR2RGB))["image"]
        image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)  # the pictures vary in size
        return image.transpose(2, 0, 1).astype(np.float32) / 255, self.classes.index(row["label"])


def main() -> None:
    """Train, and print the seconds of each epoch."""
    epochs, batch = int(sys.argv[1]), 16
    torch.set_num_threads(1)
    pictures = Pictures()
    loader = DataLoader(pictures, batch, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True)
    net = timm.create_model("test_resnet", num_classes=len(pictures.classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        start = time.perf_counter()
        for image, target in loader:
            loss = torch.nn.functional.cross_entropy(net(image.to(memory_format=torch.channels_last)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"{time.perf_counter() - start:.2f}", flush=True)


if __name__ == "__main__":
    main()
