"""Which modules a script needs, read from its imports: what goes into a bundle, and what its host must have."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from foldwise.code.imports import inside, to_file, walk

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
    own = to_file(script.read_bytes(), script, "__main__")
    reached = list(walk([PACKAGE, *(item.path for item in own.imports)], root, PACKAGE))
    needs = {
        item.module.split(".")[0]
        for file in (own, *reached)
        for item in file.imports
        if (item.eager or file.path.name in whole) and not inside(item.module, PACKAGE)
    }
    return Imports(sorted(file.path for file in reached), sorted(needs - sys.stdlib_module_names))
