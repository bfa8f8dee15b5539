"""Built-in heads for further outputs, on the features of a timm or smp network.

    rows    a linear layer on the pooled features
    maps    smp: a convolution on the decoder's output; timm: a feature pyramid on the last four stages (Kirillov et al.
            2019, arXiv:1901.02446)
    at      either of them on the output of a named module instead: an auxiliary classifier in the middle of an encoder,
            deep supervision of a decoder

The last layer of a head starts at zero, so that a new head does not disturb pretrained features.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldwise.errors import Refusal
from foldwise.models.network import Batch

WIDTH = 64  # channels of the feature pyramid
SUFFIX = "_head"  # of a head's module, so that an output can have any name
STAGES = 4  # of a timm network, from the last


class Features(NamedTuple):
    """Features of images of (height, width) `size`: pooled (B, D), maps from fine to coarse (B, C, H, W), by module."""

    size: Sequence[int]
    pooled: Tensor
    maps: Sequence[Tensor]
    named: Mapping[str, Tensor]

    def detach(self) -> "Features":
        maps, named = [each.detach() for each in self.maps], {name: each.detach() for name, each in self.named.items()}
        return Features(self.size, self.pooled.detach(), maps, named)


class Heads(nn.ModuleDict):
    """Heads by output, none or more; they are initialised without advancing the random generator.

    Args:
        net: a timm or smp network, in its final form.
        heads: of each head `kind` ("rows" or "maps"), `at` (a module of `net`, or None), `keep`, and `detach`: the head
            does not train the network, not even by a gradient of 0, whose memory layout could change the rounding.
        columns: number of columns by output.
        channels: of the image.
        width: of the pooled features, of a network that has nothing else for its heads.
    """

    def __init__(
        self,
        net: nn.Module,
        heads: Mapping[str, Mapping[str, Any]],
        columns: Mapping[str, int],
        channels: int,
        width: int | None = None,
    ) -> None:
        super().__init__()
        other = [name for name, head in heads.items() if head["kind"] == "maps" or head["at"]]
        if width is not None and other:
            raise Refusal(
                f"outputs.{other[0]}: this network has heads of one row per item, without `at`: remove the head, or "
                "train another network with it"
            )
        self.at = {name: head["at"] for name, head in heads.items() if head["at"]}
        self.detached = {name for name, head in heads.items() if head["detach"]}
        self.stages = any(head["kind"] == "maps" and not head["at"] for head in heads.values())
        named = _named_channels(net, self.at, channels)
        with torch.random.fork_rng(devices=[]):
            for name, head in heads.items():
                if head["kind"] == "rows":
                    layer: nn.Module = Rows(named.get(name) or width or _pooled_channels(net), columns[name])
                else:
                    layer = Maps([named[name]] if name in named else _map_channels(net, name), columns[name])
                self[name + SUFFIX] = layer

    def encode(self, net: nn.Module, image: Tensor) -> tuple[Tensor, Features | None]:
        """Run the network once: its output, exactly as `net(image)` gives it, and the features for the heads."""
        if not self:
            return net(image), None
        with outputs_of(net, self.at.values()) as named:
            logits, pooled, maps = _run(net, image, self.stages)
        return logits, Features(image.shape[-2:], pooled, maps, named)

    def forward(self, features: Features | None) -> Batch:
        """Raw outputs by name; maps have the size of the images."""
        outputs: Batch = {}
        if features is None:
            return outputs
        for key, head in self.items():
            name = key.removesuffix(SUFFIX)
            used = features.detach() if name in self.detached else features
            found = used.named.get(self.at.get(name, ""))
            if isinstance(head, Rows):
                outputs[name] = head(used.pooled if found is None else found)
            else:
                maps = head(used.maps if found is None else [found])
                outputs[name] = F.interpolate(maps, list(used.size), mode="bilinear", align_corners=False)
        return outputs


class Rows(nn.Module):
    """Linear layer on features (B, D) or (B, D, H, W), which are averaged over the pixels."""

    def __init__(self, channels: int, columns: int) -> None:
        super().__init__()
        self.classifier = _zero(nn.Linear(channels, columns))

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(features.mean((2, 3)) if features.ndim == 4 else features)


class Maps(nn.Module):
    """Masks from one or several maps (B, C, H, W), from fine to coarse; at the resolution of the finest."""

    def __init__(self, channels: Sequence[int], columns: int) -> None:
        super().__init__()
        self.pyramid = nn.ModuleList(nn.Conv2d(each, WIDTH, 1) for each in channels) if len(channels) > 1 else None
        self.smooth = nn.Conv2d(WIDTH, WIDTH, 3, padding=1) if self.pyramid else None
        self.classifier = _zero(nn.Conv2d(WIDTH if self.pyramid else channels[0], columns, 3, padding=1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if self.pyramid is None or self.smooth is None:
            return self.classifier(maps[0])
        *finer, merged = [layer(each) for layer, each in zip(self.pyramid, maps, strict=True)]
        for each in reversed(finer):
            merged = each + F.interpolate(merged, each.shape[-2:], mode="nearest")
        return self.classifier(F.relu(self.smooth(F.relu(merged))))


def _zero(layer: Any) -> Any:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _run(net: Any, image: Tensor, stages: bool) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """The output of a timm or smp network, its pooled features, and its maps, the stages only if asked for."""
    if hasattr(net, "segmentation_head"):
        encoded = net.encoder(image)
        decoded = net.decoder(encoded)
        return net.segmentation_head(decoded), encoded[-1].mean((2, 3)), [decoded]
    maps: Sequence[Tensor] = ()
    if stages:
        last, maps = net.forward_intermediates(image, indices=STAGES)
    else:
        last = net.forward_features(image)
    # The network's own classifier comes first: heads must not change its dropout.
    return net.forward_head(last), net.forward_head(last, pre_logits=True), maps


def _pooled_channels(net: Any) -> int:
    return net.encoder.out_channels[-1] if hasattr(net, "segmentation_head") else net.head_hidden_size


def _map_channels(net: Any, name: str) -> list[int]:
    if hasattr(net, "segmentation_head"):
        return [next(layer.in_channels for layer in net.segmentation_head.modules() if isinstance(layer, nn.Conv2d))]
    if not callable(getattr(net, "forward_intermediates", None)):
        raise Refusal(
            f"outputs.{name}: {type(net).__name__} of timm does not give the feature maps of its stages, which a mask "
            "head needs: choose another model, such as model=efficientnet_lite"
        )
    return [stage["num_chs"] for stage in net.feature_info][-STAGES:]


def _named_channels(net: nn.Module, at: Mapping[str, str], channels: int) -> dict[str, int]:
    """Channels of the named modules' outputs by head; on the meta device, which computes shapes only."""
    if not at:
        return {}
    modules, problems = dict(net.named_modules()), []
    for head, name in at.items():
        if name not in modules:
            parent = name.rpartition(".")[0]
            parent = parent if parent in modules else ""
            existing = [f"{parent}.{child}".strip(".") for child, _ in modules[parent].named_children()]
            problems.append(f"outputs.{head}.at: the network has no module {name!r}; there are {', '.join(existing)}")
    if problems:
        raise Refusal("\n".join(problems))
    size = getattr(net, "pretrained_cfg", {"input_size": (3, 256, 256)})["input_size"][1:]
    shapes = copy.deepcopy(net).to("meta").eval()
    with torch.no_grad(), outputs_of(shapes, at.values()) as named:
        shapes(torch.zeros(1, channels, *size, device="meta"))
    for head, name in at.items():
        if not isinstance(named.get(name), Tensor) or named[name].ndim not in (2, 4):
            problems.append(f"outputs.{head}.at: {name} does not give feature maps (B, C, H, W): name another module")
    if problems:
        raise Refusal("\n".join(problems))
    return {head: named[name].shape[1] for head, name in at.items()}


@contextmanager
def outputs_of(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of named modules while the network runs."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, output)

    hooks = [net.get_submodule(name).register_forward_hook(keep(name)) for name in sorted(set(names))]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
