"""The contract of a network: a batch in, outputs out; and what training has to know of its parts."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foldwise.models.layers import layer_depths

Batch = dict[str, Tensor]


class Network(nn.Module):
    """A network of a competition; subclass it in solution/networks.py.

    Its constructor takes plain values, which are kept with the saved model, and by name:

        channels: of each image field as the network sees it, as {"image": 3}.
        outputs: columns of each output that is asked for, as {"logits": 10}.
        weights, pretrained: at the start of a training alone: initial weights from a file, or published ones.

    What is assigned to `self.encoder` counts as pretrained, everything else as the head: new for the task.

    Attributes:
        auxiliary: names of submodules that only training needs. A saved model has them not: they are None, and
            `forward` gives no output of theirs.
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
        """What is new for the task: trained first where a phase says `trainable: head`."""
        return [child for name, child in self.named_children() if name != "encoder"]

    def depths(self, coarse: bool = False) -> dict[str, int]:
        """How many layers follow that of each pretrained parameter, by its name; for freezing and layer decay.

        Args:
            coarse: stages of a convolutional network count as layers, and not the blocks inside them.

        Raises:
            Refusal: the layers of the encoder are not known.
        """
        return prefixed(layer_depths(self.get_submodule("encoder"), coarse), "encoder")

    @property
    def multiple(self) -> int:
        """Height and width of images must be divisible by this."""
        return 1

    def compiled(self) -> list[nn.Module]:
        """The modules that `model.compile` compiles: tensors in, tensors out, and not the dicts of `forward`."""
        return [self.get_submodule("encoder")] if hasattr(self, "encoder") else list(self.children())

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that have no weight decay, beside norms and biases: what timm's networks exempt."""
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
