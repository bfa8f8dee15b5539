"""The copy of the owner's code in a run: written when the run starts, opened by every command that uses the run."""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foldwise.code.alias import open_code
from foldwise.code.imports import collect_code
from foldwise.code.source import NO_CODE, PACKAGE, Code, read_code, trust, write_code
from foldwise.errors import Refusal

SOLUTION = re.compile(rf"{PACKAGE}(\.\w+)+(:\w+)?")  # a name in solution/
FOLDER = "code"  # in a run; in a bundle, with one folder per hash


def all_targets(config: Any) -> list[str]:
    """Every `_target_` in a configuration, and every other string that names something in `solution/`."""
    if isinstance(config, Mapping):
        own = [config["_target_"]] if isinstance(config.get("_target_"), str) else []
        return sorted({*own, *(target for value in config.values() for target in all_targets(value))})
    if isinstance(config, list | tuple):
        return sorted({target for value in config for target in all_targets(value)})
    return [config] if isinstance(config, str) and SOLUTION.fullmatch(config) else []


def module_target(target: str) -> str:
    """Write a target as package.module:Name."""
    return target if ":" in target else ":".join(target.rpartition(".")[::2])


@contextmanager
def working_code(config: Mapping[str, Any]) -> Iterator[Code]:
    """Copy the code that a configuration reaches in `solution/`, and make it importable within the block.

    Later edits do not affect this process or its children.
    """
    code = collect_code(all_targets(config), Path.cwd())
    with tempfile.TemporaryDirectory(prefix="foldwise-") as scratch:
        entry = ""
        if code.files:
            write_code(code, Path(scratch) / FOLDER)
            trust(code.digest)
            entry = str((Path(scratch) / FOLDER).resolve() / open_code(Path(scratch) / FOLDER))
        try:
            yield code
        finally:
            sys.path[:] = [other for other in sys.path if other != entry]  # child processes would look there


def current_code(config: Mapping[str, Any]) -> Code:
    """Open the working copy's code that a configuration reaches, for commands without child processes."""
    code = collect_code(all_targets(config), Path.cwd())
    if code.files:
        open_code(code)
    return code


def keep_code(code: Code, run: Path) -> None:
    """Copy the code into a new run."""
    if code.files:
        write_code(code, run / FOLDER)


def run_code(run: Path) -> Code:
    """Open the run's copy of the code, if it is trusted."""
    folder = run / FOLDER
    if not (folder / PACKAGE).is_dir():
        return NO_CODE
    open_code(folder)
    return read_code(folder)


def find_code(model: Path, hash: str | None) -> str | None:
    """Open the code that a model folder needs, from its run or bundle, and return its alias; None without a hash."""
    return None if hash is None else open_code(find_code_folder(model, hash))


def find_code_folder(model: Path, hash: str) -> Path:
    """Find the folder of the `solution/` that a model folder needs, or raise a Refusal."""
    for parent in model.resolve().parents:
        for folder in (parent / FOLDER, parent / FOLDER / hash):
            if (folder / PACKAGE).is_dir() and read_code(folder).hash == hash:
                return folder
    raise Refusal(f"{model} needs the code {hash} of its run, and there is none beside it: copy the whole run")
