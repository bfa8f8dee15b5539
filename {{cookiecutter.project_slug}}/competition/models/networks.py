"""Networks by name: any of timm's for classification, any decoder of segmentation-models-pytorch (smp) on any encoder.

An architecture is plain data, so that it can be written to a file and built again:

    {"library": "timm", "name": "resnet18", "options": {"drop_rate": 0.1}}
    {"library": "smp", "name": "Unet", "encoder": "tu-resnet18", "options": {"decoder_channels": [64, 32, 16, 8, 4]}}

`options` go to the network's constructor. `tu-` names one of timm's networks as encoder.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Architecture = Mapping[str, Any]


def build_network(
    architecture: Architecture, channels: int, classes: int, weights: Path | None = None, pretrained: bool = False
) -> nn.Module:
    """Build the network that `architecture` names; without `weights` and `pretrained` the hub is never asked.

    Args:
        architecture: see the module's text.
        channels: of the input image; pretrained stems are adapted to it.
        classes: outputs; (B, classes) for timm, (B, classes, H, W) for smp.
        weights: a local file (safetensors or torch) with pretrained weights of the network, or of smp's encoder.
        pretrained: take timm's or smp's published weights from the hub or its cache, unless `weights` is given.

    Raises:
        ValueError: an unknown library, name or option, or weights that do not fit; says what is close.
        RuntimeError: published weights cannot be had.
    """
    library = architecture.get("library")
    if library not in BUILDERS:
        raise ValueError(_unknown("library", library, BUILDERS, "model.library"))
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"there is no weight file {weights}: correct model.weights or set it to null")
    name = _describe(architecture)
    try:
        net = BUILDERS[library](architecture, channels, classes, weights, pretrained)
    except TypeError as error:  # an argument that the constructor does not have
        raise ValueError(
            f"{name} cannot be built with model.options={dict(_options(architecture))}: {error}"
        ) from error
    except (RuntimeError, KeyError) as error:
        if weights is None:
            raise
        raise ValueError(f"{weights} does not fit {name}: {str(error).splitlines()[0]}") from error
    if weights is not None:
        _check_loaded(net, Path(weights), name)
    if library == "timm" and (pretrained or weights is not None):
        _reset_classifier(net)
    return net


def _reset_classifier(net: nn.Module) -> None:
    """Begin with equal probabilities: some of timm's classifiers start with logits of tens for few classes, and what
    they send back would first undo the pretrained features."""
    for head in head_modules(net):
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _build_timm(
    architecture: Architecture, channels: int, classes: int, weights: Path | None, pretrained: bool
) -> nn.Module:
    name = architecture["name"]
    _check_timm_name(name, "model.name")
    overlay: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
    return _from_hub(
        pretrained and not weights,
        name,
        lambda: timm.create_model(
            name,
            pretrained=pretrained or weights is not None,
            in_chans=channels,
            num_classes=classes,
            **overlay,
            **_options(architecture),
        ),
    )


def _build_smp(
    architecture: Architecture, channels: int, classes: int, weights: Path | None, pretrained: bool
) -> nn.Module:
    import segmentation_models_pytorch as smp

    encoder = architecture.get("encoder")
    kind = _smp_class(architecture)
    universal = str(encoder).startswith("tu-")
    if universal:
        _check_timm_name(str(encoder)[3:], "model.encoder (after tu-)")
    elif encoder not in smp.encoders.get_encoder_names():
        known = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
        raise ValueError(_unknown("encoder", encoder, known, "model.encoder"))
    if weights and not universal:
        twin = str(encoder).replace("-", "_")
        hint = f"model.encoder=tu-{twin}" if timm.is_model(twin) else "a tu- encoder, which is any of timm's networks"
        raise ValueError(f"smp's own encoder {encoder} cannot be loaded from the file {weights}: use {hint}")
    published: bool | str = True if universal else "imagenet"
    overlay: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
    return _from_hub(
        pretrained and not weights,
        str(encoder),
        lambda: kind(
            encoder_name=encoder,
            encoder_weights=published if pretrained or weights else None,
            in_channels=channels,
            classes=classes,
            **overlay,
            **_options(architecture),
        ),
    )


BUILDERS: dict[str, Callable[..., nn.Module]] = {"timm": _build_timm, "smp": _build_smp}


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
    if _is_smp(net):
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


def pretrained_normalization(architecture: Architecture, channels: int = 3) -> tuple[list[float], list[float]]:
    """Mean and std with which the published weights were trained.

    Other channel counts than 3 follow what timm does to the stem: RGB is repeated (4 channels: R, G, B, R),
    and for 1 channel summed, hence the average.
    """
    name = architecture["name"] if architecture["library"] == "timm" else str(architecture.get("encoder"))
    if architecture["library"] == "smp" and not name.startswith("tu-"):
        raise ValueError(f"the normalisation of smp's own encoder {name} is not known: set data.normalize=dataset")
    _check_timm_name(name.removeprefix("tu-"), "the network")
    config = timm.get_pretrained_cfg(name.removeprefix("tu-"))
    if config is None:
        raise ValueError(f"timm has no weights for {name}, hence no normalisation: set data.normalize=dataset")

    def spread(values: Sequence[float]) -> list[float]:
        if channels == 1:
            return [sum(values) / len(values)]
        return [float(values[channel % len(values)]) for channel in range(channels)]

    return spread(config.mean), spread(config.std)


def required_multiple(architecture: Architecture) -> int:
    """Height and width must be divisible by this: the stride of smp's encoder; 1 where any size will do.

    timm's networks with a fixed size (most transformers) say so themselves: they take `options: {img_size: ...}`.
    """
    if architecture["library"] != "smp" or not _smp_class(architecture).requires_divisible_input_shape:
        return 1
    with torch.random.fork_rng(devices=[]):  # asking must not change the numbers that initialise the real network
        return cast(Any, build_network(architecture, channels=3, classes=2)).encoder.output_stride


def _smp_class(architecture: Architecture) -> Any:
    import segmentation_models_pytorch as smp

    kinds = {kind.__name__: kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if architecture.get("name") not in kinds:
        raise ValueError(_unknown("smp decoder", architecture.get("name"), kinds, "model.name"))
    return kinds[architecture["name"]]


def _is_smp(net: nn.Module) -> bool:
    return hasattr(net, "encoder") and hasattr(net, "segmentation_head")


def _options(architecture: Architecture) -> Mapping[str, Any]:
    return architecture.get("options") or {}


def _describe(architecture: Architecture) -> str:
    name = str(architecture.get("name"))
    return f"{name} with the encoder {architecture['encoder']}" if architecture.get("encoder") else name


def _check_timm_name(name: str, key: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(_unknown("timm network", name, timm.list_models(), key))
    known = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in known:
        raise ValueError(_unknown("weights", name, known, key))


def _unknown(what: str, name: object, known: Iterable[str], key: str) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=5, cutoff=0.5) or known[:20]
    return f"unknown {what} {name!r}; correct {key}, for example: {', '.join(close)}"


def _from_hub(published: bool, name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Call `build`; where it asks the hub, say what can be done when that fails in one of its many ways."""
    if not published:
        return build()
    try:
        return build()
    except TypeError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"the published weights of {name} could not be loaded ({type(error).__name__}: {str(error)[:200]}). "
            "No network? Give model.weights=<file>, or train from scratch with model.pretrained=false"
        ) from error


def _check_loaded(net: nn.Module, weights: Path, name: str) -> None:
    """Refuse a file of another network: timm drops what does not match, and one would train from scratch unknowing.

    Values are compared and not names, since timm renames and reshapes the entries of many published files.
    """
    by_size: dict[int, list[Tensor]] = {}
    for tensor in timm.models.load_state_dict(str(weights)).values():
        by_size.setdefault(tensor.numel(), []).append(tensor.flatten())
    head = {id(parameter) for module in head_modules(net) for parameter in module.parameters()}
    body = [parameter.detach().flatten() for parameter in net.parameters() if id(parameter) not in head]
    found = [any(torch.equal(tensor, other.to(tensor)) for other in by_size.get(len(tensor), ())) for tensor in body]
    share = sum(len(tensor) for tensor, hit in zip(body, found, strict=True) if hit) / sum(map(len, body))
    if share < 0.5:
        raise ValueError(f"{weights} does not fit {name}: it holds only {share:.0%} of the network's parameters")
