"""The owner's code that a run carries: copied when the run starts, opened by whatever uses the run."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foldwise.code.alias import open_code
from foldwise.code.imports import collect_code
from foldwise.code.source import NO_CODE, PACKAGE, Code, read_code, trust, write_code
from foldwise.errors import Refusal

SOLUTION = re.compile(rf"{PACKAGE}(\.\w+)+(:\w+)?")  # something in solution/
FOLDER = "code"  # of a run; of a bundle, with a folder for each hash


def all_targets(config: Any) -> list[str]:
    """Every target in a configuration: what `_target_` names, and other texts that name something in `solution/`."""
    if isinstance(config, Mapping):
        own = [config["_target_"]] if isinstance(config.get("_target_"), str) else []
        return sorted({*own, *(target for value in config.values() for target in all_targets(value))})
    if isinstance(config, list | tuple):
        return sorted({target for value in config for target in all_targets(value)})
    return [config] if isinstance(config, str) and SOLUTION.fullmatch(config) else []


def module_target(target: str) -> str:
    """A target as package.module:Name."""
    return target if ":" in target else ":".join(target.rpartition(".")[::2])


@contextmanager
def working_code(config: Mapping[str, Any], root: Path | None = None) -> Iterator[Code]:
    """The code that a configuration reaches in `root/solution` as it is now, importable within the block.

    It is copied first, so that what is edited meanwhile changes nothing, also in processes that are started.

    Args:
        root: the folder that `solution/` is in; None: the current one.
    """
    code = collect_code(all_targets(config), root or Path.cwd())
    with tempfile.TemporaryDirectory(prefix="foldwise-") as scratch:
        if code.files:
            write_code(code, Path(scratch) / FOLDER)
            trust(code.digest)
            open_code(Path(scratch) / FOLDER)
        yield code


def current_code(config: Mapping[str, Any]) -> Code:
    """The working copy's code that a configuration reaches, opened, for commands that start no processes with it."""
    code = collect_code(all_targets(config), Path.cwd())
    if code.files:
        open_code(code)
    return code


def keep_code(code: Code, run: Path) -> None:
    """Give a new run its copy."""
    if code.files:
        write_code(code, run / FOLDER)


def run_code(run: Path) -> Code:
    """The copy that a run carries, opened, if it is trusted."""
    folder = run / FOLDER
    if not (folder / PACKAGE).is_dir():
        return NO_CODE
    open_code(folder)
    return read_code(folder)


def find_code(model: Path, hash: str | None) -> str | None:
    """The alias of the code with a hash that a model folder needs, from the run or the bundle that it is in, opened."""
    return None if hash is None else open_code(find_code_folder(model, hash))


def find_code_folder(model: Path, hash: str) -> Path:
    """The folder with the `solution/` that a model folder needs, or a Refusal if it is not there."""
    for parent in model.resolve().parents:
        for folder in (parent / FOLDER, parent / FOLDER / hash):
            if (folder / PACKAGE).is_dir() and read_code(folder).hash == hash:
                return folder
    raise Refusal(f"{model} needs the code {hash} of its run, and there is none beside it: copy the whole run")
