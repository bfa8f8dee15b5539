"""What prepare.py says of pictures that are too much alike, and of tables that are not alike enough."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.audit.adversarial import AUC, FEWEST, Adversarial, adversarial_validation, column_aucs, image_properties
from foldwise.audit.descriptors import Describer, Descriptors, describe_images
from foldwise.audit.duplicates import BETWEEN_FOLDS, SAME_FOLD, TRAIN_AND_TEST, find_duplicates
from foldwise.data.pictures import Pictures
from foldwise.data.prepare import Prepared, scan_alike
from foldwise.data.samples import item_table
from foldwise.data.statistics import Scanned
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.files import write_atomic

SHOWN = 3
TELLING = 0.6  # a column whose AUC is worth a word


def audit_images(
    data: Mapping[str, Any], prepared: Prepared, test: Table | None, describe: Describer, progress: bool = True
) -> list[str]:
    """Look for duplicates and, given a test table, for a shift; write `duplicates.csv` and `adversarial.csv`.

    Pictures are read once and remembered in `embeddings-<hash>.npz`.

    Args:
        data: the `data` part of the config.
        describe: `PixelDescriber`, or a network.

    Returns:
        Sentences for the user.

    Raises:
        ImageError: a picture cannot be read.
    """
    folder = Path(data["prepared"])
    found = [Pictures.of(prepared.source, prepared.samples)]
    tables = [prepared.table]
    if test is not None:
        found.append(Pictures.of(test, prepared.samples))
        tables.append(item_table(test, found[-1].items))
    of_name = {
        name: partial(pictures, number)
        for table, pictures in zip(tables, found, strict=True)
        for number, name in enumerate(table.frame["image"])
    }
    reader = Scanned(prepared.table, found[0].rows, prepared.items, prepared.samples).reader
    what = f"{describe.key} {describe.size} {reader} {data['scale']}"
    record = folder / f"embeddings-{hashlib.sha256(what.encode()).hexdigest()[:16]}.npz"
    images = [name for table in tables for name in table.frame["image"]]
    root = prepared.table.root
    descriptors = describe_images(images, root, lambda name: of_name[name](), data["scale"], describe, record, progress)
    fold = np.array([prepared.folds[name] for name in prepared.table.ids])
    ids = [name for table in tables for name in table.ids]
    pairs = find_duplicates(ids, [root / name for name in images], fold, descriptors)
    with write_atomic(folder / "duplicates.csv") as temporary:
        pairs.to_csv(temporary, index=False)
    notes = duplicate_notes(pairs, folder / "duplicates.csv")
    if not descriptors.learned:
        notes.append(
            "near duplicates were looked for in pixels alone, which misses most other views of a scene "
            "(neighbouring frames of a video): --weights FILE finds them"
        )
    if test is None:
        return notes
    return notes + _shift_notes(data, prepared, test, tables[1], descriptors, folder / "adversarial.csv")


def duplicate_notes(pairs: pd.DataFrame, path: Path) -> list[str]:
    """A warning for each place where there are duplicates, with the first pairs and what to do."""
    advice = {
        BETWEEN_FOLDS: (
            "warning: {} rows have duplicates in another fold",
            "so scores out of fold will be too good: hold such rows together by data.columns.group and make new "
            "folds, or drop all but one",
        ),
        TRAIN_AND_TEST: (
            "warning: {} rows have duplicates across train and test",
            "which say nothing of new pictures: drop them from training, or know why they may stay",
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
    data: Mapping[str, Any], prepared: Prepared, source: Table, test: Table, descriptors: Descriptors, path: Path
) -> list[str]:
    train = prepared.table
    if min(len(train), len(test)) < FEWEST:
        return [f"too few pictures for adversarial validation: it needs {FEWEST} in train and test"]
    grouped = "group" in train.frame and "group" in test.frame
    groups = [*train.frame["group"], *test.frame["group"]] if grouped else None
    try:
        result = adversarial_validation(descriptors.vectors[: len(train)], descriptors.vectors[len(train) :], groups)
    except Refusal as error:
        return [str(error)]
    likeness = pd.DataFrame({"id": train.ids, "test_likeness": result.likeness.round(4)})
    likeness = likeness.sort_values("test_likeness", ascending=False, kind="stable")
    with write_atomic(path) as temporary:
        likeness.to_csv(temporary, index=False)
    scan = scan_alike(source, data, prepared.samples, prepared.statistics, False)
    known = ["id", "image", *(name for name in ("group", "unit") if name in train.frame)]
    known += [name for name in data["columns"].values() if isinstance(name, str)]
    columns = column_aucs(
        image_properties(prepared.scan).join(train.frame.drop(columns=known, errors="ignore")),
        image_properties(scan).join(test.frame.drop(columns=known, errors="ignore")),
    )
    return _describe_shift(result, columns, likeness["id"].head(SHOWN).tolist(), path)


def _describe_shift(result: Adversarial, columns: Mapping[str, AUC], pictures: list[str], path: Path) -> list[str]:
    auc = f"AUC {result.auc:.3f}, 95 % interval {result.low:.3f} to {result.high:.3f}"
    telling = ", ".join(
        f"{name} ({one.value:.2f}, {one.low:.2f} to {one.high:.2f})"
        for name, one in columns.items()
        if one.value >= TELLING and one.low > 0.5
    )
    notes = [f"columns that tell train from test by themselves (AUC, 95 % interval): {telling}"] if telling else []
    if not result.differs:
        return [f"train and test pictures cannot be told apart ({auc})", *notes]
    return [
        f"warning: a classifier tells train from test pictures ({auc}), so scores out of fold may not hold for the "
        f"test; the training pictures most like the test: {', '.join(pictures)} (all in {path})",
        *notes,
    ]
