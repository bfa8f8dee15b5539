"""The files of `solution/` that a training reaches, read without importing them."""

import ast
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

from foldwise.code.imports import DYNAMIC, File, Import, inside, locate, read_file, walk
from foldwise.code.source import PACKAGE, Code
from foldwise.code.statements import Bindings
from foldwise.errors import Refusal


def collect_code(targets: Iterable[str], root: Path) -> Code:
    """The files of `root/solution` that targets reach by imports.

    A reached file that imports by names made while it runs (importlib, exec) reaches every file.

    Args:
        targets: such as solution.module.Module or solution.networks:Network; those of other packages are passed over.

    Raises:
        Refusal: what is not there, syntax errors, and imports of files beside `solution/`; each with file and line.
    """
    wanted = {target: target.replace(":", ".") for target in targets}
    wanted = {target: name for target, name in sorted(wanted.items()) if inside(name, PACKAGE)}
    files = {file.path: file for file in walk(wanted.values(), root, PACKAGE)}
    if any(map(_is_dynamic, files.values())):
        files = {path: read_file(path, root) for path in sorted((root / PACKAGE).rglob("*.py"))}
    problems = [problem for target, name in wanted.items() for problem in _target_problems(target, name, root)]
    for file in sorted(files.values()):
        place = file.path.relative_to(root).as_posix()
        if file.problem:
            problems.append(f"{place}, {file.problem}")
        for item in file.imports:
            problems += [f"{place}, line {item.line}: {problem}" for problem in _import_problems(item, root)]
    if problems:
        raise Refusal("\n".join(dict.fromkeys(problems)))
    return Code(
        {path.relative_to(root).as_posix(): file.source for path, file in sorted(files.items())}, root.resolve()
    )


def _target_problems(target: str, name: str, root: Path) -> Iterator[str]:
    found = locate(name, root)
    if not found.rest:
        yield f"{target} is a module; name what is in it, as {target}.Name"
    else:
        for problem in _missing(found.module, found.rest[0], root):
            yield f"{target}: {problem}"


def _import_problems(item: Import, root: Path) -> Iterator[str]:
    first = item.module.split(".")[0]
    if item.optional:
        return
    if not item.module:
        yield f"a relative import cannot leave {PACKAGE}/"
    elif first == PACKAGE:
        found = locate(item.module, root)
        if found.rest:
            yield from _missing(found.module, found.rest[0], root, must_be_module=True)
        elif locate(item.path, root).rest:
            yield from _missing(item.module, item.name, root)
    elif first != "foldwise" and locate(first, root).files:
        yield f"{first} lies beside {PACKAGE}/, and a run would not keep it; move it to {PACKAGE}/{first}"


def _missing(module: str, name: str, root: Path, must_be_module: bool = False) -> Iterator[str]:
    """The sentence that a module has no such name, unless it has, or can have it when it runs."""
    if not module:
        yield f"there is no folder {PACKAGE}/ in {root.resolve()}"
        return
    folder = root.joinpath(*module.split("."))
    paths = [] if must_be_module else [folder / "__init__.py", folder.parent / f"{folder.name}.py"]
    path = next((path for path in paths if path.is_file()), None)
    known = {path.parent.name if path.name == "__init__.py" else path.stem for path in folder.rglob("*.py")}
    if path is not None:
        file = read_file(path, root)
        defined = set(Bindings(file.tree.body).names)
        if file.problem or defined & {name, "__getattr__"} or any(item.name == "*" for item in file.imports):
            return
        known |= defined
    near = difflib.get_close_matches(name, known, n=1)
    where = f"{folder.relative_to(root).as_posix()}/" if path is None else path.relative_to(root).as_posix()
    yield f"there is no {name} in {where}{f'; did you mean {near[0]}?' if near else ''}"


def _is_dynamic(file: File) -> bool:
    if any(item.path in DYNAMIC for item in file.imports):
        return True
    return any(isinstance(node, ast.Name) and node.id in ("__import__", "exec", "eval") for node in ast.walk(file.tree))
