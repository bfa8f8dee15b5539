"""Which code may be imported from a folder: what this user's own trainings wrote, and what the user has looked at.

Code is trusted by its content, so a run can be moved; a run from somebody else, or one whose code was edited, is not.
"""

import os
from pathlib import Path

from foldwise.code.source import PACKAGE, Code
from foldwise.errors import Refusal

OPTION = "--trust-code"
ALL, SOME = "FOLDWISE_TRUST_CODE", "FOLDWISE_TRUSTED"  # variables that processes started from here inherit


def trust(digest: str) -> None:
    """Trust code from now on; if nothing can be written at home, in this process and those that it starts."""
    if _is_recorded(digest):
        return
    os.environ[SOME] = f"{os.environ.get(SOME, '')} {digest}".strip()
    try:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{digest}\n".encode())  # at once, so that lines of several processes do not mix
        finally:
            os.close(file)
    except (OSError, RuntimeError):
        pass


def trust_all() -> None:
    """Trust any code in this process and those that it starts, as --trust-code says."""
    os.environ[ALL] = "1"


def is_trusted(digest: str) -> bool:
    """Whether code may be imported.

    Args:
        digest: of `source.Code`, all of it: another code with the same first digits is easily made.
    """
    return os.environ.get(ALL) == "1" or _is_recorded(digest)


def require_trust(code: Code) -> None:
    """Refuse code that is not trusted.

    Args:
        code: read from a folder, as <run>/code.

    Raises:
        Refusal: says what to look at, and the option.
    """
    if not is_trusted(code.digest):
        here = Path.cwd()
        folder = code.root.relative_to(here) if code.root.is_relative_to(here) else code.root
        owner = folder.parent if folder.name == "code" else folder
        raise Refusal(
            f"{owner} arrived with code of its own ({len(code.files)} files in {folder / PACKAGE}): "
            f"look at it, then add {OPTION}"
        )


def _is_recorded(digest: str) -> bool:
    if digest in os.environ.get(SOME, "").split():
        return True
    try:
        return digest in _path().read_text(encoding="utf-8", errors="replace").split()
    except (OSError, RuntimeError):  # of a home that there is not
        return False


def _path() -> Path:
    """The file of this user's digests, one a line."""
    state = os.environ.get("FOLDWISE_STATE")
    if state:
        return Path(state) / "trusted"
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "foldwise" / "trusted"
