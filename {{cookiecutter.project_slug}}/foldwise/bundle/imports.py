"""Which modules a script needs, read from its imports: what goes into a bundle, and what its host must have."""

import ast
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "foldwise"


class Imports(NamedTuple):
    """Files of the package, and the other packages that they import as they are loaded; not those within functions."""

    files: list[Path]
    needs: list[str]


def find_imports(script: Path, root: Path, whole: Collection[str] = ()) -> Imports:
    """Follow the imports of a script through the package in `root`, those within functions too.

    Imports for type checkers alone are passed over.

    Args:
        whole: names of files whose imports within functions are needed, too.
    """
    waiting, files, needs = [script], {root / PACKAGE / "__init__.py"}, set()
    while waiting:
        path = waiting.pop()
        for name, eager in _imported(ast.parse(path.read_text(encoding="utf-8")), True):
            if name.split(".")[0] == PACKAGE:
                found = set(_module_files(name, root)) - files
                files |= found
                waiting += found
            elif (eager or path.name in whole) and name.split(".")[0] not in sys.stdlib_module_names:
                needs.add(name.split(".")[0])
    return Imports(sorted(files), sorted(needs))


def _imported(node: ast.AST, eager: bool) -> Iterator[tuple[str, bool]]:
    """(name, whether loading the module imports it); `from a import b` gives a.b, which may be a module or not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((f"{child.module}.{alias.name}", eager) for alias in child.names)
        elif not (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"):
            yield from _imported(child, eager and not isinstance(child, ast.FunctionDef))


def _module_files(name: str, root: Path) -> Iterator[Path]:
    """The files of a module and of the packages it is in."""
    path = root
    for part in name.split("."):
        path = path / part
        if (path / "__init__.py").is_file():
            yield path / "__init__.py"
        elif path.with_suffix(".py").is_file():
            yield path.with_suffix(".py")
