"""Everything between a table and the first epoch: check the table and all images, make folds, compute statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.folds import extend_folds, folds_hash, read_folds, write_folds
from foldwise.data.pseudo import Pseudo, read_pseudo
from foldwise.data.statistics import compute_statistics, constant_channels, images_hash, scan_images
from foldwise.data.table import Columns, Table, TableError, read_table
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.locks import lock


@dataclass(frozen=True)
class Prepared:
    """What `prepare` gives: `folds` has the fold of every id of the table, -1 for always train.

    `statistics` is described at `compute_statistics`; `scan` at `scan_images`; `notes` are sentences for the user.
    `pseudo` has the rows of `data.pseudo`, which take part in training and in nothing else.
    """

    table: Table
    folds: dict[str, int]
    folds_hash: str
    statistics: dict[str, Any]
    images_hash: str
    scan: pd.DataFrame
    notes: tuple[str, ...]
    pseudo: Pseudo | None = None


def prepare(data: Mapping[str, Any], task: str, seed: int, make_folds: bool = True, progress: bool = True) -> Prepared:
    """Check the data of a config and bring `folds.csv`, `images.csv` and `statistics.json` up to date.

    It can be called again at any time: files that were read before are only asked for their size, folds stay,
    new rows join them, and what is up to date is not written.

    Args:
        data: the `data` part of the config.
        task: multiclass, multilabel or segmentation.
        seed: of the folds.
        make_folds: False refuses a table whose rows are not all in `folds.csv`, instead of changing the folds.
        progress: show a progress bar.

    Raises:
        TableError: everything that is wrong with the table or the images.
        Refusal: folds cannot be made, or do not fit the table.
    """
    prepared = Path(data["prepared"])
    classes = data["classes"]
    if data["name"] == "sample":
        from foldwise.data.sample import sample_classes, write_sample

        classes = classes or sample_classes(task)
        if not Path(data["table"]).exists():
            with lock(Path(data["root"]) / ".lock"):  # several jobs may begin at once
                if not Path(data["table"]).exists():
                    write_sample(Path(data["root"]), task)
    table = read_table(data["table"], task, data["root"], Columns.from_config(data["columns"]), classes)
    ignore_index = data["ignore_index"]
    if not isinstance(ignore_index, int):
        raise Refusal(f"data.ignore_index is {ignore_index!r}; give a mask value that no class has, such as 255")
    if task == "segmentation" and 0 <= ignore_index < len(table.classes):
        raise Refusal(f"data.ignore_index is {ignore_index}, which is the class {table.classes[ignore_index]!r}")
    scan = scan_images(table, data["mode"], data["scale"], ignore_index, prepared / "images.csv", progress)
    folds, notes = _folds(table, scan, data, seed, prepared / "folds.csv", make_folds)
    statistics = compute_statistics(scan, table, folds, data["scale"])
    if not (prepared / "statistics.json").exists() or read_json(prepared / "statistics.json") != statistics:
        write_json(prepared / "statistics.json", statistics)
    notes += _notes(table, scan, folds, statistics)
    pseudo, every_scan = None, scan
    if data.get("pseudo"):
        pseudo = read_pseudo(data, table, folds.values(), folds_hash(folds))
        every_scan = pd.concat([scan, _scan_alike(pseudo.table, data, statistics, progress)])
    return Prepared(table, folds, folds_hash(folds), statistics, images_hash(every_scan), scan, tuple(notes), pseudo)


def check_test_table(data: Mapping[str, Any], task: str, prepared: Prepared, progress: bool = True) -> Table:
    """Check the test table and its images; they must have the channels and the dtype of the training images.

    Raises:
        TableError: everything that is wrong with them.
    """
    classes = prepared.table.classes
    table = read_table(data["test_table"], task, data["root"], Columns.from_config(data["columns"]), classes, False)
    _scan_alike(table, data, prepared.statistics, progress)
    return table


def stratification_target(table: Table, scan: pd.DataFrame) -> np.ndarray:
    """(N, C) 0 or 1, what folds are balanced by: labels, the likeliest class of soft targets, classes in a mask."""
    if table.target is None:
        return (np.stack(scan["pixels"].tolist()) > 0).astype(np.float64)
    if table.task == "multiclass":
        return np.eye(len(table.classes))[table.target.argmax(axis=1)]
    return (table.target >= 0.5).astype(np.float64)


def _folds(
    table: Table, scan: pd.DataFrame, data: Mapping[str, Any], seed: int, path: Path, make_folds: bool
) -> tuple[dict[str, int], list[str]]:
    """The folds of the table's ids: the given column, or `folds.csv` and what joins it."""
    n_folds = data["folds"]
    stored = read_folds(path) if path.exists() else {}
    if "fold" in table.frame:
        folds = dict(zip(table.ids, table.frame["fold"].tolist(), strict=True))
        found = sorted(set(folds.values()) - {-1})
        if found != list(range(n_folds)):
            raise TableError(
                table.path,
                [
                    f"the fold column has the folds {found}, but data.folds is {n_folds}: "
                    f"the folds must be 0 to {n_folds - 1}, none empty"
                ],
            )
        if stored != folds:
            write_folds(path, list(folds), list(folds.values()))
        return folds, ["the given folds replace the ones in folds.csv"] if stored and stored != folds else []

    new = [name for name in table.ids if name not in stored]
    command = f"python prepare.py --data {data['name']}"
    if new and not make_folds:
        what = f"{path} does not exist" if not stored else f"{len(new)} rows have no fold in {path}"
        raise Refusal(f"{what}; make it with: {command}")
    if stored and max(stored.values()) + 1 != n_folds:
        raise Refusal(
            f"{path} has {max(stored.values()) + 1} folds, but data.folds is {n_folds}; "
            f"to make new folds, delete it and run: {command}"
        )
    if not new:
        return {name: stored[name] for name in table.ids}, []
    groups = _fold_groups(table)
    assigned = extend_folds(stored, table.ids, n_folds, stratification_target(table, scan), groups, seed)
    folds = dict(zip(table.ids, assigned.tolist(), strict=True))
    # Rows that left the table keep their fold, in case they come back.
    everything = stored | folds
    write_folds(path, list(everything), list(everything.values()))
    return folds, [f"{len(new)} new rows joined the folds"] if stored else []


