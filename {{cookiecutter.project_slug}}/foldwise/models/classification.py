"""Lightning modules for one label an image and for many."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from foldwise.models.mixing import Mix
from foldwise.models.module import TrainingModule


class ClassificationModule(TrainingModule):
    """One class an image: softmax. Targets are (B, C), hard or soft.

    Args:
        mixes: mixup and cutmix of each phase, by its name; None: nowhere. The rest as `TrainingModule`.
    """

    def __init__(self, *arguments: Any, mixes: Mapping[str, Mix] | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.mixes = mixes

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, after mixup or cutmix where asked."""
        image, target, weight = batch["image"], batch["target"], batch["weight"]
        if self.mixes is not None:
            phase, _ = self.schedule.locate(self.current_epoch)
            image, target, weight = self.mixes[phase.name](image, target, weight)
        return self.loss(self.network(image), target, weight)


class MultilabelModule(ClassificationModule):
    """Any number of labels an image: a sigmoid a class."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()
