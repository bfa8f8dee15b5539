"""Base class of networks, and the depth of their layers as timm groups them."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from foldwise.errors import Refusal

Batch = dict[str, Tensor]


class Network(nn.Module):
    """Base of networks; subclass it in solution/networks.py.

    The constructor takes plain values, which are saved with the model, and these keywords:

        channels: of each image field, for example {"image": 3}.
        outputs: number of columns of each output, for example {"logits": 10}.
        weights, pretrained: passed at the start of training only: a file of initial weights, or published weights.

    `self.encoder` counts as pretrained, everything else as the head, new for the task.

    Attributes:
        auxiliary: submodules for training only. They are None in a saved model, and `forward` must then skip their
            outputs.
    """

    auxiliary: Sequence[str] = ()

    def forward(self, batch: Batch) -> Batch:
        """Compute raw outputs by name, before the task's activation.

        Args:
            batch: fields of the samples. Images are normalised float32 (B, C, H, W), stacks (B, N, C, H, W); for ragged
                fields `<name>_valid` (B, N) is False at padding.
        """
        raise NotImplementedError

    def head(self) -> list[nn.Module]:
        """Modules that `trainable: head` trains."""
        return [child for name, child in self.named_children() if name != "encoder"]

    def depths(self, coarse: bool = False) -> dict[str, int]:
        """Depth of each pretrained parameter by name, for freezing and layer decay; see `layer_depths`."""
        return prefixed(layer_depths(self.get_submodule("encoder"), coarse), "encoder")

    @property
    def multiple(self) -> int:
        """Divisor that image height and width must have."""
        return 1

    def compiled(self) -> list[nn.Module]:
        """Modules that `model.compile` compiles; they map tensors to tensors, not dicts to dicts."""
        return [self.get_submodule("encoder")] if hasattr(self, "encoder") else list(self.children())

    def no_weight_decay(self) -> set[str]:
        """Names of further parameters without weight decay, besides norms and biases, as timm's networks list them."""
        names: set[str] = set()
        for name, module in self.named_modules():
            exempt = getattr(module, "no_weight_decay", None) if name else None
            if callable(exempt):
                names |= {f"{name}.{parameter}" for parameter in exempt()}
        return names

    def drop_auxiliary(self) -> None:
        for name in self.auxiliary:
            setattr(self, name, None)

    def lasting_state(self) -> dict[str, Tensor]:
        """State dict without auxiliary submodules, as it is saved."""
        dropped = tuple(f"{name}." for name in self.auxiliary)
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(dropped or ("\0",))}


def prefixed(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def layer_depths(net: nn.Module, coarse: bool = False) -> dict[str, int]:
    """Count the layers after each parameter's own: 0 for the head and a final norm that timm groups with it.

    In smp networks only encoder parameters have a depth; the last encoder layer is at 1. With `coarse`, stages of a
    convolutional network count as layers instead of the blocks inside them.
    """
    encoder = getattr(net, "encoder", None)
    if encoder is None:
        return _depths(net, coarse)
    if not hasattr(encoder, "model"):
        raise Refusal("the layers of smp's own encoders are not known: use a timm encoder (tu-...)")
    # timm's feature extractor has no grouping, so use that of the whole network. The extractor's parameter names are
    # those of the network, with the first level flattened, or below `model.`.
    depths = _depths_of_name(encoder.name, coarse)
    existing = {name for name, _ in net.named_parameters()}
    return {
        alias: depth
        for name, depth in depths.items()
        for alias in (f"encoder.model.{inner}" for inner in (name, name.replace(".", "_", 1), f"model.{name}"))
        if alias in existing
    }


@cache
def _depths_of_name(name: str, coarse: bool) -> Mapping[str, int]:
    return _depths(timm.create_model(name), coarse)


def _depths(net: nn.Module, coarse: bool) -> dict[str, int]:
    if not hasattr(net, "group_matcher"):
        raise Refusal(
            f"the layers of {type(net).__name__} are not known: it has no group_matcher as timm's networks do"
        )
    layers = group_parameters(net, cast(Any, net).group_matcher(coarse=coarse), reverse=True)
    top = max(layers.values())
    return {name: top - layer for name, layer in layers.items()}
