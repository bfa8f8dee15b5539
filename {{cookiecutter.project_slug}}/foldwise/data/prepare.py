"""Check the table and all images, make folds, compute statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.code.build import make
from foldwise.data.boxes import check_boxes
from foldwise.data.columns import Columns
from foldwise.data.features import FeatureSet, StoredFeatures, open_features
from foldwise.data.fields import Item
from foldwise.data.folds import fold_array, folds_hash, update_folds
from foldwise.data.holdout import GOLD, Holdout
from foldwise.data.image_problems import damage_notes
from foldwise.data.mask_problems import mask_notes
from foldwise.data.problems import TableError
from foldwise.data.pseudo import Pseudo, read_pseudo, read_unlabelled
from foldwise.data.sample import provide_classes
from foldwise.data.samples import Samples, TableItems, item_table
from foldwise.data.scan import images_hash, scan_items
from foldwise.data.statistics import compute_statistics, count_classes
from foldwise.data.table import Table, read_table, target_settings
from foldwise.data.units import check_answers
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.tasks import find_task
from foldwise.tasks.outputs import Output


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs to know of the data.

    Attributes:
        table: one row per item, with the targets of the main output.
        source: the table as read; the reader makes `items` of its rows.
        alias: module alias of the owner's code.
        outputs: what the models predict, the main output first.
        auxiliary: further outputs that are trained only (`keep: false`).
        tables: like `table` for each output, by target field.
        folds: by item id; -1 means always train, GOLD never.
        unlabelled: items that phases with `relabel` train on.
        class_counts: of each output by name, see `count_classes`.
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
    unlabelled: TableItems | None = None
    features: tuple[FeatureSet, ...] = ()
    auxiliary: tuple[Output, ...] = ()
    class_counts: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def trained(self) -> tuple[Output, ...]:
        return (*self.outputs, *self.auxiliary)

    @property
    def image(self) -> dict[str, Any]:
        """Statistics of the first image field."""
        return next(iter(self.statistics["images"].values()))

    @cached_property
    def reader(self) -> Samples:
        """What training and out-of-fold predictions read with: of the images, or of the features in their place."""
        return StoredFeatures(self.samples, self.features, self.source) if self.features else self.samples

    @property
    def fold_of_items(self) -> np.ndarray:
        return fold_array(self.folds, self.table.ids)

    @property
    def scored_folds(self) -> list[int]:
        return sorted(fold for fold in set(self.folds.values()) if fold >= 0)

    def predicted(self, part: Holdout) -> np.ndarray:
        """Indices of the items that a model predicts out of fold: held-out ones; all for vectors, to search among."""
        folds = self.fold_of_items
        return np.arange(len(folds)) if self.outputs[0].meaning.kind == "vectors" else part.held(folds)

    @cached_property
    def gold(self) -> "Prepared | None":
        """The same data with the gold rows as its only fold, to predict and score them; None without such rows."""
        folds = {id: 0 if fold == GOLD else -1 for id, fold in self.folds.items()}
        return replace(self, folds=folds) if 0 in folds.values() else None

    @property
    def oof_ids(self) -> list[str]:
        """Ids of the items with out-of-fold predictions."""
        rows = [self.predicted(Holdout((fold,))) for fold in self.scored_folds]
        return [self.table.ids[row] for row in np.unique(np.concatenate(rows))]


def prepare(config: Mapping[str, Any], alias: str | None, make_folds: bool = True, progress: bool = True) -> Prepared:
    """Check the data of a config and update `folds.csv`, `images.csv` and `statistics.json`.

    Safe to call again: of known files only the sizes are read, and existing rows keep their folds.

    Args:
        alias: module alias of the owner's code.
        make_folds: False refuses rows that are not in `folds.csv`.
    """
    data, task = config["data"], config["task"]
    samples = make(config["samples"], alias, "samples")
    _check_names(samples)
    items = read_items(data, task, samples)
    table = items.table
    outputs, auxiliary, tables = read_outputs(config, table, items.items)
    _check_ignore_index(data["ignore_index"], [*outputs, *auxiliary])
    scan = scan_items(items, data, progress=progress)
    folds, notes = update_folds(table, present_classes(table, scan), data, config["seed"], make_folds)
    notes = [*notes, *damage_notes(scan)]
    if find_task(task).exclusive:
        notes += mask_notes(scan, len(table.classes), data["ignore_index"], table.masks.values)
    places = fold_array(folds, table.ids)
    _check_identities(table, places)
    statistics = compute_statistics(scan, items, places, data["scale"])
    scans, counts = [scan], {"": statistics["class_counts"]}
    for output in (*outputs[1:], *auxiliary):
        own = tables[output.target]
        if output.meaning.field.spatial:
            scans.append(scan_items(items, data, f"images-{output.name}", own, progress))
        counts[output.name] = count_classes(own, scans[-1], places)
    stored = Path(data["prepared"]) / "statistics.json"
    if not stored.exists() or read_json(stored) != statistics:
        write_json(stored, statistics)
    pseudo = None
    if data.get("pseudo"):
        if len(tables) > 1 or any(len(item.rows) > 1 for item in items.items):
            raise Refusal("data.pseudo supports one image per item and one output; this config has more")
        pseudo = read_pseudo(data, table, folds.values(), folds_hash(folds))
        scans.append(scan_alike(pseudo.table, data, samples, statistics, progress))
    unlabelled = None
    phases = [phase for phase in (config.get("phases") or {}).values() if isinstance(phase, Mapping)]
    if any(phase.get("relabel") and phase.get("epochs") for phase in phases):  # prepare.py has no epochs
        unlabelled = read_unlabelled(data, table, samples)
        scans.append(scan_alike(unlabelled.source, data, samples, statistics, progress))
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
        images_hash(pd.concat(scans)),
        scan,
        tuple(notes),
        pseudo,
        unlabelled,
        open_features(data, items, scan, statistics),
        auxiliary,
        counts,
    )


def read_items(data: Mapping[str, Any], task: str, samples: Samples) -> TableItems:
    classes = provide_classes(data, task)
    source = read_table(
        data["table"],
        task,
        data["root"],
        Columns.from_config(data["columns"]),
        classes,
        **target_settings(data),
    )
    items = TableItems.of(source, samples, targets=True)
    check_answers(items)
    check_boxes(items, data["columns"].get("fold"))
    return items


def read_outputs(
    config: Mapping[str, Any], table: Table, items: Sequence[Item]
) -> tuple[tuple[Output, ...], tuple[Output, ...], dict[str, Table]]:
    """Read the outputs that are predicted, the main one first, those that are only trained, and each one's table.

    Tables have one row per item and are named by their target field. Further outputs may lack targets.
    """
    main = Output.main(config["task"], table.classes)
    outputs, tables = [main], {main.target: table}
    auxiliary: list[Output] = []
    problems: list[str] = []
    data = config["data"]
    for name, entry in (config.get("outputs") or {}).items():  # prepare.py does not fill entries in
        columns = Columns.from_config({**data["columns"], "target": entry["target"]})
        try:
            source = read_table(
                data["table"],
                entry["task"],
                data["root"],
                columns,
                entry.get("classes"),
                **target_settings(data) | {"missing": data["ignore_index"]},
            )
        except TableError as error:
            text = str(error).replace("data.columns.target", f"outputs.{name}.target")
            problems.append(f"outputs.{name}: {text.replace('data.classes', f'outputs.{name}.classes')}")
            continue
        output = Output.other(name, entry, source.classes)
        (outputs if entry.get("keep", True) else auxiliary).append(output)
        tables[output.target] = item_table(source, items)
    if problems:
        raise Refusal("\n".join(problems))
    return tuple(outputs), tuple(auxiliary), tables


def check_test_table(data: Mapping[str, Any], prepared: Prepared, progress: bool = True) -> tuple[Table, list[str]]:
    """Read and scan `data.test_table`; also return notes."""
    table, columns = prepared.table, Columns.from_config(data["columns"])
    test = read_table(
        data["test_table"], table.task, data["root"], columns, table.classes, has_target=False, exif=table.exif
    )
    return test, damage_notes(scan_alike(test, data, prepared.samples, prepared.statistics, progress))


def scan_alike(
    table: Table, data: Mapping[str, Any], samples: Samples, statistics: Mapping[str, Any], progress: bool
) -> pd.DataFrame:
    """Scan another table; its images must have the channels and dtype of the training images."""
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
    """Return the memberships (N, K) of items, 0 and 1, to balance folds by: classes in masks, else `Task.strata`.

    Gold rows have none, so that they change no fold.
    """
    target, rows = table.trained_target, ~table.gold
    if target is None:
        found = np.stack(scan["pixels"].tolist())[rows] > 0
    else:
        found = find_task(table.task).strata(target)
    present = np.zeros((len(table), found.shape[1]))
    present[rows] = found
    return present


def _check_identities(table: Table, folds: np.ndarray) -> None:
    """Refuse a retrieval table in which no scored image has another one of its identity to find."""
    if table.target is None or find_task(table.task).kind != "vectors":
        return
    if table.gold.any():
        raise TableError(
            table.path, ["retrieval searches among all images, so it has no gold rows: set data.columns.gold=null"]
        )
    identity = table.target[:, 0]
    if (np.bincount(identity)[identity[folds >= 0]] < 2).all():
        problem = "no identity has two images, so nothing can be found out of fold and there is no score"
        raise TableError(table.path, [f"{problem}: is data.columns.target the column of the identities?"])


def _check_names(samples: Samples) -> None:
    taken = [
        name
        for name in samples.fields
        if name in ("weight", "row", "lam") or name.endswith(("_valid", "_other")) or not name.isidentifier()
    ]
    if taken:
        raise Refusal(
            f"{type(samples).__name__}.fields has {', '.join(taken)}: rename these. weight, row, lam, and names ending "
            "in _valid or _other are reserved in a batch, and a name must be a Python identifier"
        )


def _check_ignore_index(ignore_index: Any, outputs: Sequence[Output]) -> None:
    if not isinstance(ignore_index, int):
        raise Refusal(f"data.ignore_index is {ignore_index!r}; set it to a mask value that is no class, such as 255")
    for output in outputs:
        task, classes = output.meaning, len(output.columns)
        if task.kind == "maps" and not task.exclusive and not 1 < ignore_index <= 255:
            raise Refusal(f"data.ignore_index is {ignore_index}; with a mask per class it must be from 2 to 255")
        if task.kind == "maps" and task.exclusive and 0 <= ignore_index < classes:
            name = output.columns[ignore_index]
            raise Refusal(f"data.ignore_index is {ignore_index}, which is class {name!r}; set it to an unused value")
