"""Notes on the data to read before training: classes, folds, duplicates, train/test shift."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.audit.adversarial import FEWEST, adversarial_validation, column_aucs, image_properties
from foldwise.audit.descriptors import Describer, describe_images
from foldwise.audit.duplicates import BETWEEN_FOLDS, SAME_FOLD, TRAIN_AND_TEST, find_duplicates
from foldwise.data.prepare import Prepared, scan_alike
from foldwise.data.problems import some
from foldwise.data.samples import TableItems
from foldwise.data.statistics import SMALLEST_STD
from foldwise.data.table import MISSING, Table
from foldwise.data.targets import as_numbers
from foldwise.errors import Refusal
from foldwise.files import write_atomic
from foldwise.tasks import find_task

SHOWN = 3
NOTABLE_AUC = 0.6  # columns above it are reported
BITS = (8, 10, 12, 14)  # of sensors whose values are stored in 16 bits


def audit_table(data: Mapping[str, Any], prepared: Prepared) -> list[str]:
    """Note missing or similar classes, constant channels, split groups, and values that do not fit the scale."""
    counts = prepared.statistics["class_counts"]
    never, missing = [], []
    for number, name in enumerate(prepared.table.classes):
        empty = [fold for fold, of_class in counts.items() if fold != "-1" and of_class[number] == 0]
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


def _shared_ids(table: Table, test: Table) -> list[str]:
    """Note ids of the test table that the training table has too."""
    shared = [id for id in test.ids if id in table.row_of]
    same = [id for id in shared if table.image_path(table.row_of[id]) == test.image_path(test.row_of[id])]
    if not shared:
        return []
    files = f", {len(same):,} of them with the same image: is {test.path} the test table?" if same else ""
    return [f"{len(shared):,} of {len(test):,} ids of the test table are in the training table{files}: {some(shared)}"]


def audit_images(
    data: Mapping[str, Any], prepared: Prepared, test: Table | None, describe: Describer, progress: bool = True
) -> list[str]:
    """Note duplicates and, given a test table, a shift; write `duplicates.csv` and `adversarial.csv`."""
    folder = Path(data["prepared"])
    tables = [TableItems.of(table, prepared.samples) for table in (prepared.source, test) if table is not None]
    descriptors = describe_images(tables, data, describe, progress)
    ids = [id for items in tables for id in items.table.ids]
    files = [items.table.image_path(row) for items in tables for row in range(len(items.table))]
    pairs = find_duplicates(ids, files, prepared.fold_of_items, descriptors)
    pairs, conflicts = _compare_targets(pairs, prepared.table)
    with write_atomic(folder / "duplicates.csv") as temporary:
        pairs.to_csv(temporary, index=False)
    notes = _conflict_notes(conflicts, folder / "duplicates.csv") + _duplicate_notes(pairs, folder / "duplicates.csv")
    if not descriptors.learned:
        notes.append(
            "only pixels were compared, which misses most other views of a scene (such as neighbouring frames of a "
            "video): add --weights FILE to find them"
        )
    if test is not None:
        notes += _shared_ids(prepared.source, test)
        notes += _shift_notes(data, prepared, tables[1], descriptors.vectors, folder / "adversarial.csv")
    return notes


def _compare_targets(pairs: pd.DataFrame, train: Table) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add the targets as text, label_a and label_b (empty for test images); also return the conflicting pairs.

    A conflict is an exact or re-encoded copy with another target; of masks and numbers only exact copies are compared.
    """
    a = np.array([train.row_of[id] for id in pairs["id_a"]], int)
    labelled = (pairs["where"] != TRAIN_AND_TEST).to_numpy(bool)
    b = np.array([train.row_of[id] if known else 0 for id, known in zip(pairs["id_b"], labelled, strict=True)], int)
    texts = np.array(_target_texts(train), object)
    alike = ["exact", "copy"] if find_task(train.task).probabilities and train.target is not None else ["exact"]
    compared = labelled & pairs["kind"].isin(alike).to_numpy(bool)
    if train.target is None:
        differs = compared.copy()
        for pair in np.flatnonzero(compared):
            first, second = (train.read_mask(row) for row in (a[pair], b[pair]))
            differs[pair] = not np.array_equal(first, second)
    else:
        differs = ~np.isclose(train.target[a], train.target[b], rtol=0, atol=0, equal_nan=True).all(axis=1)
    pairs = pairs.assign(label_a=texts[a], label_b=np.where(labelled, texts[b], ""))
    return pairs, pairs[compared & differs]


