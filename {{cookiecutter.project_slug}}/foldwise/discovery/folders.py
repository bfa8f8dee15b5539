"""Targets that folders and names of files tell: a folder a class, a class in each name, masks beside the pictures."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from foldwise.discovery.files import IMAGE, MASK, NEARLY, is_mask, parent, split_of, stem, words

NO_CLASS = {
    "img", "image", "images", "dsc", "dscn", "dscf", "pxl", "dji", "gopr", "mvi", "photo", "pic", "picture", "frame",
    "train", "test", "val", "valid", "scan", "tile", "patch", "slice", "screenshot", "id", "crop", "file", "sample",
}  # fmt: skip
NO_FOLDER = NO_CLASS | IMAGE | MASK | {"data", "dataset", "jpg", "png", "part", "batch", "set", "split", "fold"}
FEWEST = 2  # pictures of a class, on average, in a folder a class
MOST_ALIKE = 0.9  # of the pictures must lie equally deep
MOST_TOKENS = 3  # that a mask's name has besides its picture's


@dataclass(frozen=True)
class Labelled:
    """Labels of pictures, by folder or name.

    Attributes:
        groups: what else the folders name, such as a patient; by picture.
        doubt: what could be otherwise.
    """

    labels: dict[str, str]
    evidence: str
    groups: dict[str, str]
    doubt: str = ""


def by_folder(pictures: Sequence[str]) -> Labelled | None:
    """Find a folder a class among pictures of one split."""
    parts = {path: path.split("/")[:-1] for path in pictures}
    depth, count = Counter(map(len, parts.values())).most_common(1)[0]
    if count < MOST_ALIKE * len(parts):
        return None
    stray = f"{len(parts) - count:,} pictures lie beside the folders of classes, and were left out" * (
        count < len(parts)
    )
    parts = {path: folders for path, folders in parts.items() if len(folders) == depth}
    common = 0
    while common < depth and len({tuple(folders[: common + 1]) for folders in parts.values()}) == 1:
        common += 1
    levels = {path: folders[common:] for path, folders in parts.items()}
    columns = [[folders[level] for folders in levels.values()] for level in range(depth - common)]
    columns = [column for column in columns if len(set(column)) > 1]
    if any(words(name) and set(words(name)) <= NO_FOLDER for column in columns for name in set(column)):
        return None  # images/ and masks/, part1/ and part2/
    distinct = [len(set(column)) for column in columns]
    if not columns or count < FEWEST * min(distinct):
        return None
    base = "/".join(next(iter(parts.values()))[:common])
    where = f"{base}/" if base else "it"
    if len(columns) == 1:
        classes = dict(zip(levels, columns[0], strict=True))
        return Labelled(classes, f"{where} has a folder a class: {_shown(columns[0])}", {}, stray)
    # patient1/benign, patient2/benign: the names that return are classes, the others groups
    inner_of: dict[str, set[str]] = defaultdict(set)
    for outer, inner in zip(columns[-2], columns[-1], strict=True):
        inner_of[inner].add(outer)
    again = sum(len(outers) > 1 for outers in inner_of.values()) > len(inner_of) / 2
    if again and distinct[-1] < distinct[-2]:
        evidence = f"the folders {_shown(columns[-1])} return in {distinct[-2]:,} folders such as {columns[-2][0]}"
        groups = dict(zip(levels, columns[-2], strict=True))
        return Labelled(dict(zip(levels, columns[-1], strict=True)), evidence, groups, stray)
    doubt = (
        f"which folder of two is the class, as in {columns[0][0]}/{columns[-1][0]}: the first was taken; for the other "
        "write in columns target: folder"
    )
    labels, groups = dict(zip(levels, columns[0], strict=True)), dict(zip(levels, columns[-1], strict=True))
    return Labelled(labels, f"{where} has a folder a class: {_shown(columns[0])}", groups, doubt)


def by_name(pictures: Sequence[str]) -> Labelled | None:
    """Find a class at the start of each name, before a number, as in cat.17.jpg."""
    found = {path: re.fullmatch(r"(.*?[A-Za-z)])[ ._-]*\(?\d+\)?", stem(path)) for path in pictures}
    labels = {path: match[1] for path, match in found.items() if match}
    counts = Counter(labels.values())
    plain = any(set(words(name)) <= NO_CLASS for name in counts)
    if len(labels) < len(pictures) or not pictures or len(counts) < 2 or plain or min(counts.values()) < FEWEST:
        return None
    return Labelled(labels, f"the names begin with a word before a number: {_shown(list(labels.values()))}", {})


def pair_masks(pictures: Sequence[str]) -> tuple[dict[str, str], str, str]:
    """Find the mask of each picture: ({picture: mask}, evidence, doubt); empty if there are none."""
    masks = [path for path in pictures if is_mask(path)]
    images = [path for path in pictures if not is_mask(path)]
    if not masks or not images:
        return {}, "", ""
    by_stem: dict[str, list[str]] = defaultdict(list)
    by_start: dict[str, list[str]] = defaultdict(list)
    for path in images:
        by_stem[stem(path)].append(path)
        by_start[re.sub(r"[_\-. ][^_\-. ]+$", "", stem(path))].append(path)
    pairs: dict[str, list[str]] = defaultdict(list)
    extra, missed = Counter[str](), 0
    for mask in masks:
        candidates, rest = _partners(mask, by_stem, by_start)
        if not candidates:
            missed += 1
            continue
        pairs[max(candidates, key=lambda path: _agree(mask, path))].append(mask)
        extra[rest] += 1
    if missed > (1 - NEARLY) * len(masks):
        return {}, "", ""
    several = sum(len(found) > 1 for found in pairs.values())
    folder = ", ".join(sorted({f"{parent(mask) or '.'}/" for mask in masks})[:3])
    if several:
        first, second = next(found for found in pairs.values() if len(found) > 1)[:2]
        return {}, "", f"{several:,} pictures have several masks, such as {first} and {second}: keep one of each"
    rest = extra.most_common(1)[0][0]
    added = f", with {rest!r} added" if rest else ""
    without = f"{len(images) - len(pairs):,} pictures have no mask" if len(images) > len(pairs) else ""
    evidence = f"{len(pairs):,} masks in {folder} have the names of pictures{added}"
    return {image: found[0] for image, found in pairs.items()}, evidence, without


def _partners(mask: str, by_stem: dict[str, list[str]], by_start: dict[str, list[str]]) -> tuple[list[str], str]:
    """Pictures whose name the mask's begins or ends with, and what it has besides."""
    name = stem(mask)
    if name in by_stem:
        return by_stem[name], ""
    start, end = name, name
    for _ in range(MOST_TOKENS):
        start, end = re.sub(r"[_\-. ]?[^_\-. ]+$", "", start), re.sub(r"^[^_\-. ]+[_\-. ]?", "", end)
        for known, rest in ((start, name[len(start) :]), (end, name[: len(name) - len(end)])):
            if known and (found := by_stem.get(known) or by_start.get(known)):
                return found, rest
    return [], ""


def _agree(mask: str, image: str) -> tuple[bool, int, int]:
    """How well the folders of a mask and of a picture of one name agree."""
    ours, theirs = mask.split("/")[:-1], image.split("/")[:-1]
    common = sum(1 for part in ours if part in theirs)
    return split_of(mask) == split_of(image), common, -len(theirs)


def _shown(names: Sequence[str]) -> str:
    counts = Counter(names)
    shown = [f"{name} ({count:,})" for name, count in counts.most_common(4)]
    return ", ".join(shown) + (f" and {len(counts) - 4:,} more" if len(counts) > 4 else "")
