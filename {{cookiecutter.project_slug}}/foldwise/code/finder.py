"""The finder of `solution_<hash>` in `sys.meta_path`; light, since every process that imports foldwise has it."""

import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

ALIAS = re.compile("solution_[0-9a-f]{8}")


class Finder:
    """Finds the modules of opened code, see alias.py."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """As importlib asks."""
        if not ALIAS.fullmatch(name.partition(".")[0]):
            return None
        from foldwise.code.alias import find_spec

        return find_spec(name)


def install() -> None:
    """Find opened code by `import` in this process."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
