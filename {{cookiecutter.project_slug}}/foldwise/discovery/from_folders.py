"""Rows of a folder without a table of its pictures: masks of equal names, a folder a class, or a class in each name."""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.problems import some
from foldwise.discovery.files import TRAIN, Survey, is_mask, split_folder, split_of, stem
from foldwise.discovery.findings import TABLES, Findings, Rows
from foldwise.discovery.folders import by_folder, by_name, pair_masks
from foldwise.discovery.groups import name_starts
from foldwise.discovery.tables import TRIED, Found
from foldwise.discovery.targets import Target
from foldwise.errors import Refusal


def rows_of_folders(found: Findings, survey: Survey, tables: Sequence[Found]) -> Rows:
    by_split = {split: [p for p in survey.pictures if split_of(p) == split] for split in ("train", "", "validation")}
    split = next((split for split, paths in by_split.items() if paths), None)
    if split is None:
        raise Refusal(
            f"{found.root} has only pictures of a test, and no table with a target: is it the whole competition?"
        )
    paths = by_split[split]
    loose = [path for path in survey.pictures if is_mask(path) and split_of(path) == "" and split]
    pairs, evidence, doubt = pair_masks([*paths, *loose])
    if pairs:
        images = sorted(pairs)
        frame = pd.DataFrame({"id": _ids(images), "image": images, "mask": [pairs[path] for path in images]})
        found.say("table", f"there is none; one is written, with {len(frame):,} rows: id, image, mask")
        found.say("target", evidence)
        found.doubts += [f"{doubt}, and were left out"] if doubt else []
        _rest(found, by_split, split)
        rows = Rows(frame, "id", "image", target=Target(("mask",), "files", evidence))
        name_starts(found, rows)
        return rows
    unread = [table for table in tables if TRAIN & table.words]  # whose targets are not those of folders
    labelled = None if doubt or unread else by_folder(paths) or by_name([path for path in paths if not is_mask(path)])
    if labelled is None:
        raise Refusal(
            f"{found.root} has {len(survey.pictures):,} pictures, but no table leads to them, no folder is a class, "
            f"and no masks have their names{f' ({doubt})' if doubt else ''}{_hint(survey, tables)}: write a table with "
            "one row per picture (docs/data.md), and run this again"
        )
    images = sorted(labelled.labels)
    frame = pd.DataFrame({"id": _ids(images), "image": images, "label": [labelled.labels[path] for path in images]})
    found.say("table", f"there is none; one is written, with {len(frame):,} rows: id, image, label")
    found.say("target", labelled.evidence)
    found.doubts += [labelled.doubt] if labelled.doubt else []
    if labelled.groups:
        frame["folder"] = [labelled.groups[path] for path in images]
        if "columns target" not in labelled.doubt:
            found.settings["columns.group"] = "folder"
            found.say(
                "groups", f"folder: {frame['folder'].nunique():,} folders that each hold pictures of several classes"
            )
    _rest(found, by_split, split)
    rows = Rows(frame, "id", "image", target=Target(("label",), "class", labelled.evidence))
    if not labelled.groups:
        name_starts(found, rows)
    return rows


def _hint(survey: Survey, tables: Sequence[Found]) -> str:
    """What the folder has that could tell the targets."""
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
    return f"; {survey.example['.json']} is not read" if ".json" in survey.example else ""


def _ids(paths: Sequence[str]) -> list[str]:
    """Names without suffix; with folders where names repeat."""
    names = [stem(path) for path in paths]
    if len(set(names)) == len(names):
        return names
    return (
        [path.rpartition(".")[0] for path in paths]
        if len({p.rpartition(".")[0] for p in paths}) == len(paths)
        else list(paths)
    )


def _rest(found: Findings, by_split: dict[str, list[str]], split: str) -> None:
    """Name pictures of other splits, which are not in the table, and write a table to predict them."""
    images = [path for other, paths in by_split.items() if other != split for path in paths if not is_mask(path)]
    if images:
        path = Path("data") / found.name / TABLES / "val.csv"
        found.tables[path] = pd.DataFrame({"id": _ids(images), "image": images})
        folders = some(sorted({split_folder(image) for image in images}), 3)
        found.doubts.append(
            f"{len(images):,} more pictures are in {folders}: they are not trained on; to predict them write "
            f"test_table: {path}"
        )
