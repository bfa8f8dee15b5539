"""Check the file paths of a table; for missing files, find the change of the paths or the root that would do."""

import os
import unicodedata
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath

import pandas as pd

from foldwise.data.problems import Check, some

SHOWN = 5  # missing files that nothing explains, each named by row


def check_paths(paths: pd.Series, root: Path, what: str, check: Check, optional: bool = False) -> None:
    """Check that every path is relative, exists, and stays under the root after resolving links.

    Rows with one cause are one problem, with the change to make. With `optional`, a path may be empty.
    """
    real_root = root.resolve()
    folder_is_inside: dict[Path, bool] = {}  # each folder is resolved only once: a million files are in few folders
    nearby = Nearby(root)

    def problem(text: str) -> str | None:
        if not text:
            return None if optional else f"the {what} path is empty"
        relative = PurePosixPath(text)
        outside = relative.is_absolute() or ".." in relative.parts
        file = root / relative
        # os.path.isfile: Path.is_file raises if the name is too long
        if outside or not os.path.isfile(file):  # noqa: PTH113
            change = nearby.change(text)
            if change:
                return f"the {what} file does not exist under {root}: {change}"
            if outside:
                return f"the {what} path {text!r} must be relative to the data root {root}, without '..'"
            return f"the {what} file {file} does not exist" + ("; write paths with /, not \\" if "\\" in text else "")
        if file.parent not in folder_is_inside:
            folder_is_inside[file.parent] = file.parent.resolve().is_relative_to(real_root)
        inside = folder_is_inside[file.parent]
        if file.is_symlink():
            inside = file.resolve().is_relative_to(real_root)
        if inside:
            return None
        return f"the {what} path {text!r} is a link that leaves the data root {root}: set data.root to its target"

    messages = [problem(text) for text in paths]
    alone = [row for row, text in enumerate(messages) if text and text.startswith(f"the {what} file {root}")]
    for row in alone[SHOWN:]:
        messages[row] = f"more {what} files do not exist under {root}, and no file of a similar name does"
    check.rows([message is not None for message in messages], lambda row: str(messages[row]))


class Nearby:
    """The files under a root, by name; listed when the first path is not found."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def by_name(self) -> dict[str, list[PurePosixPath]]:
        """Relative paths by folded file name, with and without suffix."""
        found: dict[str, list[PurePosixPath]] = defaultdict(list)
        for folder, folders, names in os.walk(self.root):
            folders.sort()
            inside = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
            for name in sorted(names):
                path = inside / name
                for key in {_fold(name), _fold(path.stem)}:
                    found[key].append(path)
        return dict(found)

    def change(self, text: str) -> str:
        """Describe the change that makes a path exist, without the path's own name; "" if there is none."""
        written = PurePosixPath(text.replace("\\", "/").strip())
        if not written.name:
            return ""
        above = self.root.parent / written
        if not written.is_absolute() and ".." not in written.parts and os.path.isfile(above):  # noqa: PTH113
            return f"set data.root={self.root.parent}, one level up, where such files exist"
        close = self.by_name.get(_fold(written.name)) or self.by_name.get(_fold(written.stem)) or []
        if not close:
            return ""
        ranked = sorted(close, key=lambda path: _rank(written, path), reverse=True)
        if len(ranked) > 1 and _rank(written, ranked[0]) == _rank(written, ranked[1]):
            folders = sorted({f"{path.parent}/" for path in ranked})
            return f"put a folder in front, or set data.root: such files are in {some(folders, 3)}"
        return _describe(text, written, ranked[0], self.root)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _rank(written: PurePosixPath, path: PurePosixPath) -> tuple[int, bool]:
    """Number of equal folders from the end, and whether the suffix is equal."""
    count = 0
    for a, b in zip(reversed(written.parent.parts), reversed(path.parent.parts), strict=False):
        if _fold(a) != _fold(b):
            break
        count += 1
    return count, _fold(written.suffix) == _fold(path.suffix)


def _describe(text: str, written: PurePosixPath, path: PurePosixPath, root: Path) -> str:
    changes = ["write / for \\"] if "\\" in text else []
    changes += ["remove the spaces at its ends"] if text != text.strip() else []
    ending = path.name[len(written.name) :]
    if _fold(path.name) == _fold(written.name + ending) and ending:
        changes.append(f"add {ending}")
    elif path.suffix != written.suffix:
        changes.append(f"write {path.suffix or 'no suffix'} for {written.suffix or 'none'}")
    front, lost = _fronts(written, path)
    names = [(each.stem, *each.parent.parts[::-1][: _rank(written, path)[0]]) for each in (written, path)]
    same = tuple(map(_fold, names[0])) == tuple(map(_fold, names[1])) and names[0] != names[1]
    changes += ["mind upper and lower case, or composed letters"] if same else []
    if front and not lost:
        changes.append(f"put {front}/ in front, or set data.root={root / front}")
    elif lost:
        changes.append(f"write {front}/ for {lost}/" if front else f"remove {lost.rstrip('/')}/")
    return f"{', '.join(changes)} (such files exist)" if changes else ""


def _fronts(written: PurePosixPath, path: PurePosixPath) -> tuple[str, str]:
    """The folders in front of the equal ones: those of the file, and those that were written."""
    equal, _ = _rank(written, path)
    fronts = [each.parent.parts[: len(each.parent.parts) - equal] for each in (path, written)]
    existing, lost = ("/".join(front).replace("//", "/") for front in fronts)
    return existing, lost
