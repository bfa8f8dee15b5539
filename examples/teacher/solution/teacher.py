"""A loss that sees the image, and a frozen teacher beside the network."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from foldwise.inference.weights import load_model
from foldwise.models.module import Frozen, TrainingModule
from foldwise.models.network import Batch


class Module(TrainingModule):
    """The loss of the labels; what a teacher says of the same images; and more weight for images of contrast.

    Args:
        teacher: a model folder, such as runs/<name>/full/model: of a run that never saw the folds that this one is
            scored on, or the score leaks.
        weight: of the teacher in the loss, in [0, 1].
        temperature: of its probabilities.
    """

    def __init__(self, setup: Any, teacher: str, weight: float = 0.5, temperature: float = 2.0) -> None:
        super().__init__(setup)
        self.teacher = Frozen(load_model(Path(teacher)).network)
        self.weight, self.temperature = weight, temperature

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        image = batch["image"].float()
        contrast = image.flatten(1).std(1)
        weight = batch["weight"] * contrast / contrast.mean().clamp(min=1e-6)
        labels = self.loss(outputs["logits"], batch["target"], weight)
        if not self.training:
            return {"loss": labels}
        said = self.teacher(batch)["logits"] / self.temperature
        own = F.log_softmax(outputs["logits"].float() / self.temperature, 1)
        taught = F.kl_div(own, said.float().log_softmax(1), reduction="batchmean", log_target=True)
        taught = taught * self.temperature**2  # Hinton et al. 2015, arXiv:1503.02531, section 2.1
        return {"loss": (1 - self.weight) * labels + self.weight * taught, "taught": taught.detach()}
