"""A clip: frames in their order, of which training takes random ones, pooled by attention."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from foldwise.data import samples
from foldwise.data.fields import Item
from foldwise.data.images import read_image
from foldwise.data.samples import Rows, Sample, group_items
from foldwise.models.network import Batch, Network
from foldwise.models.networks import build_encoder
from foldwise.models.pools import AttentionPool, encode_stack


class Samples(samples.Samples):
    """Frames of a `clip`, by their `number`: one of each equal segment, a random one in training, else the middle.

    Args:
        frames: segments.
    """

    columns = ("clip", "number")

    def __init__(self, mode: str = "stored", frames: int = 4) -> None:
        super().__init__(mode)
        self.frames = frames

    def items(self, rows: Rows) -> list[Item]:
        return group_items(rows, "clip", order="number")

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        edges = np.linspace(0, len(item.rows), self.frames + 1)
        shares = np.full(self.frames, 0.5) if rng is None else rng.random(self.frames)
        chosen = np.minimum(edges[:-1] + shares * np.diff(edges), len(item.rows) - 1).astype(int)
        files = self.files(rows, item)
        return {"image": [read_image(files[frame], self.mode) for frame in chosen]}


class Clips(Network):
    """An encoder for every frame, attention over them, a classifier."""

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
        self.pool = AttentionPool(self.encoder.num_features)
        self.classifier = nn.Linear(self.encoder.num_features, outputs["logits"])

    def forward(self, batch: Batch) -> Batch:
        return {"logits": self.classifier(self.pool(encode_stack(self.encoder, batch["image"])))}
