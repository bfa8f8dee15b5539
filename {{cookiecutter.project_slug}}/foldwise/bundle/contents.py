"""Contents of a bundle: copies of models, the owner's code they use, and the modules that infer.py imports."""

import shutil
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from foldwise.code import source
from foldwise.code.imports import collect_code, inside, module_name, to_file, walk
from foldwise.code.runs import find_code_folder
from foldwise.code.source import Code
from foldwise.files import read_json, sha256_file, write_json
from foldwise.inference.spec import SPEC, WEIGHTS, ModelSpec

PACKAGE = "foldwise"
LIBRARIES = {"smp": "segmentation_models_pytorch"}  # imported by `foldwise.models.networks` when it builds a network


class Imports(NamedTuple):
    """Files of foldwise, and the third-party modules that they and the owner's code need."""

    files: list[Path]
    needs: list[str]


def find_imports(
    script: Path, root: Path, whole: Collection[str] = (), targets: Iterable[str] = (), codes: Iterable[Code] = ()
) -> Imports:
    """Follow the imports of a script through foldwise in `root`, also inside functions, but not for type checking only.

    foldwise needs the third-party modules of its top-level imports; `whole` modules and the owner's code need all that
    are not in a `try`.

    Args:
        whole: file names of foldwise modules whose imports inside functions are needed too.
        targets: further entry points, as foldwise.module:Name.
        codes: the owner's code.
    """
    main = to_file(script.read_bytes(), script, "__main__")
    owned = [
        to_file(content, code.root / name, module_name(name)) for code in codes for name, content in code.files.items()
    ]
    used = [item.path for file in (main, *owned) for item in file.imports]
    reached = list(walk([PACKAGE, *(target.replace(":", ".") for target in targets), *used], root, PACKAGE))
    needed = [
        item
        for file in (main, *reached)
        for item in file.imports
        if item.eager or (file.path.name in whole and not item.optional)
    ]
    needed += [item for file in owned for item in file.imports if not item.optional]
    needs = {item.module.split(".")[0] for item in needed} - {PACKAGE, source.PACKAGE} - sys.stdlib_module_names
    return Imports(sorted(file.path for file in reached), sorted(needs))


def targets_of(spec: ModelSpec, onnx: bool = False) -> list[str]:
    """Names of a model's reader and network classes; an ONNX file needs no class of its network."""
    return [spec.samples["_target_"]] + [spec.network["_target_"]] * (not onnx)


def needed_code(model: Path, spec: ModelSpec, onnx: bool = False) -> Code | None:
    """Collect the part of the run's code that a model's reader and network use; None if they are foldwise's."""
    owned = [target for target in targets_of(spec, onnx) if inside(target.partition(":")[0], source.PACKAGE)]
    return collect_code(owned, find_code_folder(model, spec.code)) if spec.code is not None and owned else None


def needed_library(spec: ModelSpec) -> set[str]:
    """Packages that foldwise imports only to build this model's network."""
    return {package for library, package in LIBRARIES.items() if spec.network.get("library") == library}


def copy_weights(model: Path, target: Path, half: bool) -> None:
    """Copy the weights of a model folder; `half` rounds them to half precision."""
    shutil.copyfile(model / WEIGHTS, target / WEIGHTS)
    if half:
        _round(target / WEIGHTS)


def copy_spec(model: Path, target: Path, code: Code | None) -> None:
    """Copy the description of a model folder, recording the hashes of the code it needs and of rounded weights."""
    weights = target / WEIGHTS
    changes = {"code": code and code.hash} | ({"sha256": sha256_file(weights)} if weights.is_file() else {})
    write_json(target / SPEC, {**read_json(model / SPEC), **changes})


def _round(weights: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    for name, tensor in state.items():
        rounded = tensor.half() if tensor.dtype == torch.float32 else tensor
        if rounded.isfinite().all():  # a running variance can exceed the range of half precision
            state[name] = rounded
    save_file(state, weights, metadata={"format": "pt"})