def _scan_alike(table: Table, data: Mapping[str, Any], statistics: Mapping[str, Any], progress: bool) -> pd.DataFrame:
    """Scan the images of another table, which must have the channels and the dtype of the training images."""
    record = Path(data["prepared"]) / "images.csv"
    scan = scan_images(table, data["mode"], data["scale"], data["ignore_index"], record, progress)
    problems = [
        f"its images have {column} {scan[column].iat[0]}, the training images {statistics[column]}"
        for column in ("channels", "dtype")
        if scan[column].iat[0] != statistics[column]
    ]
    if problems:
        raise TableError(table.path, problems)
    return scan


def _fold_groups(table: Table) -> list[str] | None:
    """What a fold must not split: the groups, or else the units."""
    frame = table.frame
    if "group" in frame and "unit" in frame:
        groups = frame.groupby("unit")["group"].nunique()
        split = groups[groups > 1].index
        if len(split):
            raise TableError(table.path, [f"the unit {name!r} lies in several groups" for name in split])
    column = next((name for name in ("group", "unit") if name in frame), None)
    return None if column is None else frame[column].tolist()


def _notes(table: Table, scan: pd.DataFrame, folds: Mapping[str, int], statistics: Mapping[str, Any]) -> list[str]:
    notes = []
    counts = statistics["class_counts"]
    for number, name in enumerate(table.classes):
        empty = [fold for fold, of_class in counts.items() if fold != "-1" and of_class[number] == 0]
        if sum(of_class[number] for of_class in counts.values()) == 0:
            notes.append(f"class {name!r} never occurs")
        elif empty:
            notes.append(f"class {name!r} does not occur in fold {', '.join(empty)}")
    for channel in constant_channels(statistics):
        advice = "; mode: rgb drops it" if channel == 3 and statistics["channels"] == 4 else ""
        notes.append(f"channel {channel} is constant and tells a network nothing (its std is taken as 1/255){advice}")
    fold = np.array([folds[name] for name in table.ids])
    for column in ("image", "group", "unit"):
        if column in table.frame:
            spread = pd.Series(fold).groupby(table.frame[column]).nunique()
            split = spread[spread > 1].index.tolist()
            if split:
                notes.append(
                    f"{len(split)} {column}s are in more than one fold, so scores will be too good: "
                    f"{', '.join(split[:5])}{', …' if len(split) > 5 else ''}"
                )
    if float(scan["maximum"].max()) > statistics["scale"] or float(scan["minimum"].min()) < 0:
        notes.append(
            f"values reach from {scan['minimum'].min():.4g} to {scan['maximum'].max():.4g}, "
            f"beyond 0 to data.scale ({statistics['scale']:.4g})"
        )
    return notes
