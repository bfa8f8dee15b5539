"""Files of `solution/`, in memory and in folders."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from foldwise.errors import Refusal
from foldwise.files import new_folder

PACKAGE = "solution"


@dataclass(frozen=True)
class Code:
    """Files of `solution/`.

    Attributes:
        files: contents by path, as solution/module.py.
        root: the folder that `solution/` was read in, for messages and tracebacks.
    """

    files: Mapping[str, bytes]
    root: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and contents, in hexadecimal."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    @property
    def hash(self) -> str:
        """The first eight digits of the digest."""
        return self.digest[:8]

    @property
    def alias(self) -> str:
        """The name of the package under which this code is imported."""
        return f"{PACKAGE}_{self.hash}"


def read_code(folder: Path) -> Code:
    """The code in `folder/solution`: every Python file.

    Raises:
        Refusal: there is none.
    """
    files = {path.relative_to(folder).as_posix(): path for path in (folder / PACKAGE).rglob("*.py") if path.is_file()}
    if not files:
        raise Refusal(f"there is no code in {folder / PACKAGE}")
    return Code({name: path.read_bytes() for name, path in sorted(files.items())}, folder)


def write_code(code: Code, folder: Path) -> None:
    """Write `folder` with `solution` in it, whole or not at all; twice is harmless, also by another process at once.

    Raises:
        Refusal: other code is there.
    """
    if not folder.exists():
        try:
            with new_folder(folder) as temporary:
                for name, content in code.files.items():
                    path = temporary / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
            return
        except Refusal:  # another process was faster
            pass
    if read_code(folder).digest != code.digest:
        raise Refusal(f"{folder / PACKAGE} has other code than solution/ now, and is not overwritten")
