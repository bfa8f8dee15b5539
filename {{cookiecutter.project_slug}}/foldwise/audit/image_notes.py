"""Notes on the images to read before training: duplicates, train/test shift."""

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
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.files import write_csv
from foldwise.tasks import find_task

SHOWN = 3
NOTABLE_AUC = 0.6  # columns above it are reported


def audit_images(
    data: Mapping[str, Any], prepared: Prepared, test: Table | None, describe: Describer, progress: bool = True
) -> list[str]:
    """Note duplicates and, given a test table, a shift; write `duplicates.csv` and `adversarial.csv`."""
    folder = Path(data["prepared"])
    tables = [TableItems.of(table, prepared.samples) for table in (prepared.source, test) if table is not None]
    descriptors = describe_images(tables, data, describe, progress)
    ids = [id for items in tables for id in items.table.ids]
    files = [items.table.image_path(row) for items in tables for row in range(len(items.table))]
    equal = files if prepared.samples.crop is None else []  # several boxes of one file are no duplicates
    pairs = find_duplicates(ids, equal, prepared.fold_of_items, descriptors)
    pairs, conflicts = _compare_targets(pairs, prepared.table)
    write_csv(folder / "duplicates.csv", pairs)
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


def _shared_ids(table: Table, test: Table) -> list[str]:
    """Note ids of the test table that the training table has too."""
    shared = [id for id in test.ids if id in table.row_of]
    same = [id for id in shared if table.image_path(table.row_of[id]) == test.image_path(test.row_of[id])]
    if not shared:
        return []
    files = f", {len(same):,} of them with the same image: is {test.path} the test table?" if same else ""
    return [f"{len(shared):,} of {len(test):,} ids of the test table are in the training table{files}: {some(shared)}"]


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
    write_csv(path, ranked)
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
