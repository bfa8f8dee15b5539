"""The layers of a network in their order, as timm groups them."""

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import timm
from timm.models import group_parameters
from torch import nn

from foldwise.errors import Refusal


def layer_depths(net: nn.Module, coarse: bool = False) -> dict[str, int]:
    """How many layers follow that of each parameter: 0 for the head and for what timm leaves to it (a last norm).

    Of an smp network the encoder has layers, the last of them at 1; the decoder, which follows it, has no entries.

    Args:
        net: a network of `networks.build_network`, not in `Normalized`.
        coarse: the stages of a convolutional network are its layers, and not the blocks inside them.

    Raises:
        Refusal: a network whose layers are not known.
    """
    encoder = getattr(net, "encoder", None)
    if encoder is None:
        return _depths(net, coarse)
    if not hasattr(encoder, "model"):
        raise Refusal("the layers of smp's own encoders are not known: take a tu- encoder, which is one of timm's")
    # timm's feature extractor has no grouping of its own, so the whole network of that name is asked. The
    # extractor's names are those of the network, with its first level flattened, or under `model.`.
    depths = _depths_of_name(encoder.name, coarse)
    own = {name for name, _ in net.named_parameters()}
    return {
        alias: depth
        for name, depth in depths.items()
        for alias in (f"encoder.model.{inner}" for inner in (name, name.replace(".", "_", 1), f"model.{name}"))
        if alias in own
    }


@cache
def _depths_of_name(name: str, coarse: bool) -> Mapping[str, int]:
    return _depths(timm.create_model(name), coarse)


def _depths(net: nn.Module, coarse: bool) -> dict[str, int]:
    if not hasattr(net, "group_matcher"):
        raise Refusal(f"the layers of {type(net).__name__} are not known: it has no group_matcher, as timm's have")
    layers = group_parameters(net, cast(Any, net).group_matcher(coarse=coarse), reverse=True)
    top = max(layers.values())
    return {name: top - layer for name, layer in layers.items()}
