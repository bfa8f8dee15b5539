"""Everything between a table and the first epoch: check the table and all images, make folds, compute statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.code.build import make
from foldwise.data.fields import Item
from foldwise.data.folds import extend_folds, folds_hash, read_folds, write_folds
from foldwise.data.pseudo import Pseudo, read_pseudo
from foldwise.data.samples import Rows, Samples, item_table
from foldwise.data.statistics import Scanned, compute_statistics, constant_channels, images_hash, scan_items
from foldwise.data.table import Columns, Table, TableError, read_table
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.locks import lock
from foldwise.tasks import find_task
from foldwise.tasks.outputs import Output


@dataclass(frozen=True)
class Prepared:
    """What `prepare` gives.

    Attributes:
        table: one row an item, with the targets of the main output.
        source: the table as it is; `rows` is what the reader sees of it, `items` what it makes of it.
        samples: the reader; `alias`: of the owner's code that it is from.
        outputs: what is predicted, the main output first.
        tables: as `table`, by the target field of each output.
        folds: of every id of the items, -1 for always train.
        statistics: see `compute_statistics`; `scan`: see `scan_items`.
        notes: sentences for the user.
        pseudo: the rows of `data.pseudo`, which take part in training and in nothing else.
    """

    table: Table
    source: Table
    items: Sequence[Item]
    samples: Samples
    alias: str | None
    outputs: tuple[Output, ...]
    tables: dict[str, Table]
    folds: dict[str, int]
    folds_hash: str
    statistics: dict[str, Any]
    images_hash: str
    scan: pd.DataFrame
    notes: tuple[str, ...]
    pseudo: Pseudo | None = None

    @property
    def image(self) -> dict[str, Any]:
        """The statistics of the first image field."""
        return next(iter(self.statistics["images"].values()))

    @property
    def fold_of_items(self) -> np.ndarray:
        """(N,) int64, in the order of the items."""
        return np.array([self.folds[id] for id in self.table.ids])


def read_items(data: Mapping[str, Any], task: str, samples: Samples, classes: Sequence[str] | None) -> "ReadItems":
    """The training table of a configuration and its items.

    Raises:
        TableError: everything that is wrong with the table or with its items.
    """
    source = read_table(data["table"], task, data["root"], Columns.from_config(data["columns"]), classes)
    rows = Rows(source, samples, targets=True)
    items = samples.items(rows)
    return ReadItems(source, rows, items, item_table(source, items))


class ReadItems(NamedTuple):
    """A table, what a reader sees of it, its items, and the table of items."""

    source: Table
    rows: Rows
    items: Sequence[Item]
    table: Table


def prepare(config: Mapping[str, Any], alias: str | None, make_folds: bool = True, progress: bool = True) -> Prepared:
    """Check the data of a configuration and bring `folds.csv`, `images.csv` and `statistics.json` up to date.

    It can be called again at any time: files that were read before are only asked for their size, folds stay,
    new rows join them, and what is up to date is not written.

    Args:
        config: resolved; `data`, `task`, `seed` (of the folds) and `outputs` are read.
        alias: of the owner's code, which has the reader.
        make_folds: False refuses a table whose rows are not all in `folds.csv`, instead of changing the folds.
        progress: show a progress bar.

    Raises:
        TableError: everything that is wrong with the table or the images.
        Refusal: folds cannot be made, or do not fit the table.
    """
    data, task = config["data"], config["task"]
    samples = make(config["samples"], alias, "samples")
    prepared = Path(data["prepared"])
    classes = data["classes"]
    if data["name"] == "sample":
        from foldwise.data.sample import sample_classes, write_sample

        classes = classes or sample_classes(task)
        if not Path(data["table"]).exists():
            with lock(Path(data["root"]) / ".lock"):  # several jobs may begin at once
                if not Path(data["table"]).exists():
                    write_sample(Path(data["root"]), task)
    _check_names(samples)
    read = read_items(data, task, samples, classes)
    table = read.table
    outputs, tables = read_outputs(config, table, read.items)
    ignore_index = data["ignore_index"]
    if not isinstance(ignore_index, int):
        raise Refusal(f"data.ignore_index is {ignore_index!r}; give a mask value that no class has, such as 255")
    for output in outputs:
        if output.meaning.kind == "maps" and 0 <= ignore_index < len(output.columns):
            raise Refusal(f"data.ignore_index is {ignore_index}, which is the class {output.columns[ignore_index]!r}")
    scanned = Scanned(table, read.rows, read.items, samples)
    scan = scan_items(scanned, data["scale"], ignore_index, prepared / "images.csv", progress)
    folds, notes = _folds(table, scan, data, config["seed"], prepared / "folds.csv", make_folds)
    statistics = compute_statistics(scan, scanned, folds, data["scale"])
    masks = [
        scan_items(
            Scanned(tables[output.target], read.rows, read.items, samples),
            data["scale"], ignore_index, prepared / f"images-{output.name}.csv", progress,
        )
        for output in outputs[1:]
        if output.meaning.field.spatial
    ]  # fmt: skip
    if not (prepared / "statistics.json").exists() or read_json(prepared / "statistics.json") != statistics:
        write_json(prepared / "statistics.json", statistics)
    notes += _notes(table, scan, folds, statistics)
    pseudo, every_scan = None, pd.concat([scan, *masks])
    if data.get("pseudo"):
        if len(outputs) > 1 or any(len(item.rows) > 1 for item in read.items):
            raise Refusal("data.pseudo has rows of one picture and one target each, and here are several")
        pseudo = read_pseudo(data, table, folds.values(), folds_hash(folds))
        every_scan = pd.concat([scan, scan_alike(pseudo.table, data, samples, statistics, progress)])
    return Prepared(
        table,
        read.source,
        read.items,
        samples,
        alias,
        outputs,
        tables,
        folds,
        folds_hash(folds),
        statistics,
        images_hash(every_scan),
        scan,
        tuple(notes),
        pseudo,
    )


def _check_names(samples: Samples) -> None:
    """Refuse fields whose names mean something else in a batch."""
    taken = [
        name
        for name in samples.fields
        if name in ("weight", "row", "lam") or name.endswith(("_valid", "_other")) or not name.isidentifier()
    ]
    if taken:
        raise Refusal(
            f"{type(samples).__name__}.fields has {', '.join(taken)}, which mean something else in a batch (weight, "
            "row, lam, and names that end in _valid or _other): choose other names"
        )


def read_outputs(
    config: Mapping[str, Any], table: Table, items: Sequence[Item]
) -> tuple[tuple[Output, ...], dict[str, Table]]:
    """What is predicted, the main output first, and the items' table with the targets of each, by their field.

    Raises:
        TableError: everything that is wrong with the targets of one of them.
    """
    main = Output.main(config["task"], table.classes)
    outputs, tables = [main], {main.target: table}
    data = config["data"]
    for name, entry in (config.get("outputs") or {}).items():
        columns = Columns.from_config({**data["columns"], "target": entry["target"]})
        source = read_table(data["table"], entry["task"], data["root"], columns, entry.get("classes"))
        own = Output.other(name, entry, source.classes)
        outputs.append(own)
        tables[own.target] = item_table(source, items)
    return tuple(outputs), tables


def check_test_table(data: Mapping[str, Any], task: str, prepared: Prepared, progress: bool = True) -> Table:
    """Check the test table and its images; they must have the channels and the dtype of the training images.

    Raises:
        TableError: everything that is wrong with them.
    """
    classes = prepared.table.classes
    table = read_table(data["test_table"], task, data["root"], Columns.from_config(data["columns"]), classes, False)
    scan_alike(table, data, prepared.samples, prepared.statistics, progress)
    return table


def stratification_target(table: Table, scan: pd.DataFrame) -> np.ndarray:
    """(N, C) 0 or 1, what folds are balanced by: labels, the likeliest class of soft targets, classes in a mask."""
    if table.target is None:
        return (np.stack(scan["pixels"].tolist()) > 0).astype(np.float64)
    if find_task(table.task).exclusive:
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


def scan_alike(
    table: Table, data: Mapping[str, Any], samples: Samples, statistics: Mapping[str, Any], progress: bool
) -> pd.DataFrame:
    """Scan the items of another table, whose images must have the channels and the dtype of the training images.

    Raises:
        TableError: as `scan_items`, or they have others.
    """
    rows = Rows(table, samples, targets="mask" in table.frame)
    items = samples.items(rows)
    scanned = Scanned(item_table(table, items), rows, items, samples)
    record = Path(data["prepared"]) / "images.csv"
    scan = scan_items(scanned, data["scale"], data["ignore_index"], record, progress)
    trained: Mapping[str, Any] = next(iter(statistics["images"].values()), {})
    problems = [
        f"its images have {column} {scan[column].iat[0]}, the training images {trained[column]}"
        for column in ("channels", "dtype")
        if trained and scan[column].iat[0] != trained[column]
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
    image: Mapping[str, Any] | None = next(iter(statistics["images"].values()), None)
    for channel in constant_channels(image or {"std": []}):
        advice = "; mode: rgb drops it" if channel == 3 and image and image["channels"] == 4 else ""
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
    if image and (float(scan["maximum"].max()) > image["scale"] or float(scan["minimum"].min()) < 0):
        notes.append(
            f"values reach from {scan['minimum'].min():.4g} to {scan['maximum'].max():.4g}, "
            f"beyond 0 to data.scale ({image['scale']:.4g})"
        )
    return notes
