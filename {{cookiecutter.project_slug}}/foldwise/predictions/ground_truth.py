"""Ground truth of predictions: a table with targets, folds and metric; and the checks that they belong together.

Out-of-fold predictions belong to the competition's table and folds. Predictions of any kind can be scored by a labelled
table: a benchmark, a hold-out, a test set whose solution was published.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.code.build import resolve_strict
from foldwise.code.runs import current_code, module_target, run_code
from foldwise.code.source import NO_CODE, Code
from foldwise.config import compose_config, read_config, resolve_config
from foldwise.data.folds import fold_array, folds_hash, table_folds
from foldwise.data.prepare import read_items
from foldwise.data.samples import Samples, TableItems
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.schema import Header, listed, raise_problems, some
from foldwise.predictions.store import Predictions, average_members
from foldwise.tasks import Task, find_task
from foldwise.tasks.outputs import run_of


@dataclass(frozen=True)
class GroundTruth:
    """The targets, folds and metric of one competition.

    Attributes:
        folds: (N,) int64, the fold of each row of the table, -1 for rows that are never scored.
        folds_hash: "" where predictions of any models are scored by a labelled table.
        metric: ready for the task.
        config: the resolved configuration that all this comes from.
        items: the rows of the table, with their pictures.
        code: the owner's, which the reader and the metric come from.
    """

    table: Table
    folds: np.ndarray
    folds_hash: str
    metric: Any
    config: dict[str, Any]
    items: TableItems
    code: Code = NO_CODE

    @property
    def task(self) -> Task:
        return find_task(self.table.task)


def read_ground_truth(source: Path, data: str | None = None, overrides: Sequence[str] = ()) -> GroundTruth:
    """Read the competition's table and folds, which belong to a source of predictions.

    Args:
        source: a run or an ensemble, whose config.yaml names data and metric.
        data: a file in configs/data by name, for predictions without a config.yaml.
        overrides: key=value changes of the configuration, as in train.py; only beside `data`.

    Raises:
        Refusal: no configuration, no folds.csv, code that is not trusted, or a table with problems.
    """
    config, samples, code = _open(source, data, overrides)
    section = config["data"]
    read = read_items(section, config["task"], samples)
    table, folds = read.table, table_folds(read.table, section)
    metric = build_metric(config["metric"], config["task"], table.classes, table, code.alias)
    items = TableItems.of(read.source, samples)
    return GroundTruth(table, fold_array(folds, table.ids), folds_hash(folds), metric, config, items, code)


def read_labelled_table(
    path: Path, header: Header, source: Path, data: str | None = None, overrides: Sequence[str] = ()
) -> GroundTruth:
    """Read a labelled table without folds, by which predictions of any models are scored.

    Args:
        header: of the predictions, which names task and columns.
        source, data, overrides: as in `read_ground_truth`; what the columns mean, and the metric.
    """
    config, samples, code = _open(source, data, overrides)
    section = config["data"]
    columns = replace(Columns.from_config(section["columns"]), fold=None, weight=None)
    source_table = read_table(path, header.task, section["root"], columns, header.columns)
    items = TableItems.of(source_table, samples)
    table = items.table
    metric = build_metric(config["metric"], header.task, table.classes, table, code.alias)
    return GroundTruth(table, np.zeros(len(table), np.int64), "", metric, config, items, code)


def read_test_table(truth: GroundTruth, path: Path | None = None) -> Table:
    """Read the competition's table without targets, `data.test_table`, or another one.

    Raises:
        Refusal: there is none, or it has problems.
    """
    data = truth.config["data"]
    path = path or data["test_table"]
    if path is None:
        raise Refusal("data.test_table is null: name the table of the predicted images there, or with --table <file>")
    columns = Columns.from_config(data["columns"])
    return read_table(path, truth.task.name, data["root"], columns, truth.table.classes, has_target=False)


def mismatches(header: Header, truth: GroundTruth, split: str) -> list[str]:
    """Problems of predictions of another split, task, columns or folds than the ground truth's.

    Unknown folds (None) fit any.
    """
    problems = [] if header.split == split else [f"their split is {header.split}, not {split}"]
    if header.task != truth.task.name:
        problems.append(f"their task is {header.task}, and that of {truth.table.path} is {truth.task.name}")
    if header.columns != list(truth.table.classes):
        own, wanted = some(header.columns), some(truth.table.classes)
        problems.append(f"their columns are {own}, and those of {truth.table.path} {wanted}")
    if truth.folds_hash and header.folds_hash not in (None, truth.folds_hash):
        problems.append(f"they were made with the folds {header.folds_hash}, and the folds now are {truth.folds_hash}")
    return problems


def check_predictions(predictions: Predictions, truth: GroundTruth) -> None:
    """Refuse predictions that do not belong to the ground truth.

    They must be out-of-fold predictions of exactly the scored rows; or, for a labelled table, of any split and at least
    of its rows.

    Raises:
        PredictionsError: lists another split, task, columns or folds, and ids that are missing or unknown.
    """
    labelled = not truth.folds_hash
    problems = mismatches(predictions.header, truth, predictions.header.split if labelled else "oof")
    scored = {id: fold for id, fold in zip(truth.table.ids, truth.folds.tolist(), strict=True) if fold >= 0}
    fold_of = dict(zip(predictions.frame["id"], predictions.frame["fold"], strict=True))
    problems += listed(f"rows of {truth.table.path} have no prediction", scored.keys() - fold_of.keys())
    if not labelled:
        problems += listed("predicted ids are not scored rows of the table", fold_of.keys() - scored.keys())
        moved = [id for id in scored.keys() & fold_of.keys() if scored[id] != fold_of[id]]
        problems += listed("ids are of another fold", moved)
    raise_problems(predictions.folder, problems)


def align(predictions: Predictions, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold predictions of rows in the order of the table, averaged over snapshots and views.

    Returns:
        rows (N,) int64 of the table that are scored, in its order, and their values (N, C) float64.

    Raises:
        PredictionsError: as `check_predictions`.
    """
    check_predictions(predictions, truth)
    average = average_members(predictions.frame, predictions.columns).set_index("id")
    rows = np.flatnonzero(truth.folds >= 0)
    ids = [truth.table.ids[row] for row in rows]
    return rows, average.loc[ids, list(truth.table.classes)].to_numpy(np.float64)


def _open(source: Path, data: str | None, overrides: Sequence[str]) -> tuple[dict[str, Any], Samples, Code]:
    """The resolved configuration of a source or of `data`, its reader, and the owner's code.

    Configurations come from other people too: the reader is a class of foldwise or of the code, which is the run's copy
    where there is one, else the working tree's.
    """
    if data is None:
        if overrides:
            raise Refusal(f"{', '.join(overrides)} changes a configuration: name the data with --data")
        if not (source / "config.yaml").is_file():
            raise Refusal(f"{source} has no config.yaml: say which data and metric it is about with --data <name>")
        config, code = read_config(source), run_code(run_of(source)[0])
    else:
        config, code = resolve_config(compose_config([f"data={data}", *overrides])), NO_CODE
    if not code.files:
        code = current_code({key: config[key] for key in ("samples", "metric")})
    arguments = {name: value for name, value in config["samples"].items() if name != "_target_"}
    kind = resolve_strict(module_target(config["samples"]["_target_"]), code.alias, Samples, "samples._target_")
    return config, kind(**arguments), code
