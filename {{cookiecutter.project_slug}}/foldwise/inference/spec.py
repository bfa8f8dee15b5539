"""`model.json`: everything prediction needs besides the weights.

A model folder from a stranger is safe to load: no pickle, no file names or URLs, and only classes of foldwise or of the
run's own code, which is imported only if trusted (`foldwise.code`).
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from foldwise import FORMAT_VERSION
from foldwise.data.images import FITS
from foldwise.data.orientation import EXIF
from foldwise.errors import Refusal
from foldwise.files import is_number, read_json
from foldwise.tasks import TASKS
from foldwise.tasks.outputs import Output
from foldwise.tasks.transforms import is_transform

WEIGHTS, SPEC = "model.safetensors", "model.json"
# Arguments that make timm or smp read a file or ask the hub. "path" counts only as the whole name or its last word,
# because `drop_path_rate` is harmless.
FORBIDDEN = re.compile(r"pretrained|weights|checkpoint|cache|hub|(^|_)(path|file|url)$|^_target_$", re.IGNORECASE)
PLAIN = re.compile(r"[\w.+-]+")  # network names: no path, no "hf-hub:"


class ModelError(Refusal):
    """A model folder cannot be used."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The content of `model.json`.

    Attributes:
        network: `_target_` ("package.module:Class" of a `Network`) and its arguments.
        samples: the same for the reader, a `Samples`.
        state: result of the reader's `fit` on the training items.
        outputs: the main output comes first.
        image_size: (height, width) of the network's input.
        fit: how images get that size: "stretch", "crop" or "tiles".
        images: for each image field `scale` (the stored value that means 1.0; None: by dtype), and `mean` and `std`
            per channel, in units of [0, 1].
        exif: "apply" turns images by their EXIF orientation, "ignore" does not; None: no training image had one, and
            others are turned.
        code: hash of the run's own code; None if network and reader come from foldwise.
        sha256: of the weights file.
    """

    network: dict[str, Any]
    samples: dict[str, Any]
    state: dict[str, Any]
    outputs: tuple[Output, ...]
    image_size: tuple[int, ...]
    fit: str
    images: dict[str, dict[str, Any]]
    exif: str | None = None
    code: str | None = None
    version: int = FORMAT_VERSION
    sha256: str = field(default="", compare=False)

    @property
    def main(self) -> Output:
        return self.outputs[0]

    @property
    def task(self) -> str:
        return self.main.task

    @property
    def classes(self) -> tuple[str, ...]:
        return self.main.columns

    @property
    def scales(self) -> dict[str, float | None]:
        return {name: values["scale"] for name, values in self.images.items()}

    @property
    def reading(self) -> str:
        """Everything that affects how an item is read; models with equal values share the samples."""
        return json.dumps([self.samples, self.state, self.scales, self.exif, self.code], sort_keys=True)

    def plain(self) -> dict[str, Any]:
        """Content of `model.json`; ModelError if it is not valid."""
        values = json.loads(json.dumps(asdict(self)))
        raise_problems(SPEC, _problems(values))
        return values


def read_spec(folder: Path) -> ModelSpec:
    """Read the `model.json` of a model folder; ModelError lists everything that is wrong."""
    path = Path(folder) / SPEC
    if not path.is_file():
        raise ModelError(f"{folder} has no model ({SPEC} is missing)")
    try:
        values = read_json(path)
    except Refusal as error:
        raise ModelError(str(error)) from error
    raise_problems(path, _problems(values))
    known = {"exif": "ignore"} | {item.name: values[item.name] for item in fields(ModelSpec) if item.name in values}
    outputs = tuple(
        Output(
            *(output["name"], output["key"], output["target"], tuple(output["columns"]), output["task"]),
            transform=output.get("transform"),  # older models lack it
        )
        for output in known["outputs"]
    )
    return ModelSpec(**known | {"outputs": outputs, "image_size": tuple(known["image_size"])})


def raise_problems(where: object, problems: list[str]) -> None:
    if problems:
        raise ModelError(f"{where}: " + "; ".join(problems))


def _problems(values: Any) -> list[str]:
    version = values.get("version") if isinstance(values, dict) else None
    if not _is_count(version):
        return ["it has no version"]
    if version != FORMAT_VERSION:
        return [f"it has version {version}, but this code reads {FORMAT_VERSION}: use the foldwise that wrote it"]
    problems = [text for text, check in REQUIRED.items() if not _passes(check, values)]
    for what in ("network", "samples"):
        bad = [name for name in _all_keys(values.get(what), top=True) if FORBIDDEN.search(name)]
        problems += [f"{what} must not have {', '.join(bad)}"] if bad else []
    return problems


def _passes(check: Callable[[dict[str, Any]], object], values: dict[str, Any]) -> bool:
    try:
        return bool(check(values))
    except (KeyError, TypeError, AttributeError, ValueError):  # a missing key or a wrong type
        return False


def _all_keys(value: Any, top: bool = False) -> list[str]:
    """Keys at every level, except `_target_` at the top one."""
    if isinstance(value, Mapping):
        return [key for key in value if not (top and key == "_target_")] + _all_keys(list(value.values()))
    return [key for inner in value for key in _all_keys(inner)] if isinstance(value, list) else []


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_statistics(image: dict[str, Any], channels: int) -> bool:
    mean, std, scale = image["mean"], image["std"], image["scale"]
    return (
        all(map(is_number, [*mean, *std]))
        and len(mean) == len(std) == channels
        and min(std) > 0
        and (scale is None or (is_number(scale) and scale > 0))
    )


REQUIRED: dict[str, Callable[[dict[str, Any]], object]] = {
    "image_size must be [height, width]": lambda v: [_is_count(n) for n in v["image_size"]] == [True, True],
    f"fit must be one of {', '.join(FITS)}": lambda v: v["fit"] in FITS,
    f"exif must be one of {', '.join(EXIF)} or null": lambda v: v.get("exif") in (None, *EXIF),  # older models lack it
    "state must be an object": lambda v: isinstance(v["state"], dict),
    "code must be a hash or null": lambda v: v["code"] is None or re.fullmatch("[0-9a-f]{8}", v["code"]),
    f"sha256 must be the hash of {WEIGHTS}": lambda v: isinstance(v["sha256"], str),
    "network and samples must have a _target_": lambda v: _is_texts([v[k]["_target_"] for k in ("network", "samples")]),
    "library, name and encoder of network must be plain names": lambda v: all(
        v["network"].get(key) is None or PLAIN.fullmatch(v["network"][key]) for key in ("library", "name", "encoder")
    ),
    "network.channels and network.outputs must map names to positive whole numbers": lambda v: all(
        _is_count(count) for key in ("channels", "outputs") for count in v["network"][key].values()
    ),
    "outputs must be a list of different names, of letters and digits": lambda v: (
        v["outputs"]
        and len({output["name"] for output in v["outputs"]}) == len(v["outputs"])
        and all(re.fullmatch(r"\w*", output["name"]) for output in v["outputs"])
    ),
    f"outputs must have key, target, and a task out of {', '.join(TASKS)}": lambda v: all(
        _is_texts([output["key"], output["target"]]) and output["task"] in TASKS for output in v["outputs"]
    ),
    "columns of outputs must be lists of different names": lambda v: all(
        _is_texts(output["columns"]) and len(set(output["columns"])) == len(output["columns"]) > 0
        for output in v["outputs"]
    ),
    "transform of outputs must be null, or the state of one of foldwise.tasks.transforms": lambda v: all(
        is_transform(output.get("transform"), len(output["columns"])) for output in v["outputs"]
    ),
    "network.outputs must have the number of columns of each output": lambda v: all(
        v["network"]["outputs"].get(output["key"]) == len(output["columns"]) for output in v["outputs"]
    ),
    "images must have the fields of network.channels": lambda v: set(v["images"]) == set(v["network"]["channels"]),
    "images must have mean and std (one value per channel, std above 0) and scale (above 0 or null)": lambda v: all(
        _are_statistics(image, v["network"]["channels"].get(name)) for name, image in v["images"].items()
    ),
}
