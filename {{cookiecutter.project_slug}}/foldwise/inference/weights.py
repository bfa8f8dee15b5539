"""Models as files: `model.safetensors` and `model.json`, from which a network is built without its configuration.

A model folder from a stranger is safe to load: there is no pickle in it, it names classes of foldwise alone or of the
run's own code, which is imported only where it is trusted (`foldwise.code`), and no file or address.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foldwise import FORMAT_VERSION
from foldwise.code.build import resolve_strict
from foldwise.code.runs import find_code
from foldwise.data.images import FITS
from foldwise.data.samples import Samples
from foldwise.errors import Refusal
from foldwise.files import is_number, read_json, sha256_file, write_atomic, write_json
from foldwise.models.network import Network
from foldwise.models.normalized import Normalized
from foldwise.tasks import TASKS
from foldwise.tasks.outputs import Output

WEIGHTS, SPEC = "model.safetensors", "model.json"
# Arguments with which timm or smp would read a file or ask the hub, or build something that does.
# `drop_path_rate` is none of them, so a bare "path" only counts as the whole name or its end.
FORBIDDEN = re.compile(r"pretrained|weights|checkpoint|cache|hub|(^|_)(path|file|url)$", re.IGNORECASE)


class ModelError(Refusal):
    """A model folder cannot be used; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that prediction needs to know of a model besides its weights; it is `model.json`.

    Attributes:
        network: `_target_` ("package.module:Class", a `Network`) and its arguments, such as `channels` and `outputs`.
        samples: the same of the reader, a `Samples`.
        state: what the reader's `fit` gave on the training items.
        outputs: what is predicted, the main output first.
        image_size: (height, width) of the images that the network sees.
        fit: "stretch", "crop" or "tiles", how images get that size.
        images: of each image field, `scale` (the stored value that means 1.0; None: by dtype), `mean` and `std` (a
            value a channel, in units of [0, 1]).
        code: hash of the run's own code that network and reader may need; None: they are foldwise's.
        version: of the format.
    """

    network: dict[str, Any]
    samples: dict[str, Any]
    state: dict[str, Any]
    outputs: tuple[Output, ...]
    image_size: tuple[int, ...]
    fit: str
    images: dict[str, dict[str, Any]]
    code: str | None = None
    version: int = FORMAT_VERSION

    @property
    def main(self) -> Output:
        return self.outputs[0]

    @property
    def task(self) -> str:
        """Of the main output, by name."""
        return self.main.task

    @property
    def classes(self) -> tuple[str, ...]:
        """The columns of the main output."""
        return self.main.columns

    @property
    def scales(self) -> dict[str, float | None]:
        return {name: values["scale"] for name, values in self.images.items()}

    @property
    def reading(self) -> str:
        """All that reading an item depends on; models that agree in it share what is read."""
        return json.dumps([self.samples, self.state, self.scales, self.code], sort_keys=True)

    def plain(self) -> dict[str, Any]:
        """As `model.json` has it, without the hash of the weights."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Model:
    """A loaded model: in eval mode, on the CPU until somebody moves it."""

    network: Normalized
    samples: Samples
    spec: ModelSpec


def save_model(folder: Path, network: Normalized, spec: ModelSpec) -> None:
    """Write a model folder; an older model in it is replaced, weights first. Loading notices a mix of the two.

    Args:
        network: compiled and channels_last ones too; auxiliary submodules are left out.

    Raises:
        ModelError: the weights have NaN or infinite values, or the spec is not valid.
    """
    values = spec.plain()
    problems = _spec_problems(values)
    state = {
        name.replace("_orig_mod.", ""): tensor.detach().cpu() for name, tensor in network.net.lasting_state().items()
    }
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        problems.append(f"{len(bad)} tensors have NaN or infinite values, {bad[0]} first: the training diverged")
    _raise(folder, problems)
    # Cloned, since safetensors refuses tensors that share memory (tied layers) or are not contiguous.
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with write_atomic(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / SPEC, {**values, "sha256": sha256_file(folder / WEIGHTS)})