def _target_texts(table: Table) -> list[str]:
    """Targets as text: names of classes, `name=value` of soft targets, or the path of the mask."""
    if table.target is None:
        return [table.mask_name(row) for row in range(len(table))]
    if find_task(table.task).kind == "vectors":
        return [table.classes[code] for code in table.target[:, 0]]
    if find_task(table.task).probabilities and np.isin(table.target, (0, 1)).all():
        names = np.array(table.classes, object)
        return [" ".join(names[row == 1]) for row in table.target]
    return [
        " ".join(f"{name}={value:.6g}" for name, value in zip(table.classes, row, strict=True)) for row in table.target
    ]


def _conflict_notes(conflicts: pd.DataFrame, path: Path) -> list[str]:
    if conflicts.empty:
        return []
    counts = ", ".join(f"{count} {kind}" for kind, count in conflicts.groupby("kind", sort=False).size().items())
    first = ", ".join(
        f"{row.id_a} ({row.label_a}) = {row.id_b} ({row.label_b})" for row in conflicts[:SHOWN].itertuples()
    )
    return [
        f"warning: {len(conflicts)} pairs of copies ({counts}) have different labels, so one of the two is wrong: "
        f"correct the label, or drop both; first pairs: {first}; all: label_a and label_b in {path}"
    ]


def _duplicate_notes(pairs: pd.DataFrame, path: Path) -> list[str]:
    advice = {
        BETWEEN_FOLDS: (
            "warning: {} rows have duplicates in another fold",
            "so out-of-fold scores will be too good: keep such rows together with data.columns.group and make new "
            "folds, or drop all but one",
        ),
        TRAIN_AND_TEST: (
            "warning: {} rows have duplicates across train and test",
            "so their test predictions look better than those of new images: drop the training rows, or know why not",
        ),
        SAME_FOLD: (
            "{} rows have duplicates in their own fold",
            "which do not leak but count twice: check that their labels agree, or drop all but one",
        ),
    }
    notes = []
    for where, (finding, consequence) in advice.items():
        found = pairs[pairs["where"] == where]
        if len(found):
            counts = ", ".join(f"{count} {kind}" for kind, count in found.groupby("kind", sort=False).size().items())
            rows = len(set(found["id_a"]) | set(found["id_b"]))
            first = ", ".join(f"{a} = {b}" for a, b in found[["id_a", "id_b"]].head(SHOWN).itertuples(index=False))
            notes.append(f"{finding.format(rows)} (pairs: {counts}), {consequence}; first pairs: {first}; all: {path}")
    return notes


def _shift_notes(
    data: Mapping[str, Any], prepared: Prepared, test_items: TableItems, vectors: np.ndarray, path: Path
) -> list[str]:
    """Note how train and test differ in images and columns; write how test-like each training image is to `path`."""
    train, test = prepared.table, test_items.table
    if min(len(train), len(test)) < FEWEST:
        return [f"too few images for adversarial validation: it needs {FEWEST} in train and test"]
    grouped = "group" in train.frame and "group" in test.frame
    groups = [*train.frame["group"], *test.frame["group"]] if grouped else None
    try:
        auc, likeness = adversarial_validation(vectors[: len(train)], vectors[len(train) :], groups)
    except Refusal as error:
        return [str(error)]
    ranked = pd.DataFrame({"id": train.ids, "test_likeness": likeness.round(4)})
    ranked = ranked.sort_values("test_likeness", ascending=False, kind="stable")
    with write_atomic(path) as temporary:
        ranked.to_csv(temporary, index=False)
    scan = scan_alike(test_items.source, data, prepared.samples, prepared.statistics, False)
    declared = ["id", "image", "group", "unit", *(name for name in data["columns"].values() if isinstance(name, str))]
    columns = column_aucs(
        image_properties(prepared.scan).join(train.frame.drop(columns=declared, errors="ignore")),
        image_properties(scan).join(test.frame.drop(columns=declared, errors="ignore")),
    )
    interval = f"AUC {auc.value:.3f}, 95 % interval {auc.low:.3f} to {auc.high:.3f}"
    notes = [f"a classifier cannot tell train from test images ({interval})"]
    if auc.low > 0.5:
        first = ", ".join(ranked["id"].head(SHOWN))
        notes = [
            f"warning: a classifier tells train from test images ({interval}), so out-of-fold scores may not hold for "
            f"the test; training images most similar to the test: {first} (all in {path})"
        ]
    notable = ", ".join(
        f"{name} ({auc.value:.2f}, {auc.low:.2f} to {auc.high:.2f})"
        for name, auc in columns.items()
        if auc.value >= NOTABLE_AUC and auc.low > 0.5
    )
    if notable:
        notes.append(f"columns that separate train from test on their own (AUC, 95 % interval): {notable}")
    return notes
