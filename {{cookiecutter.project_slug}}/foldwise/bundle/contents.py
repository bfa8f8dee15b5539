"""Contents of a bundle: copies of models, the owner's code that they reach, and the modules that a script imports."""

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
LIBRARIES = {"smp": "segmentation_models_pytorch"}  # imported by `foldwise.models.networks` as a network is built


class Imports(NamedTuple):
    """Files of foldwise, and the other packages that these import on loading and the owner's code anywhere."""

    files: list[Path]
    needs: list[str]


def find_imports(
    script: Path, root: Path, whole: Collection[str] = (), targets: Iterable[str] = (), codes: Iterable[Code] = ()
) -> Imports:
    """Follow the imports of a script through foldwise in `root`, those within functions too, not those for type
    checkers.

    Args:
        whole: names of files whose imports within functions are needed, too.
        targets: what else is used of foldwise, as foldwise.module:Name.
        codes: the owner's code that is used; what it imports in a `try` is not needed.
    """
    own = to_file(script.read_bytes(), script, "__main__")
    owned = [
        to_file(content, code.root / name, module_name(name)) for code in codes for name, content in code.files.items()
    ]
    used = [item.path for file in (own, *owned) for item in file.imports]
    reached = list(walk([PACKAGE, *(target.replace(":", ".") for target in targets), *used], root, PACKAGE))
    needed = [item for file in (own, *reached) for item in file.imports if item.eager or file.path.name in whole]
    needed += [item for file in owned for item in file.imports if not item.optional]
    needs = {item.module.split(".")[0] for item in needed} - {PACKAGE, source.PACKAGE} - sys.stdlib_module_names
    return Imports(sorted(file.path for file in reached), sorted(needs))


def targets_of(spec: ModelSpec) -> list[str]:
    """The classes of a model: its network and its reader."""
    return [spec.network["_target_"], spec.samples["_target_"]]


def needed_code(model: Path, spec: ModelSpec) -> Code | None:
    """The part of its run's code that a model's network and reader reach; None if they are foldwise's.

    Raises:
        Refusal: the code is not there, or lacks something.
    """
    owned = [target for target in targets_of(spec) if inside(target.partition(":")[0], source.PACKAGE)]
    return collect_code(owned, find_code_folder(model, spec.code)) if spec.code is not None and owned else None


def needed_library(spec: ModelSpec) -> set[str]:
    """The package that foldwise imports for the network of a model alone."""
    return {package for library, package in LIBRARIES.items() if spec.network.get("library") == library}


def copy_model(model: Path, target: Path, half: bool, code: Code | None) -> None:
    """Copy a model folder, with the hash of the code that it needs; `half` rounds weights to half precision."""
    target.mkdir(parents=True)
    shutil.copyfile(model / WEIGHTS, target / WEIGHTS)
    if half:
        _round(target / WEIGHTS)
    changes = {"code": code and code.hash, "sha256": sha256_file(target / WEIGHTS)}
    write_json(target / SPEC, {**read_json(model / SPEC), **changes})


def _round(weights: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    for name, tensor in state.items():
        rounded = tensor.half() if tensor.dtype == torch.float32 else tensor
        if rounded.isfinite().all():  # a running variance can be larger than half precision reaches
            state[name] = rounded
    save_file(state, weights, metadata={"format": "pt"})
