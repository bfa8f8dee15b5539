"""Rows of a folder without a table of its pictures: masks of equal names, a folder a class, or a class in each name."""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonpath

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.problems import some
from foldwise.discovery.files import IMAGE, MASK, NEARLY, TRAIN, Survey, is_mask, parent, split_of, stem, suffix, words
from foldwise.discovery.findings import Findings, Rows
from foldwise.discovery.groups import name_starts
from foldwise.discovery.tables import TRIED, Found
from foldwise.discovery.targets import Target
from foldwise.errors import Refusal

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
    """Labels or masks of pictures, by path.

    Attributes:
        groups: what else the folders name, such as a patient; by picture.
        doubt: what could be otherwise.
    """

    labels: dict[str, str]
    evidence: str
    groups: dict[str, str]
    doubt: str = ""


def rows_of_folders(found: Findings, survey: Survey, tables: Sequence[Found]) -> Rows:
    by_split = {split: [p for p in survey.pictures if split_of(p) == split] for split in ("train", "", "validation")}
    split = next((split for split, paths in by_split.items() if paths), None)
    if split is None:
        raise Refusal(
            f"{found.root} has only pictures of a test, and no table with a target: is it the whole competition?"
        )
    paths = by_split.pop(split)
    loose = [path for path in survey.pictures if is_mask(path) and split_of(path) == "" and split]
    pairs, evidence, doubt = pair_masks([*paths, *loose])
    unread = [table for table in tables if TRAIN & table.words]  # whose targets are not those of folders
    if pairs:
        labelled: Labelled | None = Labelled(pairs, evidence, {}, f"{doubt}, and were left out" if doubt else "")
    else:
        pictures = [path for path in paths if not is_mask(path)]
        labelled = None if doubt or unread else by_folder(paths) or by_name(pictures)
    if labelled is None:
        raise Refusal(
            f"{found.root} has {len(survey.pictures):,} pictures, but no table leads to them, no folder is a class, "
            f"and no masks have their names{f' ({doubt})' if doubt else ''}{_hint(survey, tables)}: write a table with "
            "one row per picture (docs/data.md), and run this again"
        )
    column, kind = ("mask", "files") if pairs else ("label", "class")
    images = sorted(labelled.labels)
    frame = pd.DataFrame({"id": _ids(images), "image": images, column: [labelled.labels[path] for path in images]})
    rows = Rows(frame, "id", "image", target=Target((column,), kind, labelled.evidence))
    found.say("table", f"there is none; one is written, with {len(frame):,} rows: id, image, {column}")
    found.say("target", labelled.evidence)
    found.doubts += [labelled.doubt] if labelled.doubt else []
    if labelled.groups:
        frame["folder"] = [labelled.groups[path] for path in images]
        if "columns target" not in labelled.doubt:
            found.settings["columns.group"] = "folder"
            each = "that each hold pictures of several classes"
            found.say("groups", f"folder: {frame['folder'].nunique():,} folders {each}")
    else:
        name_starts(found, rows)
    if others := [path for paths in by_split.values() for path in paths if not is_mask(path)]:
        table = found.place(pd.DataFrame({"id": _ids(others), "image": others}), "val.csv")
        found.doubts.append(
            f"{len(others):,} more pictures are in {commonpath(map(parent, others)) or '.'}/: they are not trained on; "
            f"to predict them write test_table: {table}"
        )
    return rows


def _hint(survey: Survey, tables: Sequence[Found]) -> str:
    """Describe what in the folder may hold the targets."""
    stems = sorted(map(stem, survey.pictures))
    for table in tables:
        for name in table.frame:
            cells = [cell for cell in text_column(table.frame[name]).iloc[:TRIED] if len(cell) > 3]
            found = sum(bool(survey.find(cell)[0]) for cell in cells)
            if cells and found == len(cells):
                return f"; column {name} of {table.path} leads to them, but no other column could be the target"
            if found > len(cells) / 5:
                return f"; {found} of {len(cells)} cells of {name} in {table.path} lead to one: are files missing?"
            names = [stems[place] for cell in cells if (place := bisect_left(stems, cell)) < len(stems)]
            if cells and len(names) == len(cells) and all(map(str.startswith, names, cells)):
                begins = f"column {name} of {table.path} begins names of pictures, such as {cells[0]} of {names[0]}"
                return f"; {begins}: are there several for a row?"
    return next((f"; {path} is not read" for path in survey.others if suffix(path) == ".json"), "")


def _ids(paths: Sequence[str]) -> list[str]:
    """Names without suffix; with folders where names repeat."""
    for names in ([stem(path) for path in paths], [path.rpartition(".")[0] for path in paths]):
        if len(set(names)) == len(names):
            return names
    return list(paths)


def by_folder(pictures: Sequence[str]) -> Labelled | None:
    """Find a folder a class among pictures of one split."""
    depth, count = Counter(path.count("/") for path in pictures).most_common(1)[0]
    parts = {path: path.split("/")[:-1] for path in pictures if path.count("/") == depth}
    levels = [level for level in zip(*parts.values(), strict=True) if len(set(level)) > 1]
    sizes = [len(set(level)) for level in levels]
    named = [set(words(name)) for level in levels for name in set(level)]
    if count < MOST_ALIKE * len(pictures) or not levels or count < FEWEST * min(sizes):
        return None
    if any(name and name <= NO_FOLDER for name in named):  # images/ and masks/, part1/ and part2/
        return None
    outer, inner, groups = levels[0], levels[-1], {}
    doubt = f"{len(pictures) - count:,} pictures lie beside the folders of classes, and were left out"
    doubt = doubt if count < len(pictures) else ""
    if len(levels) > 1:
        # patient1/benign, patient2/benign: the names that return are classes, the others groups
        times = Counter(name for _, name in set(zip(levels[-2], inner, strict=True)))
        if sum(n > 1 for n in times.values()) > sizes[-1] / 2 and sizes[-1] < sizes[-2]:
            evidence = f"the folders {_shown(inner)} return in {sizes[-2]:,} folders such as {levels[-2][0]}"
            groups = dict(zip(parts, levels[-2], strict=True))
            return Labelled(dict(zip(parts, inner, strict=True)), evidence, groups, doubt)
        groups = dict(zip(parts, inner, strict=True))
        doubt = (
            f"which folder of two is the class, as in {outer[0]}/{inner[0]}: the first was taken; for the other write "
            "in columns target: folder"
        )
    base = commonpath(map(parent, parts))
    evidence = f"{f'{base}/' if base else 'it'} has a folder a class: {_shown(outer)}"
    return Labelled(dict(zip(parts, outer, strict=True)), evidence, groups, doubt)


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
    return some([f"{name} ({count:,})" for name, count in Counter(names).most_common()], 4)
