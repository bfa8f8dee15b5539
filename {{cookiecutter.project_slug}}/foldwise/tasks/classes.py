"""Classification tasks: one class per image, any number of labels, or masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from foldwise.data.class_masks import ClassMasks, SoftMasks
from foldwise.data.fields import Field
from foldwise.data.masks import StoredMasks
from foldwise.errors import Refusal
from foldwise.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from foldwise.data.problems import Check
    from foldwise.tasks.views import View

SMALLEST = 1e-7  # minimum probability in a geometric mean, so that a 0 in one view does not rule a class out
ROUNDING = 1e-6  # probabilities may be this far outside of [0, 1]; they are clipped
SUM = 1e-2  # tolerance for the sum of exclusive probabilities, for files with few decimals


class Classes(Task):
    """Class probabilities: a softmax if classes are exclusive, otherwise a sigmoid per class."""

    probabilities = True
    means = ("arithmetic", "geometric")

    def read_target(
        self, raw: "pd.DataFrame", columns: Sequence[str], soft: bool, names: list[str] | None, check: "Check"
    ) -> tuple[list[str] | None, np.ndarray | None]:
        from foldwise.data.targets import hard_targets, soft_targets

        if soft:
            return soft_targets(raw, list(columns), self, names, check)
        return hard_targets(raw[columns[0]], self, names, check)

    def activate(self, raw: "Tensor") -> "Tensor":
        return raw.float().softmax(1) if self.exclusive else raw.float().sigmoid()

    def average(self, values: "Tensor", mean: str) -> "Tensor":
        """As `Task.average`. The geometric mean is normalised over the classes (exclusive), or over each class and its
        complement, which equals the sigmoid of the mean logit."""
        if len(values) == 1:
            return values[0]
        if mean == "arithmetic":
            return values.nanmean(0)
        positive = values.clamp(min=SMALLEST).log().nanmean(0).exp()
        if self.exclusive:
            return positive / positive.sum(1, keepdim=True)
        return positive / (positive + (1 - values).clamp(min=SMALLEST).log().nanmean(0).exp())

    def problems(self, values: np.ndarray) -> dict[str, np.ndarray]:
        outside = np.asarray(((values < -ROUNDING) | (values > 1 + ROUNDING)).any(axis=1))
        problems: dict[str, np.ndarray] = {**super().problems(values), "are outside 0 to 1": outside}
        if self.exclusive and not any(bad.any() for bad in problems.values()):
            problems["do not sum to 1 over the classes"] = np.abs(values.sum(axis=1) - 1) > SUM
        return problems

    def clip(self, values: np.ndarray) -> np.ndarray:
        return values.clip(0, 1)

    def count(self, target: np.ndarray) -> np.ndarray:
        """The targets; soft ones are shares."""
        return target.astype(np.float64)

    def strata(self, target: np.ndarray) -> np.ndarray:
        """The classes; soft targets count as their argmax, or from 0.5 on."""
        if self.exclusive:
            return np.eye(target.shape[1])[target.argmax(axis=1)]
        return (target >= 0.5).astype(np.float64)

    def invert(self, values: "Tensor", smallest: float) -> "Tensor":
        values = values.clamp(min=smallest)
        return values.log() if self.exclusive else values.clamp(max=1 - smallest).logit()

    def fallback(self, target: np.ndarray | None, columns: int) -> np.ndarray:
        """Share of each class in the training table."""
        return np.zeros(columns) if target is None else np.asarray(np.nanmean(target, axis=0, dtype=np.float64))


class Multiclass(Classes):
    """One class per image."""

    name, column, metric = "multiclass", "label", "accuracy"
    exclusive, fewest = True, 2
    metrics = ("accuracy", "macro_f1", "log_loss")


class Multilabel(Classes):
    """Zero or more labels per image."""

    name, column, metric = "multilabel", "labels", "f_beta"
    metrics = ("f_beta", "macro_f1", "log_loss")


class Segmentation(Classes):
    """One class per pixel, background included; targets are mask files."""

    name, column, metric, kind = "segmentation", "mask", "mean_iou", "maps"
    exclusive, fewest = True, 2
    field = Field("mask", train_only=True)
    metrics: ClassVar[tuple[str, ...]] = ("mean_iou", "dice")
    stored: ClassVar[type[StoredMasks]] = StoredMasks

    def read_target(
        self, raw: "pd.DataFrame", columns: Sequence[str], soft: bool, names: list[str] | None, check: "Check"
    ) -> tuple[list[str] | None, np.ndarray | None]:
        if names is None:
            check.problems.append(
                f"{self.name} needs data.classes: the list of class names, where class i has pixel value i"
            )
        return names, None

    def undo(self, value: "Tensor", view: "View", size: Sequence[int]) -> "Tensor":
        return view.inverse(value, size)

    def answer(self, values: np.ndarray) -> np.ndarray:
        return values.argmax(axis=0)

    def describe_settings(self) -> str:
        masks = next(setting for setting, name in MASKS.items() if name == self.name)
        others = "" if self.exclusive else f"data.masks={masks} loss=bce_dice "
        return f"task=segmentation {others}metric={self.metric}"


class Overlapping(Segmentation):
    """A mask per class: any number of classes per pixel, or none."""

    name, metric = "segmentation_overlapping", "dice"
    exclusive, fewest = False, 1
    field = Field("masks", train_only=True)
    metrics: ClassVar[tuple[str, ...]] = ("dice", "mean_iou")
    stored = ClassMasks

    def read_target(
        self, raw: "pd.DataFrame", columns: Sequence[str], soft: bool, names: list[str] | None, check: "Check"
    ) -> tuple[list[str] | None, np.ndarray | None]:
        names = list(columns) if names is None and soft else names
        if names is None:
            check.problems.append(f"{self.name} needs data.classes: the list of class names")
        elif soft and len(names) != len(columns):
            check.problems.append(
                f"data.classes has {len(names)} names ({', '.join(names)}), but data.columns.target {len(columns)} "
                f"columns ({', '.join(columns)}): list a column per class, in the same order"
            )
        return names, None

    def answer(self, values: np.ndarray) -> np.ndarray:
        return values >= 0.5


class Soft(Overlapping):
    """A number from 0 to 1 per class and pixel."""

    name, metric = "segmentation_soft", "pixel_mae"
    metrics = ("pixel_mae", "pixel_rmse", "dice")
    stored = SoftMasks


# `data.masks` -> task
MASKS = {"exclusive": "segmentation", "overlapping": "segmentation_overlapping", "soft": "segmentation_soft"}


def task_of_masks(task: str, masks: str) -> str:
    """Name of the task for the settings `task` and `data.masks`."""
    if masks not in MASKS:
        raise Refusal(f"data.masks is {masks!r}; it must be one of {', '.join(MASKS)}")
    return MASKS[masks] if task == "segmentation" else task
