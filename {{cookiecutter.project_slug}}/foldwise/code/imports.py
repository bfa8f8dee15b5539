"""Finds the files of a package that imports reach, and checks them. Imports and executes nothing."""

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from foldwise.code.source import PACKAGE, Code
from foldwise.code.syntax import Bindings, Import, find_imports, parse
from foldwise.errors import Refusal, did_you_mean

# Modules and functions for imports by computed names.
DYNAMIC = {
    "importlib", "importlib.import_module", "importlib.reload", "importlib.util", "importlib.machinery", "pkgutil",
    "runpy", "sys.modules",
}  # fmt: skip


class File(NamedTuple):
    """A file of a package.

    Attributes:
        module: its dotted name.
        problem: a syntax error, as "line 3: invalid syntax"; the tree is then empty.
    """

    path: Path
    module: str
    source: bytes
    tree: ast.Module
    imports: list[Import]
    problem: str = ""

    @property
    def package(self) -> str:
        """Base of its relative imports."""
        return self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]


class Located(NamedTuple):
    """A dotted name on disk: the files that its import runs, outermost first; its module; the rest of the name."""

    files: list[Path]
    module: str
    rest: list[str]


def collect_code(targets: Iterable[str], root: Path) -> Code:
    """Collect the files of `root/solution` that targets reach by imports.

    A file with dynamic imports (importlib, exec) reaches every file.

    Args:
        targets: such as solution.module.Module or solution.networks:Network; other packages are ignored.

    Raises:
        Refusal: missing names, syntax errors, and imports of files beside `solution/`, with file and line.
    """
    names = {target: target.replace(":", ".") for target in sorted(targets)}
    in_solution = {target: name for target, name in names.items() if inside(name, PACKAGE)}
    files = {file.path: file for file in walk(in_solution.values(), root, PACKAGE)}
    if any(map(_is_dynamic, files.values())):
        files = {path: read_file(path, root) for path in (root / PACKAGE).rglob("*.py")}
    problems = [f"{target}: {problem}" for target, name in names.items() if (problem := _loose_problem(name, root))]
    for target, name in in_solution.items():
        found = locate(name, root)
        if not found.rest:
            problems.append(f"{target} is a module; name what is in it, as {target}.Name")
        elif problem := _missing(found.module, found.rest[0], root):
            problems.append(f"{target}: {problem}")
    for path, file in sorted(files.items()):
        name = path.relative_to(root).as_posix()
        problems += [f"{name}, {file.problem}"] if file.problem else []
        checked = [(item.line, _import_problem(item, root)) for item in file.imports]
        problems += [f"{name}, line {line}: {problem}" for line, problem in checked if problem]
    if problems:
        raise Refusal("\n".join(dict.fromkeys(problems)))
    sources = {path.relative_to(root).as_posix(): file.source for path, file in sorted(files.items())}
    return Code(sources, root.resolve())


def walk(names: Iterable[str], root: Path, package: str, excluded: Collection[str] = ()) -> Iterator[File]:
    """Yield the files of `root/package` that names reach by imports, also by imports within functions.

    Includes the `__init__.py` of each package on the way; ignores imports under TYPE_CHECKING.

    Args:
        names: dotted modules, or names in modules, such as foldwise.training.fold; other packages are ignored.
        excluded: modules and packages to skip.
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
    """Read and parse a file."""
    return to_file(path.read_bytes(), path, module_name(path.relative_to(root).as_posix()))


def to_file(source: bytes, path: Path, module: str) -> File:
    """Parse a file from its content."""
    try:
        file = File(path, module, source, parse(source), [])
    except SyntaxError as error:
        return File(path, module, source, ast.Module([], []), [], f"line {error.lineno or 1}: {error.msg}")
    file.imports.extend(find_imports(file.tree, file.package))
    return file


def locate(name: str, root: Path) -> Located:
    """Locate a dotted name below `root`."""
    parts, files = name.split("."), list[Path]()
    for count in range(1, len(parts) + 1):
        path = root.joinpath(*parts[:count])
        if (path / "__init__.py").is_file():
            files.append(path / "__init__.py")
        elif (file := path.parent / f"{path.name}.py").is_file():
            return Located([*files, file], ".".join(parts[:count]), parts[count:])
        elif not path.is_dir():
            return Located(files, ".".join(parts[: count - 1]), parts[count - 1 :])
    return Located(files, name, [])


def module_name(path: str) -> str:
    """Return a.b for a/b.py, and a for a/__init__.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def inside(name: str, package: str) -> bool:
    """True if a dotted name is the package or inside it."""
    return name == package or name.startswith(f"{package}.")


def _import_problem(item: Import, root: Path) -> str:
    first = item.module.split(".")[0]
    if item.optional:
        return ""
    if not item.module:
        return f"a relative import cannot leave {PACKAGE}/"
    if first == PACKAGE:
        found = locate(item.module, root)
        if found.rest:
            return _missing(found.module, found.rest[0], root, must_be_module=True)
        return _missing(item.module, item.name, root) if locate(item.path, root).rest else ""
    return _loose_problem(item.path, root)


def _loose_problem(name: str, root: Path) -> str:
    """The problem of a module in the working folder, outside of solution/; "" if it is elsewhere."""
    first = name.split(".")[0]
    if first in (PACKAGE, "foldwise") or not locate(name, root).files:
        return ""
    return f"{first} lies beside {PACKAGE}/, and a run would not keep it; move it to {PACKAGE}/{first}"


def _missing(module: str, name: str, root: Path, must_be_module: bool = False) -> str:
    """The problem of a name missing in a module; "" if it exists or may exist at run time."""
    if not module:
        return f"there is no folder {PACKAGE}/ in {root.resolve()}"
    folder = root.joinpath(*module.split("."))
    paths = [] if must_be_module else [folder / "__init__.py", folder.parent / f"{folder.name}.py"]
    path = next((path for path in paths if path.is_file()), None)
    known = {path.parent.name if path.name == "__init__.py" else path.stem for path in folder.rglob("*.py")}
    if path is not None:
        file = read_file(path, root)
        defined = set(Bindings(file.tree.body).names)
        if file.problem or defined & {name, "__getattr__"} or any(item.name == "*" for item in file.imports):
            return ""
        known |= defined
    where = f"{folder.relative_to(root).as_posix()}/" if path is None else path.relative_to(root).as_posix()
    return f"there is no {name} in {where}{did_you_mean(name, known)}"


def _is_dynamic(file: File) -> bool:
    names = (node.id for node in ast.walk(file.tree) if isinstance(node, ast.Name))
    return any(item.path in DYNAMIC for item in file.imports) or not {"__import__", "exec", "eval"}.isdisjoint(names)
