"""A network with its normalisation, and which part of it trains."""

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foldwise.errors import Refusal
from foldwise.models.layers import layer_depths
from foldwise.models.phases import TRAINABLE


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
            raise Refusal(f"mean and std need one value a channel and std above 0, but are {mean} and {std}")
        self.net = net
        self.frozen_norms = False
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.mean.shape[1]:  # a mean of one value would be broadcast without a word
            raise Refusal(f"the image has {x.shape[1]} channels, but the model was built for {self.mean.shape[1]}")
        x = x if x.is_floating_point() else x.float() / 255
        return self.net((x - self.mean) / self.std)

    def train(self, mode: bool = True) -> Self:
        """As always, except that what is frozen stays in eval: its batch norms keep their statistics."""
        super().train(mode)
        if mode:
            _still(self.net)
            if self.frozen_norms:
                head = {inner for module in head_modules(self.net) for inner in module.modules()}
                for module in self.net.modules():
                    if isinstance(module, _BatchNorm) and module not in head:
                        module.eval()
        return self


def _still(module: nn.Module) -> None:
    """Put into eval what does not train as a whole; inside it, parts may."""
    parameters = list(module.parameters())
    if parameters and all(parameter.requires_grad for parameter in parameters):
        return
    module.training = False
    for child in module.children():
        _still(child)


def head_modules(net: nn.Module) -> list[nn.Module]:
    """What is new for the task: timm's classifier (distilled networks have two); of smp all but the encoder."""
    if hasattr(net, "encoder") and hasattr(net, "segmentation_head"):  # smp
        return [module for name, module in net.named_children() if name != "encoder"]
    head = cast(Any, net).get_classifier()
    return list(head) if isinstance(head, tuple | list) else [head]


def set_trainable(net: Normalized, trainable: str, frozen_norms: bool = False) -> None:
    """Train "all" of the network, its "head" alone, or "last<n>": the head and the last n layers before it.

    Layers are timm's: the stages of a convolutional network, the blocks of a transformer; of an smp network those of
    the encoder, and the head is all the rest. More layers than there are: all of them.

    It holds until the next call, also after `net.train()`. The frozen part gets no gradients, and its batch norms and
    dropouts are in eval. With `frozen_norms`, batch norms outside the head keep their statistics also where they
    train: those of the pretraining are better than what a few hundred images give, and training and prediction then
    see the same features.

    Raises:
        Refusal: none of these, or "last<n>" of a network whose layers are not known.
    """
    match = TRAINABLE.fullmatch(trainable)
    if match is None:
        raise Refusal(f"trainable is all, head or last1, last2, ..., not {trainable!r}")
    net.frozen_norms = frozen_norms
    net.requires_grad_(trainable == "all")
    if match[1]:
        for name, depth in layer_depths(net.net, coarse=True).items():
            net.net.get_parameter(name).requires_grad_(depth <= int(match[1]))
    for module in head_modules(net.net):
        module.requires_grad_(True)
    net.train(net.training)


def trainable_share(net: Normalized) -> float:
    """The share of the network's parameters that train now, in [0, 1]."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in net.parameters()]
    return sum(count for count, trains in counts if trains) / sum(count for count, _ in counts)


def enable_gradient_checkpointing(net: nn.Module) -> None:
    """Trade time for memory: activations inside the network (smp: its encoder) are computed again going backward."""
    for module in net.modules():
        if hasattr(module, "set_grad_checkpointing"):
            try:
                cast(Any, module).set_grad_checkpointing(True)
            except AssertionError as error:
                raise Refusal(f"model.gradient_checkpointing: {type(module).__name__} does not have it") from error
            return
    raise Refusal("model.gradient_checkpointing is only there for timm's networks and smp's tu- encoders")
