"""Networks for retrieval: generalised-mean pooling, a vector, and a head that compares it with identities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.errors import Refusal
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch, Network
from foldwise.models.networks import build_encoder, only

SMALLEST = 1e-6


class GeM(nn.Module):
    """Generalised mean, (mean x^p)^(1/p) with a trained p (Radenović et al. 2018, arXiv:1711.02512)."""

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C)."""
        return x.float().clamp(min=SMALLEST).pow(self.p).mean((2, 3)).pow(1 / self.p)


class Centres(nn.Module):
    """Cosines (B, C) of vectors (B, D) with identities, each the largest over its `subcentres` directions (Deng et al.
    2020, "Sub-center ArcFace")."""

    def __init__(self, features: int, identities: int, subcentres: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(identities, subcentres, features))
        nn.init.normal_(self.weight, std=features**-0.5)  # of length 1: the longer, the slower Adam turns them

    def forward(self, x: Tensor) -> Tensor:
        directions = F.normalize(self.weight, dim=2).flatten(0, 1)
        return (F.normalize(x.float()) @ directions.T).unflatten(1, self.weight.shape[:2]).amax(2)


class IdentityNetwork(Network):
    """One image in, a vector out: timm's convolutional network `name`, GeM, a linear layer with BatchNorm.

    Args:
        width: of the vector.
        subcentres: directions per identity, several for noisy labels; 0 takes a plain linear classifier, for a softmax
            instead of ArcFace.
    """

    auxiliary = ("identities",)

    def __init__(
        self,
        name: str,
        channels: Mapping[str, int],
        outputs: Mapping[str, int],
        library: str = "timm",
        options: Mapping[str, Any] | None = None,
        width: int = 256,
        subcentres: int = 1,
        weights: Path | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if library != "timm":
            raise Refusal(
                f"model.library is {library!r}; a network for retrieval is one of timm's: choose another model"
            )
        for setting, value, least in (("width", width, 1), ("subcentres", subcentres, 0)):
            if type(value) is not int or value < least:
                raise Refusal(f"model.{setting} is {value!r}; it must be a whole number from {least}")
        self.field, self.output = only(channels, "image field"), only(outputs, "output")
        unpooled = {**(options or {}), "global_pool": ""}
        self.encoder = build_encoder(name, channels[self.field], weights and Path(weights), pretrained, unpooled)
        self.pool = GeM()
        self.vector = nn.Sequential(nn.Linear(self.encoder.num_features, width), nn.BatchNorm1d(width))
        count = outputs[self.output]
        self.identities: nn.Module | None = Centres(width, count, subcentres) if subcentres else nn.Linear(width, count)

    def forward(self, batch: Batch) -> Batch:
        """Return the vector as the output, and in training "identities" (B, C), what the loss compares."""
        features = self.encoder(batch[self.field])
        if features.ndim != 4 or features.shape[1] != self.encoder.num_features:
            raise Refusal(
                f"the network gives features {tuple(features.shape)}, not (B, {self.encoder.num_features}, H, W): "
                "choose a convolutional network, such as model=efficientnet_lite"
            )
        vector = self.vector(self.pool(features))
        return {self.output: vector} | ({} if self.identities is None else {"identities": self.identities(vector)})


class IdentityModule(TrainingModule):
    """Trains an `IdentityNetwork` with `self.loss` of its head; with mixup, of both identities."""

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        scores = outputs["identities"]
        target = F.one_hot(batch["target"][:, 0], scores.shape[1]).to(scores.dtype)
        if "target_other" in batch:
            other = F.one_hot(batch["target_other"][:, 0], scores.shape[1]).to(scores.dtype)
            target = batch["lam"] * target + (1 - batch["lam"]) * other
        return {"loss": self.loss(scores, target, batch["weight"])}
