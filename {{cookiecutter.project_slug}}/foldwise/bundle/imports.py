"""Which modules a script needs, read from its imports: what goes into a bundle, and what its host must have."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from foldwise.code import source
from foldwise.code.imports import module_name, to_file, walk

PACKAGE = "foldwise"


class Imports(NamedTuple):
    """Files of the package, and the other packages that they import as they are loaded; not those within functions."""

    files: list[Path]
    needs: list[str]


def find_imports(script: Path, root: Path, whole: Collection[str] = (), codes: Sequence[source.Code] = ()) -> Imports:
    """Follow the imports of a script through the package in `root`, those within functions too.

    Imports for type checkers alone are passed over.

    Args:
        whole: names of files whose imports within functions are needed, too.
        codes: of runs, whose imports are followed like the script's; all of them are needed.
    """
    own = [to_file(script.read_bytes(), script, "__main__")]
    owners = [to_file(code.files[name], Path(name), module_name(name)) for code in codes for name in code.files]
    starts = [item.path for file in (*own, *owners) for item in file.imports]
    reached = list(walk([PACKAGE, *starts], root, PACKAGE))
    needs = {
        item.module.split(".")[0]
        for file in (*own, *owners, *reached)
        for item in file.imports
        if item.eager or file in owners or file.path.name in whole
    }
    needs -= sys.stdlib_module_names | {PACKAGE, source.PACKAGE}
    return Imports(sorted(file.path for file in reached), sorted(needs))
