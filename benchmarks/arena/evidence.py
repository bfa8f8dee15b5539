"""What a rival knows of a set, and what is kept of its predictions: enough to score any sample of the held-out rows."""

from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sets import SETS

SIZES = {
    "camvid": (192, 256),
    "camvid_tiles": (128, 128),
    "houses": (160, 160),
}  # of all rivals; plan.py chooses its own


class World:
    """A set: rows, targets, pictures at the rivals' size."""

    def __init__(self, folder: Path) -> None:
        self.root, self.name = folder, folder.name
        self.frame = pd.read_csv(folder / "train.csv", keep_default_na=False)
        entry = SETS[self.name]
        self.task, self.column = entry["task"], entry["target"]
        self.classes, self.ignore = entry.get("classes"), entry.get("ignore", 255)
        self.size = SIZES.get(self.name, (64, 64))
        fold = self.frame["fold"].to_numpy()
        self.trained, self.held = np.flatnonzero(fold == 1), np.flatnonzero(fold == 0)

    @cached_property
    def names(self) -> list[str]:
        """Columns of the predictions, sorted as the project sorts them."""
        if self.classes or self.task == "regression":
            return self.classes or ["value"]
        return sorted({name for cell in self.frame[self.column] for name in cell.split()})

    @property
    def columns(self) -> int:
        return len(self.names)

    @cached_property
    def target(self) -> np.ndarray:
        """Class numbers (N,), labels (N, C) float32, or numbers (N, 1) float32."""
        cells = self.frame[self.column]
        if self.task == "multiclass":
            return np.array([self.names.index(cell) for cell in cells])
        if self.task == "regression":
            return cells.to_numpy(np.float32)[:, None]
        return np.array([[name in cell.split() for name in self.names] for cell in cells], np.float32)

    def standardize(self) -> tuple[float, float]:
        """Give numbers mean 0 and standard deviation 1 over the training rows; return what they had."""
        if self.task != "regression":
            return 0.0, 1.0
        cells = self.frame[self.column].astype(float)
        mean, std = float(cells[self.trained].mean()), float(cells[self.trained].std())
        self.frame[self.column] = (cells - mean) / std
        return mean, std

    def image(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, stretched to the rivals' size."""
        image = cv2.imread(str(self.root / self.frame["image"].iat[row]), cv2.IMREAD_COLOR)
        return cv2.cvtColor(cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)

    def mask(self, row: int, size: tuple[int, int] | None = None) -> np.ndarray | None:
        """The mask at its own or another size; None if the set has none."""
        if self.task != "segmentation":
            return None
        mask = cv2.imread(str(self.root / self.frame["mask"].iat[row]), cv2.IMREAD_UNCHANGED)
        return mask if size is None else cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)


def counts(world: World, row: int, answer: np.ndarray) -> np.ndarray:
    """Pixels (C, 3) of a class that are in both, only predicted, only in the mask."""
    mask = world.mask(row)
    assert mask is not None
    known, both = mask != world.ignore, np.zeros((world.columns, 3))
    for number in range(world.columns):
        true, found = (mask == number) & known, (answer == number) & known
        both[number] = (true & found).sum(), (found & ~true).sum(), (true & ~found).sum()
    return both


def save(path: Path, world: World, raw: list[np.ndarray], steps: int) -> None:
    """Keep the evidence of the held-out rows, from raw outputs (C,) or (C, H, W), or masks (H, W)."""
    if world.task == "segmentation":
        values = []
        for row, map in zip(world.held, raw, strict=True):
            height, width = world.mask(row).shape
            if map.ndim == 3:
                map = cv2.resize(map.transpose(1, 2, 0), (width, height)).argmax(2)
            values.append(counts(world, row, map))
    else:
        values = raw
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, values=np.stack(values).astype(np.float32), steps=steps)


def score(world: World, values: np.ndarray, chosen: np.ndarray) -> float:
    """Mean IoU, accuracy, R2 or F2 at the best threshold, of some of the held-out rows by position."""
    values = values[chosen]
    if world.task == "segmentation":
        true, more, less = values.sum(0).T
        seen = true + more + less > 0
        return float((true[seen] / (true + more + less)[seen]).mean())
    target = world.target[world.held[chosen]]
    if world.task == "multiclass":
        return float((values.argmax(1) == target).mean())
    if world.task == "regression":
        return float(1 - ((values - target) ** 2).sum() / ((target - target.mean()) ** 2).sum())
    return max(f_beta(values > cut, target > 0) for cut in np.quantile(values, np.linspace(0.3, 0.95, 40)))


def f_beta(found: np.ndarray, target: np.ndarray, beta: float = 2.0) -> float:
    """Mean over pictures of F-beta; 1 where there is neither a label nor a prediction."""
    both = (found & target).sum(1)
    total = beta**2 * target.sum(1) + found.sum(1)
    return float(np.where(total > 0, (1 + beta**2) * both / np.maximum(total, 1), 1.0).mean())
