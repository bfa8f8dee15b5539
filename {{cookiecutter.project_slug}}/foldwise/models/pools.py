"""Encoding of image stacks, and pooling of their features (B, N, D) to one vector each.

`valid` (B, N) bool is False at padding, which follows the real images; None: there is none.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from foldwise.errors import Refusal


def encode_stack(encoder: nn.Module, images: Tensor, valid: Tensor | None = None, chunk: int | None = None) -> Tensor:
    """Encode stacks (B, N, C, H, W) to features (B, N, D); padding gets 0.

    Args:
        chunk: images per pass of the encoder; the backward pass computes their activations anew, so that memory does
            not grow with the stacks. It cannot change the result: while a BatchNorm trains, all images go in one pass.
    """
    shape = images.shape[:2]
    if torch.onnx.is_in_onnx_export():  # a graph has no tensors whose size depends on values: padding is encoded too
        encoded = encoder(images.flatten(0, 1)).unflatten(0, shape)
        return encoded if valid is None else encoded * valid.unsqueeze(-1)
    given = images.flatten(0, 1) if valid is None else images[valid]  # BatchNorm must not see padding
    if chunk and not any(isinstance(module, _BatchNorm) and module.training for module in encoder.modules()):
        learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in encoder.parameters())
        encode = partial(checkpoint, encoder, use_reentrant=False) if learns else encoder
        encoded = torch.cat([encode(part) for part in given.split(chunk)])
    else:
        encoded = encoder(given)
    if valid is None:
        return encoded.unflatten(0, shape)
    features = encoded.new_zeros(*valid.shape, encoded.shape[-1])
    features[valid] = encoded
    return features


class Pool(nn.Module):
    """Base of pools: `forward(features, valid, slot)` to (B, `width`); `slot` (B, N) only matters to `Slots`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class MeanPool(Pool):
    """Mean over the images of a stack."""

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        if valid is None:
            return features.mean(1)
        weight = valid.to(features.dtype).unsqueeze(-1)
        return (features * weight).sum(1) / weight.sum(1)


class MaxPool(Pool):
    """Maximum of each feature."""

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        return _filled(features, valid, -math.inf).amax(1)


class MaxMinPool(Pool):
    """Maximum and minimum of each feature, side by side."""

    def __init__(self, features: int) -> None:
        super().__init__(2 * features)

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        extremes = _filled(features, valid, -math.inf).amax(1), _filled(features, valid, math.inf).amin(1)
        return torch.cat(extremes, 1)


class RangePool(Pool):
    """Maximum minus minimum of each feature."""

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        return _filled(features, valid, -math.inf).amax(1) - _filled(features, valid, math.inf).amin(1)


