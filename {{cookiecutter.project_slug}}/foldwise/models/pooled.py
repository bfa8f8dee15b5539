"""A network of an item's pictures and metadata, as `foldwise.data.units.Units` reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foldwise.data.features import FIELD
from foldwise.data.units import CODES
from foldwise.errors import Refusal
from foldwise.models.features import EncodersNetwork
from foldwise.models.heads import SUFFIX, Features, Heads
from foldwise.models.network import Batch
from foldwise.models.networks import build_encoder, only
from foldwise.models.pools import build_pool, encode_stack

FUSIONS = ("concat", "film", "gated")


class PooledNetwork(EncodersNetwork):
    """Pictures through a timm encoder and a pool, fused with metadata; one output, and those of `heads`, out.

    Args:
        name, options: of the encoder.
        encoders: in place of it, those of `data.features`.
        normalize: standardise the features of the pictures by a BatchNorm.
        pool, pool_options: see `foldwise.models.pools.POOLS`; a list: side by side, with the options of each by name;
            null: an item has one picture.
        chunk: pictures per pass of the encoder while no BatchNorm trains, see `encode_stack`; null: all at once.
        numbers, categories: columns of metadata, as the reader's.
        fusion: "concat" puts the features side by side; "film" scales and shifts those of the pictures by the metadata
            (Perez et al. 2018, arXiv:1709.07871); "gated" weights all by gates (Arevalo et al. 2017, arXiv:1702.01992).
        fusion_options: `hidden` and `embedding` of `Fusion`.
        metadata_dropout: share of training samples whose metadata is left out.
        hidden: widths of hidden layers in front of the classifier, with BatchNorm.
        dropout: of the inputs of each of them and of the classifier.
        heads: see `Heads`; of rows, on what the classifier sees.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        outputs: Mapping[str, int],
        name: str = "",
        pool: str | Sequence[str] | None = None,
        pool_options: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        chunk: int | None = None,
        numbers: Sequence[str] = (),
        categories: Sequence[str] = (),
        fusion: str = "concat",
        fusion_options: Mapping[str, Any] | None = None,
        metadata_dropout: float = 0.0,
        dropout: float = 0.0,
        weights: Any = None,
        pretrained: bool = False,
        encoders: Sequence[Mapping[str, Any]] = (),
        normalize: bool = False,
        hidden: Sequence[int] = (),
        heads: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        field, heads = only(channels, "image field"), heads or {}
        super().__init__(encoders, channels[field], weights)
        if chunk is not None and not (type(chunk) is int and chunk >= 1):
            raise Refusal(f"model.chunk is {chunk!r}; it must be a whole number from 1, or null")
        self.columns = {"numbers": list(numbers), "categories": list(categories)}
        self.field, self.chunk = field, chunk
        self.output = only({name: count for name, count in outputs.items() if name not in heads}, "output")
        if not encoders:
            self.encoder = build_encoder(name, channels[field], weights, pretrained, options)
        width = self.width or self.encoder.num_features
        self.normalize = nn.BatchNorm1d(width, affine=False) if normalize else None
        self.pool = None if pool is None else build_pool(pool, width, **(pool_options or {}))
        width = width if self.pool is None else self.pool.width
        self.fusion: Fusion | None = None
        if numbers or categories:
            given = len(numbers), len(categories), fusion, metadata_dropout
            self.fusion = Fusion(width, *given, **(fusion_options or {}))
            width = self.fusion.width
        layers: list[nn.Module] = [nn.BatchNorm1d(width)] if hidden else []
        for units in hidden:
            layers += [nn.Dropout(dropout), nn.Linear(width, units), nn.BatchNorm1d(units), nn.ReLU()]
            width = units
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, outputs[self.output])
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)  # few items would leave random weights in most directions
        self.heads = Heads(self, heads, outputs, channels[field], width)
        self.auxiliary = [f"heads.{name}{SUFFIX}" for name, head in heads.items() if not head["keep"]]

    def forward(self, batch: Batch) -> Batch:
        for name, columns in self.columns.items():
            count = 2 * len(columns) if name == "numbers" else len(columns)
            if (batch[name].shape[1] if name in batch else 0) != count:
                raise Refusal(f"model.{name} and samples.{name} differ: set model.{name}=${{samples.{name}}}")
        return self.answer(self.encode(batch), None if self.fusion is None else self.fusion.encode(batch))

    def encode(self, batch: Batch) -> Tensor:
        """Features of the pictures (B, D)."""
        field = FIELD if FIELD in batch else self.field
        images, valid = batch[field], batch.get(f"{field}_valid")  # valid only if stacks vary in length
        stacked = images.ndim == (3 if field == FIELD else 5)
        if stacked != (self.pool is not None):
            found, advice = ("stacks of pictures", "choose one") if stacked else ("one picture", "set null")
            raise Refusal(f"model.pool is {'null' if self.pool is None else 'set'}, but items have {found}: {advice}")
        if field == FIELD:
            features = images
        elif self.pool is None:
            features = self.encoder(images)
        else:
            features = encode_stack(self.encoder, images, valid, self.chunk)
        if self.normalize is not None:
            features = self._normalized(features, valid)
        return features if self.pool is None else self.pool(features, valid, batch.get("slot"))

    def answer(self, pictures: Tensor, metadata: Tensor | None) -> Batch:
        """Outputs for features of the pictures (B, D) and of the metadata (B, H)."""
        fused = pictures if self.fusion is None or metadata is None else self.fusion(pictures, metadata)
        features = self.hidden(fused)
        return {self.output: self.classifier(self.dropout(features)), **self.heads(Features((), features, (), {}))}

    def shuffle(self, batch: Batch, column: str, order: Tensor) -> Batch:
        """Reorder the values (B, ...) of one column of metadata, and whether they are missing, among the items."""
        shuffled = {}
        for name, columns in self.columns.items():
            if column in columns:
                shuffled[name] = batch[name].clone()
                for index in range(columns.index(column), batch[name].shape[1], len(columns)):
                    shuffled[name][:, index] = batch[name][order, index]
        return batch | shuffled

    def _normalized(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """Standardised features (..., D); padding stays."""
        assert self.normalize is not None
        if valid is None:
            return self.normalize(features.flatten(0, -2)).view_as(features)
        if torch.onnx.is_in_onnx_export():
            return self.normalize(features.flatten(0, 1)).view_as(features) * valid.unsqueeze(-1)
        result = features.clone()
        result[valid] = self.normalize(features[valid])
        return result


class Fusion(nn.Module):
    """Encodes `numbers` (B, 2 K) and `categories` (B, J) of a batch, and fuses them with features (B, D).

    Args:
        hidden: width of both hidden layers of the metadata.
        embedding: width of the embedding of a category; null: one-hot.
    """

    def __init__(
        self,
        features: int,
        numbers: int,
        categories: int,
        kind: str,
        dropout: float,
        hidden: int = 64,
        embedding: int | None = 8,
    ) -> None:
        super().__init__()
        if kind not in FUSIONS:
            raise Refusal(f"model.fusion is {kind!r}; it must be one of {', '.join(FUSIONS)}")
        if not 0 <= dropout < 1:
            raise Refusal(f"model.metadata_dropout is {dropout!r}; it must be from 0 to below 1")
        self.kind, self.dropout = kind, dropout
        self.embed = nn.ModuleList(
            OneHot() if embedding is None else nn.Embedding(CODES, embedding) for _ in range(categories)
        )
        inputs = 2 * numbers + (embedding or CODES) * categories
        self.metadata = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        both = features + hidden
        gates = {"film": (hidden, 2 * features), "gated": (both, both)}
        self.gate = nn.Linear(*gates[kind]) if kind in gates else nn.Identity()
        self.width = features if kind == "film" else both

    def encode(self, batch: Batch) -> Tensor:
        """Features of the metadata (B, `hidden`); 0 where it is left out in training."""
        parts = [batch["numbers"]] if "numbers" in batch else []
        parts += [layer(batch["categories"][:, index]) for index, layer in enumerate(self.embed)]
        metadata = self.metadata(torch.cat(parts, 1))
        if self.training and self.dropout:
            metadata = metadata * (torch.rand(len(metadata), 1, device=metadata.device) >= self.dropout)
        return metadata

    def forward(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Fuse to (B, `width`)."""
        if self.kind == "film":
            scale, shift = self.gate(metadata).chunk(2, 1)
            return features * (1 + scale) + shift
        both = torch.cat([features, metadata], 1)
        return both * self.gate(both).sigmoid() if self.kind == "gated" else both


class OneHot(nn.Module):
    """Codes (B,) to (B, CODES)."""

    def forward(self, codes: Tensor) -> Tensor:
        return nn.functional.one_hot(codes, CODES).float()
