"""Files of `solution/` in memory and in folders, and which code may be imported.

Trust is by content, so runs can be moved. Trusted is code from this user's own trainings and code that the user
approved; not a run from somebody else, nor one whose code was edited.
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
ALL, SOME = "FOLDWISE_TRUST_CODE", "FOLDWISE_TRUSTED"  # environment variables, inherited by child processes


@dataclass(frozen=True)
class Code:
    """Files of `solution/`.

    Attributes:
        files: contents by path, as solution/module.py.
        root: the folder that contained `solution/`, for messages and tracebacks.
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
        """Package name under which this code is imported; None without files."""
        return f"{PACKAGE}_{self.hash}" if self.files else None


NO_CODE = Code({}, Path())


def read_code(folder: Path) -> Code:
    """Read every Python file in `folder/solution`; raise a Refusal if there is none."""
    paths = sorted(path for path in (folder / PACKAGE).rglob("*.py") if path.is_file())
    if not paths:
        raise Refusal(f"there is no code in {folder / PACKAGE}")
    return Code({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, folder)


def write_code(code: Code, folder: Path) -> None:
    """Write `folder/solution` atomically; raise a Refusal if it has other code. Safe to repeat, also concurrently."""
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
    """Trust code permanently; without a writable home, in this process and its children."""
    if digest in _trusted():
        return
    os.environ[SOME] = f"{os.environ.get(SOME, '')} {digest}".strip()
    try:
        path = _trusted_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        with path.open("ab", buffering=0) as file:  # one write per line, so that processes do not interleave
            file.write(f"{digest}\n".encode())
    except (OSError, RuntimeError):
        pass


def trust_all() -> None:
    """Trust any code in this process and its children (--trust-code)."""
    os.environ[ALL] = "1"


def is_trusted(digest: str) -> bool:
    """True if code may be imported, by its full digest: the first eight digits are easily forged."""
    return os.environ.get(ALL) == "1" or digest in _trusted()


def require_trust(code: Code) -> None:
    """Raise a Refusal for untrusted code."""
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
    except (OSError, RuntimeError):  # no such file, or no home
        text = ""
    return f"{os.environ.get(SOME, '')} {text}".split()


def _trusted_path() -> Path:
    """The file of trusted digests, one per line."""
    if state := os.environ.get("FOLDWISE_STATE"):
        return Path(state) / "trusted"
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "foldwise" / "trusted"
