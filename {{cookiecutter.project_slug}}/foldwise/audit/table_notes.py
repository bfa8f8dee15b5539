"""Notes on the table to read before training: classes, ids, folds, channels."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from foldwise.audit.leaks import leak_notes
from foldwise.data.prepare import Prepared
from foldwise.data.problems import some
from foldwise.data.statistics import SMALLEST_STD
from foldwise.data.table import MISSING, Table
from foldwise.data.targets import as_numbers
from foldwise.tasks import find_task

SHOWN = 3
BITS = (8, 10, 12, 14)  # of sensors whose values are stored in 16 bits


def audit_table(data: Mapping[str, Any], prepared: Prepared) -> list[str]:
    """Note missing or similar classes, telling metadata, constant channels, split groups, and values off the scale."""
    counts = prepared.statistics["class_counts"]
    never, missing = [], []
    for number, name in enumerate(prepared.table.classes):
        empty = [fold for fold, of_class in counts.items() if int(fold) >= 0 and of_class[number] == 0]
        if sum(of_class[number] for of_class in counts.values()) == 0:
            never.append(f"class {name!r} never occurs")
        elif empty:
            missing.append(f"class {name!r} does not occur in fold {', '.join(empty)}")
    notes = _id_notes(prepared.table.ids)
    notes += [note for table in prepared.tables.values() for note in _similar_names(table) + _missing_names(table)]
    if find_task(prepared.table.task).kind == "vectors":
        notes, missing = [*notes, identity_note(prepared.table, prepared.fold_of_items)], []
    for found, what in ((never, "never occur"), (missing, "do not occur in every fold")):
        summary = f"{len(found):,} of {len(prepared.table.classes):,} classes {what}: {'; '.join(found[:SHOWN])}; ..."
        notes += found if len(found) <= SHOWN else [summary]
    notes += leak_notes(prepared.table, prepared.samples, prepared.fold_of_items)
    frame, scan = prepared.table.frame, prepared.scan
    for column in frame.columns.intersection(["image", "group", "unit"], sort=False):
        spread = pd.Series(prepared.fold_of_items).groupby(frame[column]).nunique()
        split = spread[spread > 1].index.tolist()
        if split:
            notes.append(f"{len(split)} {column}s are in more than one fold, so scores will be too good: {some(split)}")
    if not prepared.statistics["images"]:
        return notes
    image = prepared.image
    for channel in np.flatnonzero(np.array(image["std"]) <= SMALLEST_STD):
        advice = "; data.mode=rgb drops it" if channel == 3 and image["channels"] == 4 else ""
        notes.append(f"channel {channel} is constant and useless to a network (std is set to 1/255){advice}")
    if float(scan["maximum"].max()) > image["scale"] or float(scan["minimum"].min()) < 0:
        notes.append(
            f"values range from {scan['minimum'].min():.4g} to {scan['maximum'].max():.4g}, "
            f"outside 0 to data.scale ({image['scale']:.4g})"
        )
    return notes + (_low_bits_notes(prepared) if data["scale"] is None else [])


def identity_note(table: Table, folds: np.ndarray) -> str:
    """Describe whether folds (N,) keep the identities apart or share them."""
    assert table.target is not None
    scored = folds >= 0
    spread = pd.Series(folds[scored]).groupby(table.target[scored, 0]).nunique()
    shared = int((spread > 1).sum())
    if not shared:
        return (
            f"folds keep the {len(spread)} identities apart: out of fold, an image is searched among all others, and "
            "its model has seen none of its identity"
        )
    return (
        f"folds share {shared} of {len(spread)} identities: out of fold, an image is searched among those of the other "
        f"folds, where {len(spread) - shared} identities are new; to keep all apart, set data.columns.group to the "
        "column of the labels, delete folds.csv and prepare again"
    )


def _low_bits_notes(prepared: Prepared) -> list[str]:
    """Note 16-bit images with the values of fewer bits; none if another image field has another dtype."""
    images = prepared.statistics["images"]
    if {image["dtype"] for image in images.values()} != {"uint16"}:
        return []
    others = (figures["maximum"] for text in prepared.scan["others"] for figures in json.loads(text).values())
    maximum = max(prepared.scan["maximum"].max(), *others, 0)
    bits = next((bits for bits in BITS if 0 < maximum < 2**bits), None)
    if bits is None:
        return []
    return [
        f"the 16-bit images never exceed {maximum:.0f}, as if they had {bits} bits, and 65535 stands for 1.0, so "
        f"augmentation sees them almost black: if they have {bits} bits, set data.scale={2**bits - 1}"
    ]


def _spelling_key(name: str) -> Any:
    numbers = as_numbers([name])
    return numbers[0] if numbers else unicodedata.normalize("NFKC", name).casefold()


def _similar_names(table: Table) -> list[str]:
    """Note classes found in the table whose names differ only in case, or in how a character or number is written."""
    names = pd.Series([] if table.ordered else table.classes, dtype=object)
    keys = names.map(_spelling_key)
    similar = [" and ".join(map(repr, group)) for _, group in names.groupby(keys, sort=False) if len(group) > 1]
    if not similar:
        return []
    return [
        f"{len(similar):,} names have several spellings, each a class of its own: {some(similar, SHOWN)}; if they "
        "mean the same, correct the table, else list them in data.classes"
    ]


def _id_notes(ids: Sequence[str]) -> list[str]:
    if not all(re.fullmatch(r"\d+\.0", id) for id in ids):
        return []
    return [
        f"all ids end in .0, such as {ids[0]}, as if one had been missing and the others had become decimals: write "
        'them as whole numbers, with frame["id"].astype("Int64")'
    ]


def _missing_names(table: Table) -> list[str]:
    """Note classes whose names are how a missing label is often written."""
    found = [] if table.ordered else [name for name in table.classes if name in MISSING]
    return [f"class {name!r} reads like a missing label: if it is one, remove its rows" for name in found]
