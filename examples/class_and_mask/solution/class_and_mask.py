"""A class of the picture and a mask in one run, both predicted, scored and usable by themselves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.models.losses import CrossEntropy
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch, Network
from foldwise.models.networks import build_network


class ClassAndMask(Network):
    """A decoder of smp's gives the mask; the encoder's last stage, pooled, the class."""

    def __init__(
        self,
        name: str,
        encoder: str,
        channels: Mapping[str, int],
        outputs: Mapping[str, int],
        options: Mapping[str, Any] | None = None,
        weights: Path | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        architecture = {"library": "smp", "name": name, "encoder": encoder, "options": options or {}}
        net: Any = build_network(
            architecture, channels["image"], outputs["mask"], weights and Path(weights), pretrained
        )
        self.encoder, self.decoder, self.mask_head = net.encoder, net.decoder, net.segmentation_head
        self.classifier = nn.Linear(net.encoder.out_channels[-1], outputs["logits"])

    @property
    def multiple(self) -> int:
        return int(self.encoder.output_stride)

    def forward(self, batch: Batch) -> Batch:
        stages = self.encoder(batch["image"])
        return {
            "logits": self.classifier(stages[-1].mean((2, 3))),
            "mask": self.mask_head(self.decoder(stages)),
        }


class Module(TrainingModule):
    """The loss of the class, and `weight` times cross-entropy of the mask."""

    def __init__(self, setup: Any, weight: float = 1.0) -> None:
        super().__init__(setup)
        self.weight, self.mask_loss = weight, CrossEntropy()

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        classes = self.loss(outputs["logits"], batch["target"], batch["weight"])
        masks = self.mask_loss(outputs["mask"], batch["target_mask"], batch["weight"])
        share = F.softmax(outputs["mask"].detach(), 1)[:, 1:].mean()
        return {"loss": classes + self.weight * masks, "masks": masks.detach(), "foreground": share}
