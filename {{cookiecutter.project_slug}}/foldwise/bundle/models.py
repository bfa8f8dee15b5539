"""The models of a bundle: copies of model folders, with the owner's code that they need."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from foldwise.code.imports import collect_code, inside
from foldwise.code.runs import FOLDER, find_code_folder
from foldwise.code.source import PACKAGE, Code, write_code
from foldwise.files import read_json, sha256_file, write_json
from foldwise.inference.weights import SPEC, WEIGHTS, ModelSpec, read_spec

# What `foldwise.models.networks` imports when it builds a network of this library.
LIBRARIES = {"smp": "segmentation_models_pytorch"}


def targets_of(spec: ModelSpec) -> list[str]:
    """The classes of a model: its network and its reader."""
    return [spec.network["_target_"], spec.samples["_target_"]]


def needed_codes(models: Iterable[Path]) -> dict[Path, Code]:
    """By model folder, the files of its run's code that its network and its reader reach; only of those that need any.

    Raises:
        Refusal: the code is not there, or lacks something.
    """
    codes = {}
    for model in models:
        spec = read_spec(model)
        owned = [target for target in targets_of(spec) if inside(target.partition(":")[0], PACKAGE)]
        if spec.code is not None and owned:
            codes[model] = collect_code(owned, find_code_folder(model, spec.code))
    return codes


def needed_libraries(models: Iterable[Path]) -> set[str]:
    """The packages that foldwise imports for the networks of models alone."""
    libraries = {read_spec(model).network.get("library") for model in models}
    return {package for library, package in LIBRARIES.items() if library in libraries}


def copy_model(source: Path, bundle: Path, folder: str, half: bool, codes: Mapping[Path, Code]) -> None:
    """Copy a model into `folder` of a bundle, and what it needs of its run's code into `code/<hash>`.

    Args:
        half: round weights to half precision.
        codes: as `needed_codes` gives.
    """
    target, code = bundle / folder, codes.get(source)
    target.mkdir(parents=True)
    shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
    if half:
        _round(target / WEIGHTS)
    if code is not None:
        write_code(code, bundle / FOLDER / code.hash)
    changes = {"code": code and code.hash, "sha256": sha256_file(target / WEIGHTS)}
    write_json(target / SPEC, {**read_json(source / SPEC), **changes})


def _round(weights: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    for name, tensor in state.items():
        rounded = tensor.half() if tensor.dtype == torch.float32 else tensor
        if rounded.isfinite().all():  # a running variance can be larger than half precision reaches
            state[name] = rounded
    save_file(state, weights, metadata={"format": "pt"})
