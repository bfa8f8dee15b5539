"""What files import, and which files of a package are reached that way. Nothing is imported or executed."""

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from foldwise.code.syntax import parse

CAUGHT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
# What finds modules by names that are made while the code runs.
DYNAMIC = {
    "importlib", "importlib.import_module", "importlib.reload", "importlib.util", "importlib.machinery", "pkgutil",
    "runpy", "sys.modules",
}  # fmt: skip


class Import(NamedTuple):
    """`import a.b`, or one name of `from a import b`.

    Attributes:
        module: what must be a module: a.b, or a; "" for a relative import that leaves the outermost package.
        name: what is taken from it, perhaps a module too, "*" for everything; "" for a plain import.
        bound, target: the name that it binds ("" for "*"), and to what: `import a.b` binds a, `import a.b as c` a.b.
        line: where it is in the file.
        eager: whether loading the file imports it, not only a call of a function.
        optional: whether an ImportError is caught around it.
    """

    module: str
    name: str
    bound: str
    target: str
    line: int
    eager: bool = True
    optional: bool = False

    @property
    def path(self) -> str:
        """Everything that is imported, as a.b; a for everything of a."""
        return f"{self.module}.{self.name}" if self.name and self.name != "*" else self.module


class File(NamedTuple):
    """A file of a package that was reached.

    Attributes:
        module: its dotted name.
        problem: the syntax error, as "line 3: invalid syntax"; the tree is empty then.
    """

    path: Path
    module: str
    source: bytes
    tree: ast.Module
    imports: list[Import]
    problem: str = ""

    @property
    def package(self) -> str:
        """Where its relative imports start."""
        return self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]


class Located(NamedTuple):
    """Where a dotted name leads: the files that importing it runs, outermost first; the module, and what follows it."""

    files: list[Path]
    module: str
    rest: list[str]


def walk(names: Iterable[str], root: Path, package: str, excluded: Collection[str] = ()) -> Iterator[File]:
    """The files of `root/package` that modules, or names in them, reach by imports, those within functions too.

    The `__init__.py` of each package on the way is reached, too; imports for type checkers alone are passed over.

    Args:
        names: dotted, such as foldwise.training.fold; those of other packages are passed over.
        excluded: modules and packages that are not entered, and so neither is what only they reach.
    """
    waiting, seen = list(names), set[Path]()
    while waiting:
        name = waiting.pop()
        if not inside(name, package) or any(inside(name, other) for other in excluded):
            continue
        for path in locate(name, root).files:
            if path not in seen:
                seen.add(path)
                file = read_file(path, root)
                yield file
                waiting += [item.path for item in file.imports]


def read_file(path: Path, root: Path) -> File:
    """A file with its syntax tree and imports."""
    return to_file(path.read_bytes(), path, module_name(path.relative_to(root).as_posix()))


def to_file(source: bytes, path: Path, module: str) -> File:
    """A file from its content."""
    try:
        file = File(path, module, source, parse(source), [])
    except SyntaxError as error:
        return File(path, module, source, ast.Module([], []), [], f"line {error.lineno or 1}: {error.msg}")
    file.imports.extend(find_imports(file.tree, file.package))
    return file


def find_imports(node: ast.AST, package: str = "", eager: bool = True, optional: bool = False) -> Iterator[Import]:
    """The imports in a syntax tree, except those for type checkers alone.

    Args:
        package: the dotted package of the file, from which relative imports start.
        eager, optional: what holds around `node`.
    """
    if isinstance(node, ast.Import):
        for alias in node.names:
            first = alias.name.split(".")[0]
            bound, target = (alias.asname, alias.name) if alias.asname else (first, first)
            yield Import(alias.name, "", bound, target, node.lineno, eager, optional)
    elif isinstance(node, ast.ImportFrom):
        module = _absolute(node, package)
        for alias in node.names:
            bound, target = (
                ("", module) if alias.name == "*" else (alias.asname or alias.name, f"{module}.{alias.name}")
            )
            yield Import(module, alias.name, bound, target, node.lineno, eager, optional)
    elif isinstance(node, ast.If) and is_type_checking(node.test):
        for child in node.orelse:
            yield from find_imports(child, package, eager, optional)
    else:
        eager = eager and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        caught = isinstance(node, ast.Try | ast.TryStar) and any(map(_catches_imports, node.handlers))
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from find_imports(child, package, eager, optional or (caught and field == "body"))


def locate(name: str, root: Path) -> Located:
    """Follow a dotted name through the packages and modules in `root`."""
    parts, path, files = name.split("."), root, list[Path]()
    for number, part in enumerate(parts):
        path = path / part
        if (path / "__init__.py").is_file():
            files.append(path / "__init__.py")
        elif (path.parent / f"{part}.py").is_file():
            return Located([*files, path.parent / f"{part}.py"], ".".join(parts[: number + 1]), parts[number + 1 :])
        elif not path.is_dir():
            return Located(files, ".".join(parts[:number]), parts[number:])
    return Located(files, name, [])


def module_name(path: str) -> str:
    """a.b for a/b.py and a for a/__init__.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def inside(name: str, package: str) -> bool:
    """Whether a dotted name is a package or something in it."""
    return name == package or name.startswith(f"{package}.")


def is_type_checking(test: ast.expr) -> bool:
    """Whether the test of an `if` is TYPE_CHECKING."""
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    if node.level > len(parts) or not package:
        return ""
    return ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or getattr(kind, "id", "") in CAUGHT for kind in kinds)
