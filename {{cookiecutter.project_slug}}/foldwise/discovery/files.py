"""The files of an unpacked folder, and which pictures the cells of a table mean."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath

from foldwise.data.images import JPEGS
from foldwise.data.problems import some
from foldwise.data.table_file import CSV
from foldwise.progress import progress_bar

PICTURES = (*JPEGS, ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".pgm", ".ppm")
TABLES = (*CSV, ".parquet")
NO_DATA = re.compile(r"\..*|__macosx|thumbs\.db|desktop\.ini|prepared", re.IGNORECASE)  # system's, prepare.py's
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
    def folders(self) -> str:
        """The folders of the pictures, the most frequent first."""
        counts = Counter(parent(path) for path in self.found if path)
        return some([f"{folder}/" if folder else "the folder itself" for folder, _ in counts.most_common()], 3)

    @property
    def of_masks(self) -> bool:
        return sum(map(is_mask, self.found)) > len(self.found) / 2


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def stem(path: str) -> str:
    return PurePosixPath(path).stem


def suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


class Survey:
    """The files of a folder, as paths relative to it, without those in the folder `skipped`."""

    def __init__(self, root: Path, skipped: Path) -> None:
        self.root, self.files = root, list[str]()
        with progress_bar("Listing files") as show:
            for folder, folders, names in os.walk(root):
                start = Path(folder).relative_to(root).as_posix()
                inside = (name for name in folders if not NO_DATA.fullmatch(name) and Path(folder, name) != skipped)
                folders[:] = sorted(inside)
                kept = sorted(name for name in names if not NO_DATA.fullmatch(name))
                self.files += kept if start == "." else [f"{start}/{name}" for name in kept]
                show(f"Listing files in {start}", len(self.files), 0)
        self.pictures = [path for path in self.files if suffix(path) in PICTURES]
        self.others = [path for path in self.files if suffix(path) not in PICTURES + TABLES]

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """Pictures by what cells have of them: name, name without suffix (after a slash), and number (after #)."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.pictures:
            name = stem(path).casefold()
            number = [f"#{name.lstrip('0')}"] if name.isdecimal() else []
            for key in (path.rpartition("/")[2].casefold(), f"/{name}", *number):
                found[key].append(path)
        return found

    def find(self, cell: str) -> tuple[list[str], str]:
        """The pictures that a cell can mean, and how it names them."""
        text = cell.replace("\\", "/").strip()
        name = text.rpartition("/")[2].casefold()
        ways = {"file name": name, "file name without suffix": f"/{name}"}
        if re.search(r"\.[a-z]{2,5}$", name):
            ways["file name with another suffix"] = f"/{stem(name)}"
        if name.isdecimal():
            ways["number without leading zeros"] = f"#{name.lstrip('0')}"
        for how, key in ways.items():
            if name and (found := self.by_name.get(key)):
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


def _nearest(text: str, found: Sequence[str]) -> list[str]:
    """Those whose folders agree with the cell's in most places from the end."""
    wanted = parent(text).casefold().split("/")[::-1]

    def agree(path: str) -> int:
        pairs = zip(wanted, parent(path).casefold().split("/")[::-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    best = max(map(agree, found))
    return [path for path in found if agree(path) == best]