class AttentionPool(Pool):
    """Attention-weighted mean over the images of a stack (Ilse et al. 2018, arXiv:1802.04712)."""

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__(features)
        self.gate = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        return (features * self.weights(features, valid).unsqueeze(-1)).sum(1)

    def weights(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attention weights (B, N); they sum to 1, with 0 at padding."""
        score = self.gate(features).squeeze(-1)
        if valid is not None:
            score = score.masked_fill(~valid, torch.finfo(score.dtype).min)
        return score.softmax(1)


class RecurrentPool(Pool):
    """A GRU over the images in their order: its last state of each direction, and the maximum of its outputs."""

    def __init__(self, features: int, hidden: int = 256, both: bool = False) -> None:
        directions = 2 if both else 1
        super().__init__(2 * directions * hidden)
        self.gru = nn.GRU(features, hidden, batch_first=True, bidirectional=both)

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        if valid is None:
            outputs, last = self.gru(features)
        elif torch.onnx.is_in_onnx_export():
            outputs, last = self._unpacked(features, valid)
        else:
            packed = pack_padded_sequence(features, valid.sum(1).cpu(), batch_first=True, enforce_sorted=False)
            outputs, last = self.gru(packed)
            outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=features.shape[1])
        return torch.cat([*last, _filled(outputs, valid, -math.inf).amax(1)], 1)

    def _unpacked(self, features: Tensor, valid: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs (B, N, directions * hidden) and last states of padded stacks, without packing, for a graph.

        The backward direction runs forward over the real images in reverse order, so that padding comes last in both.
        """
        count, place = valid.sum(1, keepdim=True), torch.arange(features.shape[1], device=features.device).unsqueeze(0)
        reverse = torch.where(valid, count - 1 - place, place).unsqueeze(-1)
        outputs, last = list[Tensor](), list[Tensor]()
        for direction, weights in enumerate(self.gru.all_weights):
            order = reverse if direction else place.unsqueeze(-1).expand_as(reverse)
            start = features.new_zeros(1, features.shape[0], self.gru.hidden_size)
            ordered = features.gather(1, order.expand(-1, -1, features.shape[2]))
            found, _ = torch.gru(ordered, start, list[Tensor](weights), True, 1, 0.0, False, False, True)
            order = order.expand(-1, -1, found.shape[2])
            last.append(found.gather(1, (count - 1).unsqueeze(-1).expand(-1, -1, found.shape[2]))[:, 0])
            outputs.append(found.gather(1, order))
        return torch.cat(outputs, 2), last


class RecurrentAttentionPool(AttentionPool):
    """GRUs over the images in their order, one on another; attention over the features beside all their outputs."""

    def __init__(
        self, features: int, width: int = 256, layers: int = 2, dropout: float = 0.0, hidden: int = 64
    ) -> None:
        super().__init__(features + layers * width, hidden)
        inputs = [features, *[width] * (layers - 1)]
        self.layers = nn.ModuleList(nn.GRU(each, width, batch_first=True) for each in inputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        parts = [features]
        for layer in self.layers:  # padding follows the images, so it cannot change their outputs
            parts.append(self.dropout(layer(parts[-1])[0]))
        return super().forward(torch.cat(parts, 2), valid)


class TransformerPool(Pool):
    """Two layers of a transformer over the images and a class token, with sinusoidal positions."""

    def __init__(self, features: int, width: int = 256, heads: int = 4, layers: int = 2) -> None:
        super().__init__(width)
        self.project = nn.Linear(features, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        x = self.project(features)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x + _positions(x.shape[1], x.shape[2]).to(x)], 1)
        padding = None if valid is None else torch.cat([valid.new_zeros(valid.shape[0], 1), ~valid], 1)
        return self.layers(x, src_key_padding_mask=padding)[:, 0]


class Slots(Pool):
    """The mean of each slot's images side by side, and for each slot 1 if it has any, else 0 (its mean then is 0)."""

    def __init__(self, features: int, slots: int) -> None:
        super().__init__(slots * (features + 1))
        self.slots = slots

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        if slot is None:
            raise Refusal("model.pool=slots needs to know what each picture shows: set samples.view and samples.views")
        try:
            member = nn.functional.one_hot(slot, self.slots).to(features.dtype)
        except RuntimeError as error:
            raise Refusal(
                f"model.pool_options.slots is {self.slots}, and samples.views has more: set it to their number"
            ) from error
        if valid is not None:
            member = member * valid.unsqueeze(-1)
        count = member.sum(1)
        means = torch.einsum("bns,bnd->bsd", member, features) / count.clamp(min=1).unsqueeze(-1)
        return torch.cat([means.flatten(1), (count > 0).to(features.dtype)], 1)


class SideBySide(Pool):
    """Several pools of the same features."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        super().__init__(sum(pool.width for pool in pools))
        self.pools = nn.ModuleList(pools)

    def forward(self, features: Tensor, valid: Tensor | None = None, slot: Tensor | None = None) -> Tensor:
        return torch.cat([pool(features, valid, slot) for pool in self.pools], 1)


POOLS: dict[str, Callable[..., Pool]] = {
    "mean": MeanPool,
    "max": MaxPool,
    "max_min": MaxMinPool,
    "range": RangePool,
    "attention": AttentionPool,
    "gru": RecurrentPool,
    "both_gru": lambda features, **options: RecurrentPool(features, both=True, **options),
    "recurrent_attention": RecurrentAttentionPool,
    "transformer": TransformerPool,
    "slots": Slots,
}


def build_pool(name: str | Sequence[str], features: int, **options: Any) -> Pool:
    """Build a pool by name, or several side by side; `options` go to the constructor, those of several by name."""
    if not isinstance(name, str):
        options = {each: given for each, given in options.items() if given is not None}
        if not name or set(options) - set(name):
            raise Refusal(f"model.pool={list(name)} needs names, and model.pool_options a dict of each of them at most")
        return SideBySide([build_pool(each, features, **options.get(each, {})) for each in name])
    if name not in POOLS:
        raise Refusal(f"model.pool is {name!r}; it must be one of {', '.join(POOLS)}")
    try:
        return POOLS[name](features, **options)
    except TypeError as error:
        raise Refusal(f"model.pool={name} cannot be built with model.pool_options={options}: {error}") from error


def _filled(features: Tensor, valid: Tensor | None, value: float) -> Tensor:
    return features if valid is None else features.masked_fill(~valid.unsqueeze(-1), value)


def _positions(length: int, width: int) -> Tensor:
    """Sinusoidal positions (length, width) (Vaswani et al. 2017, arXiv:1706.03762)."""
    angles = torch.arange(length).unsqueeze(1) * torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width]
