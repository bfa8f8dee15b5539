"""Lightning modules for one label an image and for many."""

from typing import Any

from torch import Tensor

from competition.models.mixing import Mix
from competition.models.module import TrainingModule


class ClassificationModule(TrainingModule):
    """One class an image: softmax. Targets are (B, C), hard or soft."""

    def __init__(self, *arguments: Any, mix: Mix | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.mix = mix

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, after mixup or cutmix where asked."""
        image, target, weight = batch["image"], batch["target"], batch["weight"]
        if self.mix is not None:
            image, target, weight = self.mix(image, target, weight)
        return self.loss(self.network(image), target, weight)


class MultilabelModule(ClassificationModule):
    """Any number of labels an image: a sigmoid a class."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()
