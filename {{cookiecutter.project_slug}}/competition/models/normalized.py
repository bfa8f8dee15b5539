"""A network with its normalisation, and which part of it trains."""

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Normalized(nn.Module):
    """A network with the normalisation of its input, so that the two are never parted.

    Integer images are divided by 255, float images are taken as they are, in [0, 1]; then (x - mean) / std.

    Args:
        net: takes (B, C, H, W) float.
        mean, std: C values each, in units of [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0.0) <= 0:
            raise ValueError(f"mean and std need one value a channel and std above 0, but are {mean} and {std}")
        self.net = net
        self.trainable, self.frozen_norms = "all", False
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.mean.shape[1]:  # a mean of one value would be broadcast without a word
            raise ValueError(f"the image has {x.shape[1]} channels, but the model was built for {self.mean.shape[1]}")
        x = x if x.is_floating_point() else x.float() / 255
        return self.net((x - self.mean) / self.std)

    def train(self, mode: bool = True) -> Self:
        """As always, except that what is frozen stays in eval: its batch norms keep their statistics."""
        super().train(mode)
        if mode and (self.trainable == "head" or self.frozen_norms):
            for module in self.net.modules():
                if self.trainable == "head" or isinstance(module, _BatchNorm):
                    module.eval()
            for module in head_modules(self.net):
                module.train()
        return self


def head_modules(net: nn.Module) -> list[nn.Module]:
    """What is new for the task: timm's classifier (distilled networks have two); of smp all but the encoder."""
    if hasattr(net, "encoder") and hasattr(net, "segmentation_head"):  # smp
        return [module for name, module in net.named_children() if name != "encoder"]
    head = cast(Any, net).get_classifier()
    return list(head) if isinstance(head, tuple | list) else [head]


def set_trainable(net: Normalized, trainable: str, frozen_norms: bool = False) -> None:
    """Train "all" of the network or its "head" alone; it holds until the next call, also after `net.train()`.

    The frozen part gets no gradients, and its batch norms and dropouts are in eval. With `frozen_norms`, batch norms
    outside the head keep their statistics also where everything trains: those of the pretraining are better than what
    a few hundred images give, and training and prediction then see the same features.
    """
    if trainable not in ("all", "head"):
        raise ValueError(f"trainable is 'all' or 'head', not {trainable!r}")
    net.trainable, net.frozen_norms = trainable, frozen_norms
    net.requires_grad_(trainable == "all")
    for module in head_modules(net.net):
        module.requires_grad_(True)
    net.train(net.training)


def enable_gradient_checkpointing(net: nn.Module) -> None:
    """Trade time for memory: activations inside the network (smp: its encoder) are computed again going backward."""
    for module in net.modules():
        if hasattr(module, "set_grad_checkpointing"):
            try:
                cast(Any, module).set_grad_checkpointing(True)
            except AssertionError as error:
                raise ValueError(f"model.gradient_checkpointing: {type(module).__name__} does not have it") from error
            return
    raise ValueError("model.gradient_checkpointing is only there for timm's networks and smp's tu- encoders")