def find_models(fold: Path) -> dict[str, Path]:
    """The model folders of a fold by the names of the snapshots; just `last` where it took none."""
    snapshots = sorted((fold / "snapshots").glob(f"*/{SPEC}"))
    if snapshots:
        return {path.parent.name: path.parent for path in snapshots}
    return {"last": fold / "model"} if (fold / "model" / SPEC).is_file() else {}


def read_spec(folder: Path) -> ModelSpec:
    """The `model.json` of a model folder, without loading the weights.

    Raises:
        ModelError: it is missing, of another version, or not valid; lists everything that is wrong.
    """
    return _read(folder)[0]


def load_model(folder: Path) -> Model:
    """Build the network of a model folder and load its weights; on the CPU, in eval mode, without the internet.

    Raises:
        ModelError: as `read_spec`, or the weights are missing, damaged, or those of another model.
        Refusal: it needs code of its run that is not there or not trusted.
    """
    folder = Path(folder)
    spec, state = read_spec(folder), load_state(folder)
    alias = find_code(folder, spec.code)
    arguments = {name: value for name, value in spec.network.items() if name != "_target_"}
    with torch.random.fork_rng(devices=[]):  # the random initial weights must not move the caller's generator
        kind = resolve_strict(spec.network["_target_"], alias, Network)
        try:
            net = kind(**arguments)
        except (Refusal, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise ModelError(f"{folder / SPEC}: the network cannot be built ({error})") from error
    net.drop_auxiliary()
    _raise(folder / WEIGHTS, _state_problems(state, net.state_dict()))
    net.load_state_dict(state)
    return Model(normalize(net, spec).eval(), build_samples(spec, alias), spec)


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model folder.

    Raises:
        ModelError: they are missing, damaged, or not those that `model.json` was written with.
    """
    weights = Path(folder) / WEIGHTS
    _, digest = _read(folder)
    if not weights.is_file():
        raise ModelError(f"{weights} is missing: the training of this fold did not end, run train.py again")
    if sha256_file(weights) != digest:
        raise ModelError(f"{weights} is not the file that {SPEC} was written with: copy the whole folder again")
    try:
        return load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{weights} cannot be read ({error})") from error


def normalize(net: Network, spec: ModelSpec) -> Normalized:
    """A network with the normalisation of its images."""
    return Normalized(net, {name: (values["mean"], values["std"]) for name, values in spec.images.items()})


def build_samples(spec: ModelSpec, alias: str | None) -> Samples:
    """The reader of a model.

    Args:
        alias: of the run's code, see `foldwise.code`.
    """
    arguments = {name: value for name, value in spec.samples.items() if name != "_target_"}
    return resolve_strict(spec.samples["_target_"], alias, Samples)(**arguments)


def load_samples(folder: Path) -> Samples:
    """The reader of a model folder, without its weights.

    Raises:
        Refusal: as `load_model`.
    """
    spec = read_spec(folder)
    return build_samples(spec, find_code(Path(folder), spec.code))


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
    own = {item.name: values[item.name] for item in fields(ModelSpec)}
    own["outputs"] = tuple(Output(**{**output, "columns": tuple(output["columns"])}) for output in own["outputs"])
    return ModelSpec(**own | {"image_size": tuple(own["image_size"])}), digest


def _spec_problems(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return ["it is not a JSON object"]
    version = values.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        return ["it has no version"]
    if version != FORMAT_VERSION:
        return [f"it has version {version}, and this code reads {FORMAT_VERSION}: use the code that it was made with"]
    missing = [item.name for item in fields(ModelSpec) if item.name not in values]
    if missing:
        return [f"it lacks {', '.join(missing)}"]
    size, images = values["image_size"], values["images"]
    checks = {
        "image_size is not [height, width]": _is_list(size, int) and len(size) == 2 and all(map(_is_count, size)),
        f"fit is not one of {', '.join(FITS)}": values["fit"] in FITS,
        "state is not an object": isinstance(values["state"], dict),
        "code is neither a hash nor null": values["code"] is None
        or bool(re.fullmatch(r"[0-9a-f]{8}", str(values["code"]))),
        "images is not an object with scale, mean and std of each image field": isinstance(images, dict)
        and all(isinstance(image, dict) and {"scale", "mean", "std"} == set(image) for image in images.values()),
    }
    problems = [problem for problem, right in checks.items() if not right]
    problems += _output_problems(values["outputs"])
    for what in ("network", "samples"):
        problems += _part_problems(what, values[what])
    if problems:
        return problems
    for output in values["outputs"]:
        if values["network"]["outputs"].get(output["key"]) != len(output["columns"]):
            problems.append(f"network.outputs.{output['key']} is not the number of that output's columns")
    if set(images) != set(values["network"]["channels"]):
        problems.append("images and network.channels are not of the same fields")
    for name, image in images.items():
        numbers = all(_is_list(image[key], float) for key in ("mean", "std"))
        if not numbers or len(image["mean"]) != len(image["std"]) or min(image["std"], default=0) <= 0:
            problems.append(f"images.{name}: mean and std are not lists of numbers, one a channel, std above 0")
        elif values["network"]["channels"].get(name, len(image["mean"])) != len(image["mean"]):
            problems.append(f"images.{name}: mean has not one value a channel")
        if image["scale"] is not None and not (is_number(image["scale"]) and image["scale"] > 0):
            problems.append(f"images.{name}: scale is neither a positive number nor null")
    return problems


def _output_problems(outputs: Any) -> list[str]:
    keys = {item.name for item in fields(Output)}
    if not (isinstance(outputs, list) and outputs and all(isinstance(o, dict) and set(o) == keys for o in outputs)):
        return [f"outputs is not a list of objects with {', '.join(sorted(keys))}"]
    problems = []
    for output in outputs:
        columns = output["columns"]
        if not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
            problems.append("columns of an output is not a list of names")
        elif not columns or len(columns) != len(set(columns)):
            problems.append("columns of an output is not a list of different names")
        if str(output["task"]) not in TASKS:
            problems.append(f"the task {output['task']!r} is not one of {', '.join(TASKS)}")
        if not all(isinstance(output[key], str) for key in ("name", "key", "target")):
            problems.append("name, key and target of an output are not texts")
        elif not re.fullmatch(r"\w*", output["name"]):
            problems.append(f"the name of the output {output['name']!r} has other characters than letters and digits")
    if not problems and len({output["name"] for output in outputs}) < len(outputs):
        problems.append("outputs have the same name")
    return problems


def _part_problems(what: str, values: Any) -> list[str]:
    """What could make a part read a file or ask the hub is refused."""
    if not isinstance(values, Mapping) or not isinstance(values.get("_target_"), str):
        return [f"{what} is not an object with a _target_"]
    arguments = {name: value for name, value in values.items() if name != "_target_"}
    bad = [name for name in _all_keys(arguments) if FORBIDDEN.search(name) or name == "_target_"]
    problems = [f"{what} must not have {', '.join(bad)}"] if bad else []
    if what == "network":
        for key in ("channels", "outputs"):
            counts = values.get(key)
            if not isinstance(counts, Mapping) or not all(map(_is_count, counts.values())):
                problems.append(f"network.{key} is not an object of positive whole numbers")
        for name in ("library", "name", "encoder"):
            value = values.get(name)
            plain = isinstance(value, str) and all(c.isalnum() or c in "._-+" for c in value)
            if value is not None and not plain:
                problems.append(f"network.{name} is {value!r} and not a plain name")
    return problems


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


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(is_number(v) if kind is not str else isinstance(v, str) for v in value)


def _raise(where: Path, problems: list[str]) -> None:
    if problems:
        raise ModelError(f"{where}: " + "; ".join(problems))
