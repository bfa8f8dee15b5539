"""Encoding of image stacks, and pooling of their features."""

import torch
from torch import Tensor, nn

from foldwise.errors import Refusal


def encode_stack(encoder: nn.Module, images: Tensor, valid: Tensor | None = None) -> Tensor:
    """Encode stacks (B, N, C, H, W) to features (B, N, D); `valid` (B, N) bool is False at padding, which gets 0."""
    if valid is None:
        return encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    encoded = encoder(images[valid])  # BatchNorm must not see padding
    features = encoded.new_zeros(*valid.shape, encoded.shape[-1])
    features[valid] = encoded
    return features


class MeanPool(nn.Module):
    """Mean over the images of a stack."""

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Pool features (B, N, D) to (B, D); `valid` (B, N) bool is False at padding."""
        if valid is None:
            return features.mean(1)
        weight = valid.to(features.dtype).unsqueeze(-1)
        return (features * weight).sum(1) / weight.sum(1)


class AttentionPool(nn.Module):
    """Attention-weighted mean over the images of a stack (Ilse et al. 2018, arXiv:1802.04712)."""

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        return (features * self.weights(features, valid).unsqueeze(-1)).sum(1)

    def weights(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attention weights (B, N); they sum to 1, with 0 at padding."""
        score = self.gate(features).squeeze(-1)
        if valid is not None:
            score = score.masked_fill(~valid, torch.finfo(score.dtype).min)
        return score.softmax(1)


def build_pool(name: str, features: int) -> nn.Module:
    if name not in ("mean", "attention"):
        raise Refusal(f"model.pool is {name!r}; it must be mean or attention")
    return MeanPool() if name == "mean" else AttentionPool(features)
