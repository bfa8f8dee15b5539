"""Networks on stored features: encoders that make them, and heads that train on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foldwise.data.batches import unit_range
from foldwise.data.features import FIELD
from foldwise.errors import Refusal
from foldwise.models.heads import outputs_of
from foldwise.models.network import Batch, Network, prefixed
from foldwise.models.networks import build_encoder, only

POOLS = {"mean": lambda maps: maps.mean(dim=(2, 3)), "max": lambda maps: maps.amax(dim=(2, 3))}


class Encoder(nn.Module):
    """A timm network that turns images into features, pooled over the pixels.

    Args:
        stages: "all" that timm lists (of a transformer, its last blocks), some by number, modules by name, or "last":
            the network's own pooled features.
        mean, std: of the images in [0, 1], one value a channel.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        stages: str | Sequence[int] | Sequence[str],
        pool: str,
        mean: Sequence[float],
        std: Sequence[float],
        options: Mapping[str, Any] | None = None,
        weights: Path | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.named = [] if isinstance(stages, str) else [name for name in stages if isinstance(name, str)]
        chosen: dict[str, Any] = {} if stages == "last" or self.named else {"features_only": True}
        if not isinstance(stages, str) and chosen:
            chosen["out_indices"] = list(stages)
        self.net = build_encoder(name, channels, weights, pretrained, {**(options or {}), **chosen})
        self.pool = None if stages == "last" else POOLS[pool]
        for what, values in (("mean", mean), ("std", std)):
            self.register_buffer(what, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), uint8 or in [0, 1], to (B, width)."""
        return torch.cat(self.parts(images), dim=1)

    def parts(self, images: Tensor) -> list[Tensor]:
        """The features of each stage."""
        with outputs_of(self.net, self.named) as named:
            found = self.net((unit_range(images) - self.get_buffer("mean")) / self.get_buffer("std"))
        if self.pool is None:
            return [found]
        found = [named[name] for name in self.named] or found
        channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        return [self.pool(stage.permute(0, 3, 1, 2) if channels_last else stage) for stage in found]


class Encoders(nn.ModuleList):
    """Encoders side by side: images (B, C, H, W) to (B, the sum of their widths)."""

    def __init__(self, encoders: Sequence[Mapping[str, Any]], channels: int) -> None:
        arguments = [{name: value for name, value in each.items() if name != "widths"} for each in encoders]
        super().__init__(Encoder(channels=channels, **each) for each in arguments)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([encoder(images) for encoder in self], dim=1)


class EncodersNetwork(Network):
    """Base of networks that can train on stored features, without the encoders.

    The encoders are saved with it in `self.encoder`, and a loaded network takes images.

    Args:
        encoders: arguments of each `Encoder`, and the `widths` of its stages; none: `self.encoder` is the subclass's.
        files: weights of the encoders, in training.
    """

    def __init__(self, encoders: Sequence[Mapping[str, Any]], channels: int, files: Sequence[Path] | None) -> None:
        super().__init__()
        self.frozen, self.files = bool(encoders), files if encoders else None
        self.width = sum(sum(encoder["widths"]) for encoder in encoders)
        if encoders and files is None:
            self.encoder: Any = Encoders(encoders, channels)

    def depths(self, coarse: bool = False) -> dict[str, int]:
        return {} if self.frozen else super().depths(coarse)  # what trains on stored features is new

    def lasting_state(self) -> dict[str, Tensor]:
        state = super().lasting_state()
        for number, file in enumerate(self.files or ()):
            state |= prefixed(load_file(file), f"encoder.{number}.net")
        return state


class FeatureNetwork(EncodersNetwork):
    """A head on the features of frozen encoders, for each output.

    Args:
        hidden: widths of the hidden layers; none for a linear head.
        dropout: of the inputs of each layer.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        outputs: Mapping[str, int],
        encoders: Sequence[Mapping[str, Any]] = (),
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        weights: Sequence[Path] | None = None,
        pretrained: bool = False,
    ) -> None:
        field = only(channels, "image field")
        super().__init__(encoders, channels[field], weights)
        if not encoders:
            raise Refusal("this network trains on stored features: make some with tools/features.py, and name them")
        if not isinstance(hidden, Sequence) or not all(type(width) is int and width >= 1 for width in hidden):
            raise Refusal(f"model.hidden is {hidden!r}; it must be a list of whole numbers from 1, such as [512]")
        self.field, self.hidden, self.dropout = field, hidden, dropout
        self.heads = nn.ModuleDict({name: self.build_head(self.width, columns) for name, columns in outputs.items()})

    def build_head(self, width: int, columns: int) -> nn.Module:
        """Map standardised features (B, width) to an output (B, columns). It starts with equal probabilities."""
        layers: list[nn.Module] = [nn.BatchNorm1d(width, affine=False)]
        for hidden in self.hidden:
            layers += [nn.Dropout(self.dropout), nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        last = nn.Linear(width, columns)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*layers, nn.Dropout(self.dropout), last)

    def forward(self, batch: Batch) -> Batch:
        features = batch[FIELD] if FIELD in batch else self.encoder(batch[self.field])
        return {name: head(features) for name, head in self.heads.items()}
