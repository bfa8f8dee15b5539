"""Imports a run's copy of `solution/` as the package `solution_<hash>`, so that several versions can coexist.

Importing foldwise installs a finder for these names in every process. It finds the code through an entry in `sys.path`,
<folder>/solution_<hash>, which does not exist as a folder. multiprocessing passes `sys.path` to every process that it
starts, also through a fork server that started earlier, so objects of these modules can be pickled. Each process reads
the code once and checks its hash; no bytecode is written.
"""

import ast
import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from foldwise.code.source import PACKAGE, Code, read_code, require_trust
from foldwise.errors import Refusal

ALIAS = re.compile(rf"{PACKAGE}_[0-9a-f]{{8}}")
_opened: dict[str, Code] = {}  # by alias


def open_code(source: Path | Code) -> str:
    """Make trusted code importable here and in child processes, and return its package name.

    Args:
        source: a folder that contains `solution/`, such as <run>/code; or collected code, which only forked children
            can import, with tracebacks that show the original files.
    """
    code = source if isinstance(source, Code) else read_code(Path(source).resolve())
    alias = f"{PACKAGE}_{code.hash}"
    entry = str(code.root / alias)
    if not isinstance(source, Code) and entry not in sys.path:  # otherwise the parent process opened it
        require_trust(code)
        sys.path.append(entry)
    known = _opened.setdefault(alias, code)
    if known.digest != code.digest:
        raise Refusal(f"the code in {code.root} has the hash of other code, in {known.root}: open it by itself")
    return alias


def check_covered(alias: str | None) -> None:
    """Raise a Refusal if modules were imported from the working copy of `solution/` instead of the run's copy."""
    here = (Path.cwd() / PACKAGE).resolve()
    names = []
    for name, module in sorted(sys.modules.copy().items()):  # other threads import
        package = name.split(".")[0]
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        below = isinstance(file, str) and Path(file).resolve().is_relative_to(here)
        if package == PACKAGE or (below and not ALIAS.fullmatch(package)):
            names.append(name)
    if names:
        kept = f", not from the run's copy ({_opened[alias].root})" if alias in _opened else ""
        raise Refusal(
            f"{', '.join(names)} was imported from the working copy of {PACKAGE}/{kept}: "
            "use an import statement, so that the run keeps it"
        )


class Finder:
    """Meta path finder for modules of opened code."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The spec of `solution_<hash>` or a module in it; None if not found or not open."""
        alias, *rest = name.split(".")
        code = opened_code(alias)
        if code is None:
            return None
        stem = "/".join([PACKAGE, *rest])
        is_package = any(file.startswith(f"{stem}/") for file in code.files)
        path_in_code = f"{stem}/__init__.py" if is_package else f"{stem}.py"
        if not is_package and path_in_code not in code.files:
            return None
        loader = _Loader(name, str(code.root / path_in_code), alias, code.files.get(path_in_code, b""))
        # No search path: only `files` may be imported, not other content of the folder.
        spec = ModuleSpec(name, loader, origin=loader.path, is_package=is_package)
        spec.has_location = True
        return spec


def opened_code(package: str) -> Code | None:
    """The code of a package that `open_code` returned, which a child process reads here; None for other packages."""
    if package not in _opened and ALIAS.fullmatch(package):
        for entry in sys.path:
            if isinstance(entry, str) and entry.endswith(f"{os.sep}{package}"):
                code = read_code(Path(entry).parent)
                if code.alias != package:
                    raise Refusal(f"{code.root / PACKAGE} was changed while it was in use: start again")
                _opened[package] = code
                break
    return _opened.get(package)


class _Loader(SourceFileLoader):
    """Compiles source from memory, with imports of `solution` renamed to the alias."""

    def __init__(self, name: str, path: str, alias: str, source: bytes) -> None:
        super().__init__(name, path)
        self.alias, self.source = alias, source

    def get_data(self, path: Any) -> bytes:
        return self.source if path == self.path else super().get_data(path)

    def path_stats(self, path: Any) -> Any:
        raise OSError("no bytecode is kept")  # so the import system neither reads nor writes any

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        tree = _Rename(self.alias).visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)


class _Rename(ast.NodeTransformer):
    """Renames imports of `solution` to the alias; bound names stay."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        parts = []
        for item in node.names:
            first, dot, rest = item.name.partition(".")
            if first != PACKAGE:
                parts.append(item)
            elif item.asname:
                parts.append(ast.alias(self.alias + dot + rest, item.asname))
            else:  # `import solution.x` loads solution.x and binds solution
                parts += [ast.alias(self.alias + dot + rest)] if rest else []
                parts.append(ast.alias(self.alias, PACKAGE))
        return [ast.copy_location(ast.Import([ast.copy_location(part, node)]), node) for part in parts]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        first, dot, rest = (node.module or "").partition(".")
        if not node.level and first == PACKAGE:
            node.module = self.alias + dot + rest
        return node


if Finder not in sys.meta_path:
    sys.meta_path.insert(0, Finder)
