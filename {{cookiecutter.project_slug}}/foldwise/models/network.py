"""The contract of a network: a batch in, outputs out; and the order of its layers, as timm groups them."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from foldwise.errors import Refusal

Batch = dict[str, Tensor]


class Network(nn.Module):
    """A network of a competition; subclass it in solution/networks.py.

    Its constructor takes plain values, which are kept with the saved model, and by name:

        channels: of each image field as the network sees it, as {"image": 3}.
        outputs: columns of each output that is asked for, as {"logits": 10}.
        weights, pretrained: at the start of a training alone: initial weights from a file, or published ones.

    What is assigned to `self.encoder` counts as pretrained, everything else as the head: new for the task.

    Attributes:
        auxiliary: names of submodules that only training needs: None in a saved model, whose `forward` gives no
            output of theirs.
    """

    auxiliary: Sequence[str] = ()

    def forward(self, batch: Batch) -> Batch:
        """Outputs by name, raw: what a task activates.

        Args:
            batch: the fields of the samples by name. Images are float32, normalised, (B, C, H, W), stacks
                (B, N, C, H, W); of ragged fields `<name>_valid` (B, N) tells what is real.
        """
        raise NotImplementedError

    def head(self) -> list[nn.Module]:
        """The modules that are new for the task, which `trainable: head` trains."""
        return [child for name, child in self.named_children() if name != "encoder"]

    def depths(self, coarse: bool = False) -> dict[str, int]:
        """The depth of each pretrained parameter, by its name, for freezing and layer decay; see `layer_depths`."""
        return prefixed(layer_depths(self.get_submodule("encoder"), coarse), "encoder")

    @property
    def multiple(self) -> int:
        """Height and width of images must be divisible by this."""
        return 1

    def compiled(self) -> list[nn.Module]:
        """The modules that `model.compile` compiles: from tensors to tensors, not from dict to dict."""
        return [self.get_submodule("encoder")] if hasattr(self, "encoder") else list(self.children())

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beside norms and biases: those that timm's networks exempt."""
        found: set[str] = set()
        for name, module in self.named_modules():
            own = getattr(module, "no_weight_decay", None) if name else None
            if callable(own):
                found |= {f"{name}.{parameter}" for parameter in own()}
        return found

    def drop_auxiliary(self) -> None:
        """Remove what only training needs."""
        for name in self.auxiliary:
            setattr(self, name, None)

    def lasting_state(self) -> dict[str, Tensor]:
        """The state that is saved: without auxiliary submodules."""
        dropped = tuple(f"{name}." for name in self.auxiliary)
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(dropped or ("\0",))}


def prefixed(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values by names below `prefix`."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def layer_depths(net: nn.Module, coarse: bool = False) -> dict[str, int]:
    """The depth of each parameter: layers that follow its own, 0 for the head and what timm counts to it (a last norm).

    Of an smp network the encoder has layers, the last of them at 1; the decoder, which follows it, has no entries.

    Args:
        net: a network of `networks.build_network`.
        coarse: the stages of a convolutional network count as its layers, not the blocks inside them.

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
