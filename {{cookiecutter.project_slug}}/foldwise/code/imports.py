"""Which files of a package are reached by imports, and what is wrong with them. Nothing is imported or executed."""

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from foldwise.code.source import PACKAGE, Code
from foldwise.code.syntax import Bindings, Import, find_imports, parse
from foldwise.errors import Refusal, did_you_mean

# Modules and functions that import by names made while the code runs.
DYNAMIC = {
    "importlib", "importlib.import_module", "importlib.reload", "importlib.util", "importlib.machinery", "pkgutil",
    "runpy", "sys.modules",
}  # fmt: skip


class File(NamedTuple):
    """A file of a package.

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


def collect_code(targets: Iterable[str], root: Path) -> Code:
    """The files of `root/solution` that targets reach by imports.

    A reached file that imports by names made while it runs (importlib, exec) reaches every file.

    Args:
        targets: such as solution.module.Module or solution.networks:Network; those of packages are ignored.

    Raises:
        Refusal: what is not there, syntax errors, and uses of files beside `solution/`; each with file and line.
    """
    names = {target: target.replace(":", ".") for target in sorted(targets)}
    wanted = {target: name for target, name in names.items() if inside(name, PACKAGE)}
    files = {file.path: file for file in walk(wanted.values(), root, PACKAGE)}
    if any(map(_is_dynamic, files.values())):
        files = {path: read_file(path, root) for path in (root / PACKAGE).rglob("*.py")}
    problems = [f"{target}: {problem}" for target, name in names.items() if (problem := _loose_problem(name, root))]
    for target, name in wanted.items():
        found = locate(name, root)
        if not found.rest:
            problems.append(f"{target} is a module; name what is in it, as {target}.Name")
        elif problem := _missing(found.module, found.rest[0], root):
            problems.append(f"{target}: {problem}")
    for path, file in sorted(files.items()):
        place = path.relative_to(root).as_posix()
        problems += [f"{place}, {file.problem}"] if file.problem else []
        found_here = [(item.line, _import_problem(item, root)) for item in file.imports]
        problems += [f"{place}, line {line}: {problem}" for line, problem in found_here if problem]
    if problems:
        raise Refusal("\n".join(dict.fromkeys(problems)))
    sources = {path.relative_to(root).as_posix(): file.source for path, file in sorted(files.items())}
    return Code(sources, root.resolve())


def walk(names: Iterable[str], root: Path, package: str, excluded: Collection[str] = ()) -> Iterator[File]:
    """The files of `root/package` that modules, or names in them, reach by imports, also by those within functions.

    The `__init__.py` of each package on the way is reached, too; imports for type checkers alone are ignored.

    Args:
        names: dotted, such as foldwise.training.fold; those of other packages are ignored.
        excluded: modules and packages that are not entered.
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


def locate(name: str, root: Path) -> Located:
    """Follow a dotted name through the packages and modules in `root`."""
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
    """a.b for a/b.py and a for a/__init__.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def inside(name: str, package: str) -> bool:
    """True if a dotted name is a package or something in it."""
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
    """The sentence that a module lies in the working folder; "" for one of a package."""
    first = name.split(".")[0]
    if first in (PACKAGE, "foldwise") or not locate(name, root).files:
        return ""
    return f"{first} lies beside {PACKAGE}/, and a run would not keep it; move it to {PACKAGE}/{first}"


def _missing(module: str, name: str, root: Path, must_be_module: bool = False) -> str:
    """The sentence that a module has no such name; "" if it has, or can have it when it runs."""
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
