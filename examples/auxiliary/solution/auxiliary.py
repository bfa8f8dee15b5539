"""An auxiliary head: the network also learns a number of the table that is known in training only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.data import samples
from foldwise.data.fields import Field, Item
from foldwise.data.samples import Rows, Sample
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch, Network
from foldwise.models.networks import build_encoder


class Samples(samples.Samples):
    """One picture an item, and the column `size` while it trains."""

    target_columns = ("size",)
    fields = {"image": Field("image"), "size": Field("values", train_only=True)}

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        sample = super().read(rows, item, state, rng)
        if rows.targets:
            sample["size"] = rows.numbers("size")[item.rows[0]]
        return sample


class TwoHeads(Network):
    """Classes and a number from one encoder; the number's head is left out of what is saved."""

    auxiliary = ("size_head",)

    def __init__(
        self,
        name: str,
        channels: Mapping[str, int],
        outputs: Mapping[str, int],
        weights: Path | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(name, channels["image"], weights, pretrained)
        self.classifier = nn.Linear(self.encoder.num_features, outputs["logits"])
        self.size_head: nn.Module | None = nn.Linear(self.encoder.num_features, 1)

    def forward(self, batch: Batch) -> Batch:
        features = self.encoder(batch["image"])
        outputs = {"logits": self.classifier(features)}
        if self.size_head is not None:
            outputs["size"] = self.size_head(features).squeeze(1)
        return outputs


class Module(TrainingModule):
    """The loss of the classes, and `weight` times that of the number."""

    def __init__(self, setup: Any, weight: float = 0.3) -> None:
        super().__init__(setup)
        self.weight = weight

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        main = self.loss(outputs["logits"], batch["target"], batch["weight"])
        size = F.smooth_l1_loss(outputs["size"], batch["size"])
        return {"loss": main + self.weight * size, "size": size.detach()}
