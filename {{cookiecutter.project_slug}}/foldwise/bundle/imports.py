"""Which modules a script needs, read from its imports: what goes into a bundle, and what its host must have."""

import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from foldwise.code import source
from foldwise.code.imports import inside, module_name, to_file, walk
from foldwise.code.source import Code

PACKAGE = "foldwise"


class Imports(NamedTuple):
    """Files of the package; and the other packages that these import as they are loaded, not those within functions,
    and that the owner's code imports anywhere, unless it can do without."""

    files: list[Path]
    needs: list[str]


def find_imports(
    script: Path, root: Path, whole: Collection[str] = (), targets: Iterable[str] = (), codes: Iterable[Code] = ()
) -> Imports:
    """Follow the imports of a script through the package in `root`, those within functions too.

    Imports for type checkers alone are passed over.

    Args:
        whole: names of files whose imports within functions are needed, too.
        targets: what else is used of the package, as foldwise.module:Name.
        codes: the owner's code that is used.
    """
    own = to_file(script.read_bytes(), script, "__main__")
    owned = [
        to_file(content, code.root / name, module_name(name)) for code in codes for name, content in code.files.items()
    ]
    used = [item.path for file in (own, *owned) for item in file.imports]
    reached = list(walk([PACKAGE, *(target.replace(":", ".") for target in targets), *used], root, PACKAGE))
    needed = [
        item.module.split(".")[0]
        for file in (own, *reached)
        for item in file.imports
        if item.eager or file.path.name in whole
    ]
    needed += [item.module.split(".")[0] for file in owned for item in file.imports if not item.optional]
    needs = {name for name in needed if not inside(name, PACKAGE) and not inside(name, source.PACKAGE)}
    return Imports(sorted(file.path for file in reached), sorted(needs - sys.stdlib_module_names))
