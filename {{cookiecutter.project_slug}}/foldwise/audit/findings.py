"""Notes on the data for the user to look at before training: classes, folds, duplicates, train/test shift."""

from collections.abc import Mapping
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
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.files import write_atomic

SHOWN = 3
TELLING = 0.6  # a column whose AUC is worth a word


def audit_table(prepared: Prepared) -> list[str]:
    """Notes on classes without rows, constant channels, what folds split, and values beyond the scale."""
    notes = []
    counts = prepared.statistics["class_counts"]
    for number, name in enumerate(prepared.table.classes):
        empty = [fold for fold, of_class in counts.items() if fold != "-1" and of_class[number] == 0]
        if sum(of_class[number] for of_class in counts.values()) == 0:
            notes.append(f"class {name!r} never occurs")
        elif empty:
            notes.append(f"class {name!r} does not occur in fold {', '.join(empty)}")
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
        advice = "; mode: rgb drops it" if channel == 3 and image["channels"] == 4 else ""
        notes.append(f"channel {channel} is constant and tells a network nothing (its std is taken as 1/255){advice}")
    if float(scan["maximum"].max()) > image["scale"] or float(scan["minimum"].min()) < 0:
        notes.append(
            f"values reach from {scan['minimum'].min():.4g} to {scan['maximum'].max():.4g}, "
            f"beyond 0 to data.scale ({image['scale']:.4g})"
        )
    return notes


def audit_images(
    data: Mapping[str, Any], prepared: Prepared, test: Table | None, describe: Describer, progress: bool = True
) -> list[str]:
    """Look for duplicates and, given a test table, for a shift; write `duplicates.csv` and `adversarial.csv`.

    Args:
        data: the `data` part of the config.
        describe: `PixelDescriber`, or a network.

    Returns:
        Notes for the user.
    """
    folder = Path(data["prepared"])
    every = [TableItems.of(table, prepared.samples) for table in (prepared.source, test) if table is not None]
    descriptors = describe_images(every, data, describe, progress)
    ids = [id for items in every for id in items.table.ids]
    files = [items.table.image_path(row) for items in every for row in range(len(items.table))]
    pairs = find_duplicates(ids, files, prepared.fold_of_items, descriptors)
    with write_atomic(folder / "duplicates.csv") as temporary:
        pairs.to_csv(temporary, index=False)
    notes = _duplicate_notes(pairs, folder / "duplicates.csv")
    if not descriptors.learned:
        notes.append(
            "near duplicates were looked for in pixels alone, which misses most other views of a scene "
            "(neighbouring frames of a video): --weights FILE finds them"
        )
    if test is not None:
        notes += _shift_notes(data, prepared, every[1], descriptors.vectors, folder / "adversarial.csv")
    return notes


def _duplicate_notes(pairs: pd.DataFrame, path: Path) -> list[str]:
    """A note for each place where there are duplicates, with the first pairs and what to do."""
    advice = {
        BETWEEN_FOLDS: (
            "warning: {} rows have duplicates in another fold",
            "so out-of-fold scores will be too good: hold such rows together by data.columns.group and make new "
            "folds, or drop all but one",
        ),
        TRAIN_AND_TEST: (
            "warning: {} rows have duplicates across train and test",
            "which say nothing of new images: drop them from training, or know why they may stay",
        ),
        SAME_FOLD: (
            "{} rows have duplicates in their own fold",
            "which leak nothing, but count double: check that their labels agree, or drop all but one",
        ),
    }
    notes = []
    for where, (what, meaning) in advice.items():
        found = pairs[pairs["where"] == where]
        if len(found):
            counts = ", ".join(f"{count} {kind}" for kind, count in found.groupby("kind", sort=False).size().items())
            rows = len(set(found["id_a"]) | set(found["id_b"]))
            first = ", ".join(f"{a} = {b}" for a, b in found[["id_a", "id_b"]].head(SHOWN).itertuples(index=False))
            notes.append(f"{what.format(rows)} (pairs: {counts}), {meaning}; the first: {first}; all: {path}")
    return notes


def _shift_notes(
    data: Mapping[str, Any], prepared: Prepared, test_items: TableItems, vectors: np.ndarray, path: Path
) -> list[str]:
    """Notes on how train and test differ, in images and in columns of the tables."""
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
    known = ["id", "image", *(name for name in ("group", "unit") if name in train.frame)]
    known += [name for name in data["columns"].values() if isinstance(name, str)]
    columns = column_aucs(
        image_properties(prepared.scan).join(train.frame.drop(columns=known, errors="ignore")),
        image_properties(scan).join(test.frame.drop(columns=known, errors="ignore")),
    )
    interval = f"AUC {auc.value:.3f}, 95 % interval {auc.low:.3f} to {auc.high:.3f}"
    notes = [f"train and test images cannot be told apart ({interval})"]
    if auc.low > 0.5:
        first = ", ".join(ranked["id"].head(SHOWN))
        notes = [
            f"warning: a classifier tells train from test images ({interval}), so out-of-fold scores may not hold for "
            f"the test; the training images most like the test: {first} (all in {path})"
        ]
    telling = ", ".join(
        f"{name} ({own.value:.2f}, {own.low:.2f} to {own.high:.2f})"
        for name, own in columns.items()
        if own.value >= TELLING and own.low > 0.5
    )
    if telling:
        notes.append(f"columns that tell train from test by themselves (AUC, 95 % interval): {telling}")
    return notes
