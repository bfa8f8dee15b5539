"""Normalisation of images in front of a network, and freezing of its layers."""

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
    """A network that normalises its images: (x - mean) / std, with x in [0, 1] and one mean and std per channel."""

    def __init__(self, net: Network, images: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
        super().__init__()
        self.net = net
        self.images = tuple(images)
        self.freeze_bn = False
        for name, (mean, std) in images.items():
            if len(mean) != len(std) or min(std, default=0.0) <= 0:
                raise Refusal(f"mean and std need one value per channel and std above 0, but are {mean} and {std}")
            for what, values in (("mean", mean), ("std", std)):
                tensor = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
                self.register_buffer(f"{what}_{name}", tensor, persistent=False)

    def forward(self, batch: Batch) -> Batch:
        return self.net(self.normalized(batch))

    def normalized(self, batch: Batch) -> Batch:
        return batch | {name: self._normalize(name, batch[name]) for name in self.images if name in batch}

    def _normalize(self, name: str, x: Tensor) -> Tensor:
        mean, std = self.get_buffer(f"mean_{name}"), self.get_buffer(f"std_{name}")
        if x.shape[-3] != len(mean):  # one value would be broadcast silently
            raise Refusal(f"{name} has {x.shape[-3]} channels, but the model was built for {len(mean)}")
        return (unit_range(x) - mean) / std

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but keep frozen modules in eval."""
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
    """Train "all", the "head", or "last<n>" (the head and the n layers before it) and freeze the rest.

    Layers are the stages of a convolutional network or the blocks of a transformer, as timm groups them; smp networks
    have them in the encoder, and everything else is the head.

    Frozen modules get no gradients and stay in eval until the next call, also after `net.train()`. `freeze_bn` freezes
    all BatchNorm statistics outside the head: those of pretraining are better than what a few hundred images give, and
    training and prediction then see the same features.
    """
    match = TRAINABLE.fullmatch(trainable)
    if match is None:
        raise Refusal(f"trainable must be all, head or last1, last2, ..., but is {trainable!r}")
    net.freeze_bn = freeze_bn
    net.requires_grad_(trainable == "all")
    if match[1]:
        for name, depth in net.net.depths(coarse=True).items():
            net.net.get_parameter(name).requires_grad_(depth <= int(match[1]))
    for module in net.net.head():
        module.requires_grad_(True)
    net.train(net.training)


def trainable_share(net: Normalized) -> float:
    """Share of the parameters that are trainable now, in [0, 1]."""
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    return trained / sum(parameter.numel() for parameter in net.parameters())


def enable_gradient_checkpointing(net: nn.Module) -> None:
    """Recompute activations in the backward pass (smp: of the encoder) to save memory."""
    for module in net.modules():
        if hasattr(module, "set_grad_checkpointing"):
            try:
                cast(Any, module).set_grad_checkpointing(True)
            except AssertionError as error:
                raise Refusal(f"model.gradient_checkpointing: {type(module).__name__} does not support it") from error
            return
    raise Refusal("model.gradient_checkpointing works only with timm's networks and smp's tu- encoders")
