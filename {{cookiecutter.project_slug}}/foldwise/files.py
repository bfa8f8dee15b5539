"""Atomic writes (temporary file in the same folder, fsync, rename), JSON and hashes."""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.errors import Refusal

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success rename it to `path`, on an error remove it.

    The suffix is kept, since writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _complete(temporary, 0o666)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, name):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # "disk full" names no file
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a new `folder`; on success rename it to `folder`, on an error remove it."""
    folder = Path(folder)
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield temporary
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Rename a complete temporary folder; raise a Refusal if the folder exists by now."""
    _complete(temporary, 0o777)
    try:
        temporary.rename(folder)
    except OSError:
        check_new(folder)
        raise


def _complete(path: Path, mode: int) -> None:
    """Flush a file or folder to disk, and set normal permissions: tempfile creates private ones."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def check_new(*paths: Path) -> None:
    """Raise a Refusal if any of the paths exists."""
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        exist = "exists and is" if len(existing) == 1 else "exist and are"
        raise Refusal(f"{', '.join(existing)} {exist} not overwritten: choose another name, or delete it first")


def name_problem(name: str) -> str | None:
    """Why a relative path cannot be a file on every system, to follow the path; None if it can."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.match("[A-Za-z]:", name):
        return "leads out of its folder, or has an empty part"
    if any(len(part.encode("utf-8", "replace")) > 255 for part in parts):
        return "is longer than 255 bytes"
    if re.search(r"[\x00-\x1f\x7f\\]", name):
        return "has a backslash or a control character"
    if any(part[-1] in ". " for part in parts):
        return "ends with a dot or a space"
    return None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write a table without its index atomically."""
    with write_atomic(path) as temporary:
        frame.to_csv(temporary, index=False)


def read_text(path: Path) -> str:
    """Read UTF-8 text; raise a Refusal for other encodings."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; raise ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raise a Refusal if it is not valid."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is not valid JSON ({error}); delete it and create it again") from error


def plain_number(value: float) -> float | None:
    """A float for JSON; None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def is_number(value: Any) -> bool:
    """True for an int or float that is not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def equal_files(files: Sequence[Path]) -> list[list[int]]:
    """Indices of files with equal bytes, a sorted list of two or more per content; reads only files of equal size."""
    sizes, digest = [file.stat().st_size for file in files], cache(sha256_file)
    files_of_size = Counter(sizes)
    found: dict[str, list[int]] = defaultdict(list)
    for index, (file, size) in enumerate(zip(files, sizes, strict=True)):
        if files_of_size[size] > 1:
            found[digest(file)].append(index)
    return [same for same in found.values() if len(same) > 1]
