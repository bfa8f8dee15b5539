"""From the features of several pictures to those of the thing that they show."""

import torch
from torch import Tensor, nn

from foldwise.errors import Refusal


def encode_stack(encoder: nn.Module, images: Tensor, valid: Tensor | None = None) -> Tensor:
    """Features (B, N, D) of stacks (B, N, C, H, W).

    Args:
        encoder: (B, C, H, W) to (B, D).
        valid: (B, N) bool, of ragged stacks: padding is not encoded, so BatchNorm does not see it; its features are 0.
    """
    if valid is None:
        return encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    found = encoder(images[valid])
    features = found.new_zeros(*valid.shape, found.shape[-1])
    features[valid] = found
    return features


class MeanPool(nn.Module):
    """The mean over the pictures; whatever their order and number."""

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, D) of features (B, N, D); `valid` (B, N) bool tells which are real."""
        if valid is None:
            return features.mean(1)
        weight = valid.to(features.dtype).unsqueeze(-1)
        return (features * weight).sum(1) / weight.sum(1)


class AttentionPool(nn.Module):
    """A weighted mean over the pictures, by a learnt gate of width `hidden` (Ilse et al. 2018, arXiv:1802.04712)."""

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """As `MeanPool`."""
        return (features * self.weights(features, valid).unsqueeze(-1)).sum(1)

    def weights(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, N), of sum 1 over the real pictures."""
        score = self.gate(features).squeeze(-1)
        if valid is not None:
            score = score.masked_fill(~valid, torch.finfo(score.dtype).min)
        return score.softmax(1)


def build_pool(name: str, features: int) -> nn.Module:
    """The pool "mean" or "attention" of features (B, N, `features`)."""
    if name not in ("mean", "attention"):
        raise Refusal(f"model.pool is {name!r}; it must be mean or attention")
    return MeanPool() if name == "mean" else AttentionPool(features)
