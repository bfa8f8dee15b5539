"""Picture and metadata in one network: a number and a category of the table beside the picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from foldwise.data import samples
from foldwise.data.fields import Field, Item
from foldwise.data.samples import Rows, Sample
from foldwise.models.network import Batch, Network
from foldwise.models.networks import build_encoder


class Samples(samples.Samples):
    """The picture, `age` standardised by the training items with a flag where it is missing, and the code of `sex`.

    What a test table brings beyond the training items is code 0: other.
    """

    columns = ("age", "sex")
    fields = {"image": Field("image"), "age": Field("values"), "sex": Field("codes")}

    def fit(self, rows: Rows, items: Sequence[Item]) -> dict[str, Any]:
        own = [item.rows[0] for item in items]
        age = rows.numbers("age")[own]
        return {
            "mean": float(np.nanmean(age)),
            "std": max(float(np.nanstd(age)), 1e-6),
            "sexes": sorted(set(map(str, rows["sex"][own]))),
        }

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        row = item.rows[0]
        age, sex = rows.numbers("age")[row], str(rows["sex"][row])
        known = np.isfinite(age)
        return super().read(rows, item, state, rng) | {
            "age": [(age - state["mean"]) / state["std"] if known else 0.0, float(not known)],
            "sex": 1 + state["sexes"].index(sex) if sex in state["sexes"] else 0,
        }


class Fused(Network):
    """Features of the picture beside a small network of the metadata.

    Args:
        categories: codes of `sex` that there may be, "other" among them.
    """

    def __init__(
        self,
        name: str,
        channels: Mapping[str, int],
        outputs: Mapping[str, int],
        categories: int = 8,
        weights: Path | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(name, channels["image"], weights, pretrained)
        self.sex = nn.Embedding(categories, 8)
        self.metadata = nn.Sequential(nn.Linear(2 + 8, 32), nn.ReLU())
        self.classifier = nn.Linear(self.encoder.num_features + 32, outputs["logits"])

    def forward(self, batch: Batch) -> Batch:
        metadata = self.metadata(torch.cat([batch["age"], self.sex(batch["sex"])], 1))
        return {"logits": self.classifier(torch.cat([self.encoder(batch["image"]), metadata], 1))}
