"""A network with the normalisation of its images; which part of it trains."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foldwise.data.batches import unit_range
from foldwise.errors import Refusal
from foldwise.models.network import Batch, Network
from foldwise.schedule.phases import TRAINABLE


class Normalized(nn.Module):
    """A network with the normalisation of its images.

    Integer images are divided by 255, float images are taken as they are, in [0, 1]; then (x - mean) / std.

    Args:
        net: takes a batch, see `Network`.
        images: mean and std of each image field, a value a channel, in units of [0, 1].
    """

    def __init__(self, net: Network, images: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
        super().__init__()
        self.net = net
        self.images = tuple(images)
        self.freeze_bn = False
        for name, (mean, std) in images.items():
            if len(mean) != len(std) or min(std, default=0.0) <= 0:
                raise Refusal(f"mean and std need one value a channel and std above 0, but are {mean} and {std}")
            for what, values in (("mean", mean), ("std", std)):
                tensor = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
                self.register_buffer(f"{what}_{name}", tensor, persistent=False)

    def forward(self, batch: Batch) -> Batch:
        return self.net(batch | {name: self._normalize(name, batch[name]) for name in self.images})

    def _normalize(self, name: str, x: Tensor) -> Tensor:
        mean, std = self.get_buffer(f"mean_{name}"), self.get_buffer(f"std_{name}")
        if x.shape[-3] != len(mean):  # a mean of one value would be broadcast without a word
            raise Refusal(f"{name} has {x.shape[-3]} channels, but the model was built for {len(mean)}")
        return (unit_range(x) - mean) / std

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for what is frozen: its BatchNorm statistics stay."""
        super().train(mode)
        if mode:
            _freeze_modes(self.net)
            if self.freeze_bn:
                head = {inner for module in self.net.head() for inner in module.modules()}
                for module in self.net.modules():
                    if isinstance(module, _BatchNorm) and module not in head:
                        module.eval()
        return self


def _freeze_modes(module: nn.Module) -> None:
    """Set frozen modules to eval; recurse into partly frozen ones."""
    parameters = list(module.parameters())
    if parameters and all(parameter.requires_grad for parameter in parameters):
        return
    module.training = False
    for child in module.children():
        _freeze_modes(child)


def set_trainable(net: Normalized, trainable: str, freeze_bn: bool = False) -> None:
    """Train "all" of the network, its "head" alone, or "last<n>": the head and the last n layers before it.

    Layers are timm's: the stages of a convolutional network, the blocks of a transformer; of an smp network those of
    the encoder, and the head is all the rest. More layers than there are: all of them.

    It holds until the next call, also after `net.train()`. The frozen part gets no gradients, and its BatchNorm and
    dropout are in eval. `freeze_bn` freezes the statistics of all BatchNorm outside the head: those of the pretraining
    are better than what a few hundred images give, and training and prediction then see the same features.

    Raises:
        Refusal: none of these, or "last<n>" of a network whose layers are not known.
    """
    match = TRAINABLE.fullmatch(trainable)
    if match is None:
        raise Refusal(f"trainable is all, head or last1, last2, ..., not {trainable!r}")
    net.freeze_bn = freeze_bn
    net.requires_grad_(trainable == "all")
    if match[1]:
        for name, depth in net.net.depths(coarse=True).items():
            net.net.get_parameter(name).requires_grad_(depth <= int(match[1]))
    for module in net.net.head():
        module.requires_grad_(True)
    net.train(net.training)


def trainable_share(net: Normalized) -> float:
    """The share of the network's parameters that train now, in [0, 1]."""
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    return trained / sum(parameter.numel() for parameter in net.parameters())


def enable_gradient_checkpointing(net: nn.Module) -> None:
    """Trade time for memory: recompute activations of the network (smp: its encoder) in the backward pass."""
    for module in net.modules():
        if hasattr(module, "set_grad_checkpointing"):
            try:
                cast(Any, module).set_grad_checkpointing(True)
            except AssertionError as error:
                raise Refusal(f"model.gradient_checkpointing: {type(module).__name__} does not have it") from error
            return
    raise Refusal("model.gradient_checkpointing is only there for timm's networks and smp's tu- encoders")
