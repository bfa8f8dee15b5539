"""Check the table and all images, make folds, compute statistics: all between a table and the first epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.code.build import make
from foldwise.data.fields import Item
from foldwise.data.folds import fold_array, folds_hash, update_folds
from foldwise.data.pseudo import Pseudo, read_pseudo
from foldwise.data.sample import provide_classes
from foldwise.data.samples import Samples, TableItems, item_table
from foldwise.data.scan import images_hash, scan_items
from foldwise.data.statistics import compute_statistics
from foldwise.data.table import Columns, Table, TableError, read_table
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.tasks import find_task
from foldwise.tasks.outputs import Output


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs to know of the data.

    Attributes:
        table: one row an item, with the targets of the main output.
        source: the table as it is, of whose rows the reader makes `items`.
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
        return fold_array(self.folds, self.table.ids)


def prepare(config: Mapping[str, Any], alias: str | None, make_folds: bool = True, progress: bool = True) -> Prepared:
    """Check the data of a configuration and bring `folds.csv`, `images.csv` and `statistics.json` up to date.

    It can be called again at any time: only the sizes of known files are read, folds stay, new rows join them, and what
    is up to date is not written.

    Args:
        config: resolved; `data`, `task`, `seed` (of the folds) and `outputs` are read.
        alias: of the owner's code, which has the reader.
        make_folds: False refuses a table whose rows are not all in `folds.csv`.

    Raises:
        TableError: everything that is wrong with the table or the images.
        Refusal: folds cannot be made, or do not fit the table.
    """
    data, task = config["data"], config["task"]
    samples = make(config["samples"], alias, "samples")
    _check_names(samples)
    items = read_items(data, task, samples)
    table = items.table
    outputs, tables = read_outputs(config, table, items.items)
    _check_ignore_index(data["ignore_index"], outputs)
    scan = scan_items(items, data, progress=progress)
    folds, notes = update_folds(table, present_classes(table, scan), data, config["seed"], make_folds)
    statistics = compute_statistics(scan, items, fold_array(folds, table.ids), data["scale"])
    every_scan = [scan]
    for output in outputs[1:]:
        if output.meaning.field.spatial:
            every_scan.append(scan_items(items, data, f"images-{output.name}", tables[output.target], progress))
    stored = Path(data["prepared"]) / "statistics.json"
    if not stored.exists() or read_json(stored) != statistics:
        write_json(stored, statistics)
    pseudo = None
    if data.get("pseudo"):
        if len(outputs) > 1 or any(len(item.rows) > 1 for item in items.items):
            raise Refusal("data.pseudo has rows of one image and one target each, and here are several")
        pseudo = read_pseudo(data, table, folds.values(), folds_hash(folds))
        every_scan = [scan, scan_alike(pseudo.table, data, samples, statistics, progress)]
    return Prepared(
        table,
        items.source,
        items.items,
        samples,
        alias,
        outputs,
        tables,
        folds,
        folds_hash(folds),
        statistics,
        images_hash(pd.concat(every_scan)),
        scan,
        tuple(notes),
        pseudo,
    )


def read_items(data: Mapping[str, Any], task: str, samples: Samples) -> TableItems:
    """The training table of a configuration and its items, with targets."""
    classes = provide_classes(data, task)
    source = read_table(data["table"], task, data["root"], Columns.from_config(data["columns"]), classes)
    return TableItems.of(source, samples, targets=True)


def read_outputs(
    config: Mapping[str, Any], table: Table, items: Sequence[Item]
) -> tuple[tuple[Output, ...], dict[str, Table]]:
    """Read all outputs, the main one first, and the items' table with the targets of each, by their field."""
    main = Output.main(config["task"], table.classes)
    outputs, tables = [main], {main.target: table}
    data = config["data"]
    for name, entry in (config.get("outputs") or {}).items():
        columns = Columns.from_config({**data["columns"], "target": entry["target"]})
        source = read_table(data["table"], entry["task"], data["root"], columns, entry.get("classes"))
        outputs.append(Output.other(name, entry, source.classes))
        tables[outputs[-1].target] = item_table(source, items)
    return tuple(outputs), tables


def check_test_table(data: Mapping[str, Any], prepared: Prepared, progress: bool = True) -> Table:
    """Read the test table and scan its images."""
    table, columns = prepared.table, Columns.from_config(data["columns"])
    test = read_table(data["test_table"], table.task, data["root"], columns, table.classes, has_target=False)
    scan_alike(test, data, prepared.samples, prepared.statistics, progress)
    return test


def scan_alike(
    table: Table, data: Mapping[str, Any], samples: Samples, statistics: Mapping[str, Any], progress: bool
) -> pd.DataFrame:
    """Scan the items of another table, whose images must have the channels and the dtype of the training images."""
    scan = scan_items(TableItems.of(table, samples, targets="mask" in table.frame), data, progress=progress)
    trained: Mapping[str, Any] = next(iter(statistics["images"].values()), {})
    problems = [
        f"its images have {column} {scan[column].iat[0]}, the training images {trained[column]}"
        for column in ("channels", "dtype")
        if trained and scan[column].iat[0] != trained[column]
    ]
    if problems:
        raise TableError(table.path, problems)
    return scan


def present_classes(table: Table, scan: pd.DataFrame) -> np.ndarray:
    """(N, C) 0 or 1, what folds are balanced by: labels, the likeliest class of soft targets, classes in a mask."""
    if table.target is None:
        return (np.stack(scan["pixels"].tolist()) > 0).astype(np.float64)
    if find_task(table.task).exclusive:
        return np.eye(len(table.classes))[table.target.argmax(axis=1)]
    return (table.target >= 0.5).astype(np.float64)


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


def _check_ignore_index(ignore_index: Any, outputs: Sequence[Output]) -> None:
    if not isinstance(ignore_index, int):
        raise Refusal(f"data.ignore_index is {ignore_index!r}; give a mask value that no class has, such as 255")
    for output in outputs:
        if output.meaning.kind == "maps" and 0 <= ignore_index < len(output.columns):
            raise Refusal(f"data.ignore_index is {ignore_index}, which is the class {output.columns[ignore_index]!r}")
