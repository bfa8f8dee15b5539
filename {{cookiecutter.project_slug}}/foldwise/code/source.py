"""Files of `solution/`, in memory and in folders, and whose code may be imported.

Code is trusted by its content, so a run can be moved: what this user's own trainings wrote, and what the user has
looked at. A run from somebody else, or one whose code was edited, is not trusted.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from foldwise.errors import Refusal
from foldwise.files import new_folder

PACKAGE = "solution"
OPTION = "--trust-code"
ALL, SOME = "FOLDWISE_TRUST_CODE", "FOLDWISE_TRUSTED"  # variables that processes started from here inherit


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
    def alias(self) -> str | None:
        """The name of the package under which this code is imported; None if there are no files."""
        return f"{PACKAGE}_{self.hash}" if self.files else None


NO_CODE = Code({}, Path())


def read_code(folder: Path) -> Code:
    """Every Python file in `folder/solution`, or a Refusal if there is none."""
    paths = sorted(path for path in (folder / PACKAGE).rglob("*.py") if path.is_file())
    if not paths:
        raise Refusal(f"there is no code in {folder / PACKAGE}")
    return Code({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, folder)


def write_code(code: Code, folder: Path) -> None:
    """Write `folder` with `solution` in it, whole or not at all, and refuse if other code is there.

    Twice is harmless, also by another process at once.
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


def trust(digest: str) -> None:
    """Trust code from now on; if nothing can be written at home, in this process and those that it starts."""
    if digest in _trusted():
        return
    os.environ[SOME] = f"{os.environ.get(SOME, '')} {digest}".strip()
    try:
        path = _trusted_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        with path.open("ab", buffering=0) as file:  # a line at once, so that those of several processes do not mix
            file.write(f"{digest}\n".encode())
    except (OSError, RuntimeError):
        pass


def trust_all() -> None:
    """Trust any code in this process and those that it starts, as --trust-code says."""
    os.environ[ALL] = "1"


def is_trusted(digest: str) -> bool:
    """True if code may be imported, by all digits of its digest: other code with the first eight is easily made."""
    return os.environ.get(ALL) == "1" or digest in _trusted()


def require_trust(code: Code) -> None:
    """Refuse code that was read from a folder, as <run>/code, and is not trusted."""
    if not is_trusted(code.digest):
        here = Path.cwd()
        folder = code.root.relative_to(here) if code.root.is_relative_to(here) else code.root
        owner = folder.parent if folder.name == "code" else folder
        raise Refusal(
            f"{owner} arrived with code of its own ({len(code.files)} files in {folder / PACKAGE}): "
            f"look at it, then add {OPTION}"
        )


def _trusted() -> list[str]:
    try:
        text = _trusted_path().read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):  # there is no such file, or no home
        text = ""
    return f"{os.environ.get(SOME, '')} {text}".split()


def _trusted_path() -> Path:
    """The file of this user's digests, one a line."""
    if state := os.environ.get("FOLDWISE_STATE"):
        return Path(state) / "trusted"
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "foldwise" / "trusted"
