"""The files of an unpacked folder, and which pictures the cells of a table mean."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from foldwise.data.images import JPEGS
from foldwise.data.table_file import CSV
from foldwise.progress import progress_bar

PICTURES = (*JPEGS, ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".pgm", ".ppm")
TABLES = (*CSV, ".parquet")
NO_DATA = ("__macosx", "thumbs.db", "desktop.ini", "prepared")  # of the system, and of prepare.py
TRAIN, TEST, VALIDATION = {"train", "training"}, {"test", "testing", "tests"}, {"val", "valid", "validation", "dev"}
MASK = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "annot", "gt", "groundtruth", "truth", "seg",
    "segmentation", "segmentations", "segmented", "target", "targets", "gtfine",
}  # fmt: skip
IMAGE = {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "jpegimages", "rgb"}
NAMES = {"class", "classes", "label", "labels", "names", "categories"}  # of a file with class names
NEARLY = 0.98  # of the cells of a column must lead to pictures, for some are often missing


def words(text: str) -> list[str]:
    """The words of a name in small letters, split at case, digits and punctuation."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold())


def split_of(path: str) -> str:
    """train, test, validation or "" by the folders of a path, the innermost first."""
    for part in reversed(path.split("/")[:-1]):
        for name, known in (("test", TEST), ("validation", VALIDATION), ("train", TRAIN)):
            if known & set(words(part)):
                return name
    return ""


def split_folder(path: str) -> str:
    """The folder of a path that names its split, or else its own."""
    folder = parent(path)
    while split_of(path) and not (TRAIN | TEST | VALIDATION) & set(words(folder.rpartition("/")[2])):
        folder = parent(folder)
    return f"{folder}/"


def is_mask(path: str) -> bool:
    """Whether the end of a name, or else the innermost folder that tells, is one that masks have."""
    *folders, name = path.split("/")
    if MASK & set(words(name.rpartition(".")[0])[-1:]):
        return True
    tell = [part for part in map(words, folders) if (MASK | IMAGE) & set(part)]
    return bool(tell) and bool(MASK & set(tell[-1]))


@dataclass(frozen=True)
class Link:
    """A column that leads to pictures.

    Attributes:
        found: the path of each row's picture; "" where there is none.
        how: cells as the folder has them: path, name, name without suffix, or others.
        rivals: folders that have the pictures as well.
    """

    column: str
    found: list[str]
    how: str
    rivals: tuple[str, ...] = ()

    @property
    def folders(self) -> Counter[str]:
        return Counter(parent(path) for path in self.found if path)


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def stem(path: str) -> str:
    return PurePosixPath(path).stem


@dataclass(frozen=True)
class Survey:
    """All files of a folder by kind, as sorted paths relative to it."""

    root: Path
    pictures: tuple[str, ...]
    tables: tuple[str, ...]
    others: Counter[str]  # by suffix
    example: dict[str, str]  # a path of each suffix
    names: tuple[str, ...]  # JSON and text files that can hold class names
    json: tuple[str, ...]

    @classmethod
    def of(cls, root: Path, skipped: Sequence[Path] = ()) -> "Survey":
        pictures, tables, texts, objects = list[str](), list[str](), list[str](), list[str]()
        others, example = Counter[str](), dict[str, str]()
        away = {path.resolve() for path in skipped}
        with progress_bar("Listing files") as show:
            for folder, folders, names in os.walk(root):
                inside = [n for n in folders if not n.startswith(".") and n.casefold() not in NO_DATA]
                folders[:] = sorted(n for n in inside if (Path(folder) / n).resolve() not in away)
                start = Path(folder).relative_to(root).as_posix()
                for name in sorted(names):
                    if name.startswith(".") or name.casefold() in NO_DATA:
                        continue
                    path, suffix = name if start == "." else f"{start}/{name}", PurePosixPath(name).suffix.lower()
                    kind = pictures if suffix in PICTURES else tables if suffix in TABLES else None
                    if suffix in (".json", ".txt") and (NAMES & set(words(PurePosixPath(name).stem))):
                        texts.append(path)
                    if suffix == ".json":
                        objects.append(path)
                    if kind is None:
                        others[suffix] += 1
                        example.setdefault(suffix, path)
                    else:
                        kind.append(path)
                show(f"Listing files in {start}", len(pictures), 0)
        return cls(root, tuple(pictures), tuple(tables), others, example, tuple(texts), tuple(objects))

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        return _by(self.pictures, lambda path: path.rpartition("/")[2].casefold())

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        return _by(self.pictures, lambda path: stem(path).casefold())

    @cached_property
    def by_number(self) -> dict[str, list[str]]:
        return _by([p for p in self.pictures if stem(p).isdecimal()], lambda path: stem(path).lstrip("0"))

    def find(self, cell: str) -> tuple[list[str], str]:
        """The pictures that a cell can mean, and how it names them."""
        text = cell.replace("\\", "/").strip()
        name = text.rpartition("/")[2].casefold()
        if not name:
            return [], ""
        for how, found in (
            ("file name", self.by_name.get(name)),
            ("file name without suffix", self.by_stem.get(name)),
            (
                "file name with another suffix",
                self.by_stem.get(stem(name)) if re.search(r"\.[a-z]{2,5}$", name) else None,
            ),
            ("number without leading zeros", self.by_number.get(name.lstrip("0")) if name.isdecimal() else None),
        ):
            if found:
                return (_nearest(text, found), how) if "/" in text else (found, how)
        return [], ""

    def link(self, column: str, cells: Sequence[str], split: str = "") -> Link | None:
        """Find the picture of each cell; None if less than nearly all that are not empty have one."""
        candidates = [self.find(cell) for cell in cells]
        filled = sum(cell != "" for cell in cells)
        if sum(bool(found) for found, _ in candidates) < NEARLY * max(1, filled):
            return None
        counts = Counter(folder for found, _ in candidates for folder in {parent(path) for path in found})

        def rank(folder: str) -> tuple[bool, bool, int]:
            return not is_mask(f"{folder}/x"), split in ("", split_of(f"{folder}/x")), counts[folder]

        chosen = [max(found, key=lambda path: rank(parent(path)), default="") for found, _ in candidates]
        best = Counter(map(parent, filter(None, chosen))).most_common(1)
        rivals = [f for f in counts if best and f != best[0][0] and rank(f)[:2] == rank(best[0][0])[:2]]
        rivals = [f for f in rivals if counts[f] >= NEARLY * filled]  # each cell has a picture there as well
        hows = Counter(how for _, how in candidates if how)
        return Link(column, chosen, hows.most_common(1)[0][0] if hows else "", tuple(rivals))


def _by(paths: Sequence[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        found[key(path)].append(path)
    return dict(found)


def _nearest(text: str, found: Sequence[str]) -> list[str]:
    """Those whose folders agree with the cell's in most places from the end."""
    wanted = parent(text).casefold().split("/")[::-1]

    def agree(path: str) -> int:
        parts = parent(path).casefold().split("/")[::-1]
        return next(
            (n for n, (a, b) in enumerate(zip(wanted, parts, strict=False)) if a != b), min(len(wanted), len(parts))
        )

    best = max(map(agree, found))
    return [path for path in found if agree(path) == best]
