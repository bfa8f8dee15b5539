"""Models as files: `model.safetensors` and `model.json`, from which a network is built without its configuration.

A model folder from a stranger is safe to load: nothing in it names code or a file, and there is no pickle.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from foldwise import FORMAT_VERSION
from foldwise.data.images import FITS, MODES
from foldwise.errors import Refusal
from foldwise.files import read_json, sha256_file, write_atomic, write_json
from foldwise.models.networks import build_network
from foldwise.models.normalized import Normalized

WEIGHTS, SPEC = "model.safetensors", "model.json"
ARCHITECTURE_KEYS = ("library", "name", "encoder", "options")
# Options with which timm or smp would read a file or ask the hub, or build something that does.
# `drop_path_rate` is none of them, so a bare "path" only counts as the whole name or its end.
FORBIDDEN_OPTIONS = re.compile(r"pretrained|weights|checkpoint|cache|hub|(^|_)(path|file|url)$", re.IGNORECASE)


class ModelError(Refusal):
    """A model folder cannot be used; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that prediction needs to know of a model besides its weights; it is `model.json`.

    Attributes:
        task: "multiclass", "multilabel" or "segmentation".
        architecture: library, name, encoder, options; see `models.networks.build_network`.
        channels: of the image as the network sees it.
        classes: names in the order of the outputs.
        image_size: (height, width) of the images that the network sees.
        fit: "stretch" or "crop", how images get that size.
        mode: "stored", "gray" or "rgb", how images are read.
        scale: the stored value that means 1.0; None: 255 or 65535 by the file's type, 1 for float.
        mean, std: a value a channel, in units of [0, 1].
        version: of the format.
    """

    task: str
    architecture: dict[str, Any]
    channels: int
    classes: Sequence[str]
    image_size: Sequence[int]
    fit: str
    mode: str
    scale: float | None
    mean: Sequence[float]
    std: Sequence[float]
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("classes", "image_size", "mean", "std"):  # lists, as YAML and JSON give them
            object.__setattr__(self, name, tuple(getattr(self, name)))


def save_model(folder: Path, net: nn.Module, spec: ModelSpec) -> None:
    """Write a model folder; an older model in it is replaced, weights first. Loading notices a mix of the two.

    Args:
        net: the network, or the `Normalized` around it; compiled and channels_last ones too.

    Raises:
        ModelError: the weights have NaN or infinite values, or the spec is not valid.
    """
    if isinstance(net, Normalized):
        net = net.net
    problems = _spec_problems(json.loads(json.dumps(asdict(spec))))
    state = {name.replace("_orig_mod.", ""): tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        problems.append(f"{len(bad)} tensors have NaN or infinite values, {bad[0]} first: the training diverged")
    _raise(folder, problems)
    # Cloned, since safetensors refuses tensors that share memory (tied layers) or are not contiguous.
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with write_atomic(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / SPEC, {**asdict(spec), "sha256": sha256_file(folder / WEIGHTS)})


def find_models(fold: Path) -> dict[str, Path]:
    """The model folders of a fold by the names of the snapshots; just `last` where it took none."""
    snapshots = sorted((fold / "snapshots").glob(f"*/{SPEC}"))
    if snapshots:
        return {path.parent.name: path.parent for path in snapshots}
    return {"last": fold / "model"} if (fold / "model" / SPEC).is_file() else {}


def read_spec(folder: Path) -> ModelSpec:
    """The `model.json` of a model folder, without loading the weights.

    Raises:
        ModelError: it is missing, of a newer version, or not valid; lists everything that is wrong.
    """
    return _read(folder)[0]


def load_model(folder: Path) -> tuple[Normalized, ModelSpec]:
    """Build the network of a model folder and load its weights; on the CPU, in eval mode, without the network.

    Raises:
        ModelError: as `read_spec`, or the weights are missing, damaged, or those of another model.
    """
    spec, digest = _read(folder)
    weights = Path(folder) / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{weights} is missing: the training of this fold did not end, run train.py again")
    if sha256_file(weights) != digest:
        raise ModelError(f"{weights} is not the file that {SPEC} was written with: copy the whole folder again")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{weights} cannot be read ({error})") from error
    with torch.random.fork_rng(devices=[]):  # the random initial weights must not move the caller's generator
        try:
            net = build_network(spec.architecture, spec.channels, len(spec.classes), weights=None, pretrained=False)
        except (Refusal, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise ModelError(f"{Path(folder) / SPEC}: the network cannot be built ({error})") from error
    _raise(weights, _state_problems(state, net.state_dict()))
    net.load_state_dict(state)
    return Normalized(net, spec.mean, spec.std).eval(), spec


def _read(folder: Path) -> tuple[ModelSpec, str]:
    path = Path(folder) / SPEC
    if not path.is_file():
        raise ModelError(f"there is no model in {folder} ({SPEC} is missing)")
    try:
        values = read_json(path)
    except Refusal as error:
        raise ModelError(str(error)) from error
    _raise(path, _spec_problems(values))
    digest = values.get("sha256")
    if not isinstance(digest, str):
        raise ModelError(f"{path}: sha256, the hash of {WEIGHTS}, is missing")
    return ModelSpec(**{item.name: values[item.name] for item in fields(ModelSpec)}), digest


def _spec_problems(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return ["it is not a JSON object"]
    version = values.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        return ["it has no version"]
    if version > FORMAT_VERSION:
        return [f"it has version {version}, and this code reads up to {FORMAT_VERSION}: update the code"]
    missing = [item.name for item in fields(ModelSpec) if item.name not in values]
    if missing:
        return [f"it lacks {', '.join(missing)}"]
    channels, size, classes = values["channels"], values["image_size"], values["classes"]
    checks = {
        "task is not multiclass, multilabel or segmentation": values["task"]
        in ("multiclass", "multilabel", "segmentation"),
        "channels is not a positive whole number": _is_count(channels),
        "classes is not a list of different names": _is_list(classes, str) and 0 < len(classes) == len(set(classes)),
        "image_size is not [height, width]": _is_list(size, int) and len(size) == 2 and all(map(_is_count, size)),
        f"fit is not one of {', '.join(FITS)}": values["fit"] in FITS,
        f"mode is not one of {', '.join(MODES)}": values["mode"] in MODES,
        "scale is neither a positive number nor null": values["scale"] is None
        or (_is_number(values["scale"]) and values["scale"] > 0),
        "mean is not a list of numbers, one a channel": _is_list(values["mean"], float)
        and len(values["mean"]) == channels,
        "std is not a list of positive numbers, one a channel": _is_list(values["std"], float)
        and len(values["std"]) == channels
        and min(values["std"], default=0) > 0,
    }
    return [problem for problem, right in checks.items() if not right] + _architecture_problems(values["architecture"])


def _architecture_problems(values: Any) -> list[str]:
    """What could make the builder read a file or ask the hub is refused, along with what it does not know."""
    if not isinstance(values, Mapping):
        return ["architecture is not an object"]
    unknown = [str(name) for name in values if name not in ARCHITECTURE_KEYS]
    problems = [f"architecture has keys that it should not: {', '.join(unknown)}"] if unknown else []
    for name in ("library", "name", "encoder"):
        value = values.get(name)
        if value is None and name == "encoder":
            continue
        if not isinstance(value, str) or not all(c.isalnum() or c in "._-+" for c in value):
            problems.append(f"architecture.{name} is {value!r} and not a plain name")
    options = values.get("options") or {}
    if not isinstance(options, Mapping):
        return [*problems, "architecture.options is not an object"]
    bad = [name for name in _all_keys(options) if FORBIDDEN_OPTIONS.search(name)]
    return problems + ([f"architecture.options must not have {', '.join(bad)}"] if bad else [])


def _state_problems(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    problems = []
    for names, text in (
        ([name for name in wanted if name not in state], "of the network are missing from the file"),
        ([name for name in state if name not in wanted], "of the file are not in the network"),
        (
            [n for n in wanted if n in state and state[n].shape != wanted[n].shape],
            "have another shape than in the network",
        ),
    ):
        if names:
            problems.append(
                f"{len(names)} of {len(wanted)} tensors {text}, {names[0]} first: {SPEC} is of another model"
            )
    return problems


def _all_keys(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [*map(str, value), *(key for inner in value.values() for key in _all_keys(inner))]
    return [key for inner in value for key in _all_keys(inner)] if isinstance(value, list | tuple) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(_is_number(v) if kind is not str else isinstance(v, str) for v in value)


def _raise(where: Path, problems: list[str]) -> None:
    if problems:
        raise ModelError(f"{where}: " + "; ".join(problems))
