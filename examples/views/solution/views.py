"""Several pictures of one thing, as many as there are: pooled to one answer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from foldwise.data import samples
from foldwise.data.fields import Field, Item
from foldwise.data.images import read_image
from foldwise.data.samples import Rows, Sample, group_items
from foldwise.models.network import Batch, Network
from foldwise.models.networks import build_encoder
from foldwise.models.pools import AttentionPool, MeanPool, encode_stack

POOLS: dict[str, Callable[[int], nn.Module]] = {"mean": lambda _: MeanPool(), "attention": AttentionPool}


class Samples(samples.Samples):
    """All pictures of a `thing`, which is what is predicted."""

    columns = ("thing",)
    fields = {"image": Field("image", ragged=True)}

    def items(self, rows: Rows) -> list[Item]:
        return group_items(rows, "thing")

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        return {"image": [read_image(path, self.mode) for path in self.files(rows, item)]}


class Pooled(Network):
    """An encoder for every picture, a pool over them, a classifier.

    Args:
        pool: "mean" or "attention".
    """

    def __init__(
        self,
        name: str,
        channels: Mapping[str, int],
        outputs: Mapping[str, int],
        pool: str = "attention",
        weights: Path | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(name, channels["image"], weights, pretrained)
        self.pool: nn.Module = POOLS[pool](self.encoder.num_features)
        self.classifier = nn.Linear(self.encoder.num_features, outputs["logits"])

    def forward(self, batch: Batch) -> Batch:
        valid = batch["image_valid"]
        return {"logits": self.classifier(self.pool(encode_stack(self.encoder, batch["image"], valid), valid))}
