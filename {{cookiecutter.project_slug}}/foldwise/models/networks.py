"""Networks by name: timm for classification, segmentation-models-pytorch (smp) for segmentation.

An architecture is plain data that can be saved and built again:

    {"library": "timm", "name": "resnet18", "options": {"drop_rate": 0.1}}
    {"library": "smp", "name": "Unet", "encoder": "tu-resnet18", "options": {"decoder_channels": [64, 32, 16, 8, 4]}}

`options` go to the network's constructor. `tu-<name>` is a timm network as encoder.
"""

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from foldwise.errors import Refusal
from foldwise.models.heads import SUFFIX, Heads
from foldwise.models.network import Batch, Network, layer_depths, prefixed
from foldwise.reachable import connection_problem

# timm warns about unused weights, such as an encoder's missing head; `_check_loaded` is the better check.
logging.getLogger("timm.models._builder").setLevel(logging.ERROR)

Architecture = Mapping[str, Any]
OF = "name the network that the file is of, with model.name (masks: model.encoder=tu-<name>)"


class ImageNetwork(Network):
    """One image in; one output, and those of `heads`, out.

    `library`, `name`, `encoder` and `options` are the architecture (see above); `heads` are described in `Heads`.
    """

    def __init__(
        self,
        library: str,
        name: str,
        channels: Mapping[str, int],
        outputs: Mapping[str, int],
        encoder: str | None = None,
        options: Mapping[str, Any] | None = None,
        weights: Path | None = None,
        pretrained: bool = False,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        heads = heads or {}
        self.field = only(channels, "image field")
        self.output = only({name: count for name, count in outputs.items() if name not in heads}, "output")
        architecture = {"library": library, "name": name, "encoder": encoder, "options": options or {}}
        self.net = build_network(
            architecture, channels[self.field], outputs[self.output], weights and Path(weights), pretrained
        )
        self.heads = Heads(self.net, heads, outputs, channels[self.field])
        self.auxiliary = [f"heads.{name}{SUFFIX}" for name, head in heads.items() if not head["keep"]]

    def forward(self, batch: Batch) -> Batch:
        logits, features = self.heads.encode(self.net, batch[self.field])
        return {self.output: logits, **self.heads(features)}

    def head(self) -> list[nn.Module]:
        return [*head_modules(self.net), *self.heads.values()]

    def compiled(self) -> list[nn.Module]:
        # Heads need what is between the layers of the network.
        return list(self.net.children()) if self.heads else [self.net]

    def depths(self, coarse: bool = False) -> dict[str, int]:
        return prefixed(layer_depths(self.net, coarse), "net")

    @property
    def multiple(self) -> int:
        net = cast(Any, self.net)
        return net.encoder.output_stride if getattr(net, "requires_divisible_input_shape", False) else 1


def only(names: Mapping[str, Any], what: str) -> str:
    """Return the only name; refuse none or several."""
    if len(names) != 1:
        raise Refusal(
            f"this network takes one {what}, but there are {', '.join(names) or 'none'}: write a network for them in "
            "solution/networks.py (docs/extend.md)"
        )
    return next(iter(names))


def build_encoder(
    name: str,
    channels: int,
    weights: Path | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Build a timm network without its classifier: (B, C, H, W) to features (B, `num_features`)."""
    return build_network({"library": "timm", "name": name, "options": options or {}}, channels, 0, weights, pretrained)


def head_modules(net: nn.Module) -> list[nn.Module]:
    """Modules that are new for the task: timm's classifiers (two in distilled networks), smp's decoder and head."""
    if hasattr(net, "encoder") and hasattr(net, "segmentation_head"):  # smp
        return [module for name, module in net.named_children() if name != "encoder"]
    head: Any = getattr(net, "get_classifier", list)()  # a feature extractor has none
    return list(head) if isinstance(head, tuple | list) else [head]


def build_network(
    architecture: Architecture, channels: int, classes: int, weights: Path | None = None, pretrained: bool = False
) -> nn.Module:
    """Build a network with output (B, classes) for timm, (B, classes, H, W) for smp.

    Args:
        channels: of the input image; pretrained stems are adapted.
        weights: local file (safetensors or torch) for the network, or for smp's encoder.
        pretrained: load published weights from the hub or its cache, unless `weights` is given.
    """
    library, options = architecture.get("library"), architecture.get("options") or {}
    name, encoder = str(architecture.get("name")), architecture.get("encoder")
    if library not in BUILDERS:
        raise Refusal(_unknown("library", library, BUILDERS, "model.library"))
    if weights is not None and not Path(weights).is_file():
        raise Refusal(f"there is no weight file {weights}: correct model.weights or set it to null")
    build = BUILDERS[library](name, encoder, channels, classes, weights, pretrained or weights is not None)
    overlay: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
    shown = f"{name} with the encoder {encoder}" if encoder else name
    try:
        with _hub_errors(str(encoder or name)) if pretrained and not weights else nullcontext():
            net = build(**overlay, **options)
    except TypeError as error:  # unknown option
        raise Refusal(f"{shown} cannot be built with model.options={dict(options)}: {error}") from error
    except (RuntimeError, KeyError) as error:
        if weights is None:
            raise
        raise Refusal(f"{weights} does not fit {shown}: {OF}") from error
    if weights is not None:
        _check_loaded(net, Path(weights), shown)
    if library == "timm" and (pretrained or weights is not None):
        # Start with equal probabilities: with few classes, some of timm's classifiers start with logits of tens, whose
        # gradients would damage the pretrained features.
        for module in (inner for head in head_modules(net) for inner in head.modules()):
            for parameter in module.parameters() if isinstance(module, nn.Linear | nn.Conv2d) else ():
                nn.init.zeros_(parameter)
    return net


def _timm_builder(
    name: str, encoder: object, channels: int, classes: int, weights: Path | None, load: bool
) -> Callable[..., nn.Module]:
    _check_timm_name(name, "model.name")
    return partial(timm.create_model, name, pretrained=load, in_chans=channels, num_classes=classes)


def _smp_builder(
    name: str, encoder: object, channels: int, classes: int, weights: Path | None, load: bool
) -> Callable[..., nn.Module]:
    import segmentation_models_pytorch as smp

    decoders = {kind.__name__: kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if name not in decoders:
        raise Refusal(_unknown("smp decoder", name, decoders, "model.name"))
    universal = str(encoder).startswith("tu-")
    if universal:
        _check_timm_name(str(encoder)[3:], "model.encoder (after tu-)")
    elif encoder not in smp.encoders.get_encoder_names():
        known = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
        raise Refusal(_unknown("encoder", encoder, known, "model.encoder"))
    elif weights:
        twin = str(encoder).replace("-", "_")
        hint = f"model.encoder=tu-{twin}" if timm.is_model(twin) else "model.encoder=tu-<any timm network>"
        raise Refusal(f"smp's own encoder {encoder} cannot be loaded from the file {weights}: use {hint}")
    published: bool | str = True if universal else "imagenet"
    return partial(
        decoders[name],
        encoder_name=encoder,
        encoder_weights=published if load else None,
        in_channels=channels,
        classes=classes,
    )


BUILDERS: dict[str, Callable[..., Callable[..., nn.Module]]] = {"timm": _timm_builder, "smp": _smp_builder}


def pretrained_normalization(architecture: Architecture, channels: int = 3) -> tuple[list[float], list[float]]:
    """Mean and std of the published weights.

    Other channel counts than 3 follow timm's stem: RGB is repeated (4 channels: R, G, B, R), or averaged for 1 channel.
    """
    name = str(architecture.get("encoder") or architecture.get("name") or "")
    if not name:
        raise Refusal(
            "data.normalize=weights is that of a pretrained network, and there is no model.name: set "
            "data.normalize=dataset or, for experiment=probe, data.features"
        )
    if architecture.get("encoder") and not name.startswith("tu-"):
        raise Refusal(f"the normalisation of smp's own encoder {name} is not known: set data.normalize=dataset")
    _check_timm_name(name.removeprefix("tu-"), "the network")
    config = timm.get_pretrained_cfg(name.removeprefix("tu-"))
    if config is None:
        raise Refusal(f"timm has no weights for {name}, so no normalisation either: set data.normalize=dataset")

    def spread(values: Sequence[float]) -> list[float]:
        if channels == 1:
            return [sum(values) / len(values)]
        return [float(values[channel % len(values)]) for channel in range(channels)]

    return spread(config.mean), spread(config.std)


def choose_normalization(
    normalize: str, image: Mapping[str, Any], architecture: Architecture
) -> tuple[list[float], list[float]]:
    """Mean and std by `data.normalize`; `image` has the statistics of the training images."""
    if normalize == "weights":
        return pretrained_normalization(architecture, image["channels"])
    return image["mean"], image["std"]


def _check_timm_name(name: str, key: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise Refusal(_unknown("timm network", name, timm.list_models(), key))
    known = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in known:
        raise Refusal(_unknown("weights", name, known, key))


def _unknown(what: str, name: object, known: Iterable[str], key: str) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=5, cutoff=0.5) or known[:20]
    return f"unknown {what} {name!r}; correct {key}, for example: {', '.join(close)}"


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn any failure to reach the hub into a Refusal."""
    from huggingface_hub import constants

    problem = None if constants.HF_HUB_OFFLINE else connection_problem(constants.ENDPOINT)
    if problem is not None:
        constants.HF_HUB_OFFLINE = True  # use the cache, and fail at once instead of retrying for minutes
    try:
        yield
    except TypeError:
        raise
    except Exception as error:
        raise Refusal(
            f"the published weights of {name} could not be loaded "
            f"({problem or f'{type(error).__name__}: {str(error)[:200]}'}). "
            "No network? Give model.weights=<file>, or train from scratch with model.pretrained=false"
        ) from error


def _check_loaded(net: nn.Module, weights: Path, name: str) -> None:
    """Refuse weights of another network: timm drops what does not match, and you would silently train from scratch."""
    share = loaded_share(net, weights, head_modules(net))
    if share < 0.5:
        raise Refusal(f"{weights} does not fit {name}: it has only {share:.0%} of the network's parameters; {OF}")


def loaded_share(net: nn.Module, weights: Path, heads: Sequence[nn.Module]) -> float:
    """Share of a network's parameters, without its heads, that a file of weights has.

    Compares values instead of names, since timm renames and reshapes many published files.
    """
    by_size: dict[int, list[Tensor]] = {}
    for tensor in timm.models.load_state_dict(str(weights)).values():
        by_size.setdefault(tensor.numel(), []).append(tensor.flatten())
    head = {id(parameter) for module in heads for parameter in module.parameters()}
    body = [parameter.detach().flatten() for parameter in net.parameters() if id(parameter) not in head]
    loaded = [any(torch.equal(tensor, other.to(tensor)) for other in by_size.get(len(tensor), ())) for tensor in body]
    return sum(len(tensor) for tensor, hit in zip(body, loaded, strict=True) if hit) / max(1, sum(map(len, body)))
