"""Ground truth: targets, folds and metric. Checks that predictions match it.

Out-of-fold predictions are scored on the competition's table and folds, those of gold rows on these. Any predictions
can be scored on a labelled table, for example a benchmark, a hold-out, or a test set with published labels.
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
from foldwise.data.holdout import GOLD
from foldwise.data.prepare import read_items
from foldwise.data.problems import explain_ids
from foldwise.data.samples import Samples, TableItems
from foldwise.data.table import Columns, Table, read_table, target_settings
from foldwise.errors import Refusal
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.schema import Header, listed, raise_problems, some
from foldwise.predictions.store import Predictions, average_members
from foldwise.tasks import Task, find_task
from foldwise.tasks.outputs import run_of


@dataclass(frozen=True)
class GroundTruth:
    """Targets, folds and metric of a competition."""

    table: Table
    folds: np.ndarray  # (N,) int64; below 0 for rows that are not scored: gold, always trained, or without a target
    folds_hash: str  # "" for a labelled table, which has no folds
    metric: Any  # set up for the task
    config: dict[str, Any]
    items: TableItems
    code: Code = NO_CODE  # the owner's code, with the reader and the metric

    @property
    def task(self) -> Task:
        return find_task(self.table.task)

    @property
    def scored_folds(self) -> list[int]:
        return sorted(fold for fold in set(self.folds.tolist()) if fold >= 0)


def read_ground_truth(source: Path, data: str | None = None, overrides: Sequence[str] = ()) -> GroundTruth:
    """Read the competition's table and folds for a source of predictions.

    Args:
        data: name of a file in configs/data, for a source without config.yaml.
        overrides: key=value changes of that configuration, as in train.py.

    Raises:
        Refusal: no configuration, no folds.csv, untrusted code, or a table with problems.
    """
    config, samples, code = _open(source, data, overrides)
    section = config["data"]
    read = read_items(section, config["task"], samples)
    table, folds = read.table, table_folds(read.table, section)
    metric = build_metric(config["metric"], config["task"], table.classes, table, code.alias)
    items = TableItems.of(read.source, samples)
    scored = np.where(table.known, fold_array(folds, table.ids), -1)
    return GroundTruth(table, scored, folds_hash(folds), metric, config, items, code)


def read_labelled_table(
    path: Path, header: Header, source: Path, data: str | None = None, overrides: Sequence[str] = ()
) -> GroundTruth:
    """Read a labelled table, without folds and perhaps without a group column, for the task and classes of `header`.

    Other arguments as `read_ground_truth`.
    """
    config, samples, code = _open(source, data, overrides)
    section = config["data"]
    columns = replace(Columns.from_config(section["columns"]), fold=None, weight=None, gold=None)
    source_table = read_table(
        path,
        header.task,
        section["root"],
        columns,
        header.columns,
        needs_group=False,
        **target_settings(section),
    )
    items = TableItems.of(source_table, samples)
    table = items.table
    metric = build_metric(config["metric"], header.task, table.classes, table, code.alias)
    return GroundTruth(table, np.where(table.known, 0, -1), "", metric, config, items, code)


def gold_rows(truth: GroundTruth) -> GroundTruth:
    """Return the gold rows alone as scored, like a labelled table; Refusal if there are none."""
    if not (truth.folds == GOLD).any():
        raise Refusal(
            f"{truth.table.path} has no gold rows: name a column that marks them with 1 in data.columns.gold, and train"
        )
    return replace(truth, folds=np.where(truth.folds == GOLD, 0, -1), folds_hash="")


def shared_rows(truth: GroundTruth, predictions: Sequence[Predictions]) -> GroundTruth:
    """Return the rows that all predictions have as scored, in whatever folds they were; Refusal if there are none."""
    if any(part.header.kind == "vectors" for part in predictions):
        raise Refusal("rounds of retrieval are not comparable: new images are searched among, too")
    shared = set.intersection(*(set(part.frame["id"]) for part in predictions))
    scored = (truth.folds >= 0) & truth.table.frame["id"].isin(shared).to_numpy()
    if not scored.any():
        raise Refusal(f"no row of {truth.table.path} is in all predictions: name runs of one competition")
    return replace(truth, folds=np.where(scored, truth.folds, -1), folds_hash="")


def read_test_table(truth: GroundTruth, path: Path | None = None) -> Table:
    """Read a table without targets: `path`, or else `data.test_table`; Refusal if both are None."""
    data = truth.config["data"]
    path = path or data["test_table"]
    if path is None:
        raise Refusal("data.test_table is null: set it to the table of the predicted images, or pass --table <file>")
    columns = Columns.from_config(data["columns"])
    return read_table(path, truth.task.name, data["root"], columns, truth.table.classes, has_target=False)


def mismatches(header: Header, truth: GroundTruth, split: str) -> list[str]:
    """List differences in split, task, columns and folds between predictions and ground truth; accept unknown folds."""
    problems = [] if header.split == split else [f"their split is {header.split}, not {split}"]
    if header.task != truth.task.name:
        problems.append(f"their task is {header.task}, but {truth.table.path} has {truth.task.name}")
    if header.kind != "vectors" and header.columns != list(truth.table.classes):
        found, expected = some(header.columns), some(truth.table.classes)
        problems.append(f"their columns are {found}, but {truth.table.path} has {expected}")
    if truth.folds_hash and header.folds_hash not in (None, truth.folds_hash):
        problems.append(f"they were made with the folds {header.folds_hash}, but the folds are {truth.folds_hash} now")
    return problems


def check_predictions(predictions: Predictions, truth: GroundTruth) -> None:
    """Raise PredictionsError with all mismatches between predictions and ground truth.

    Out-of-fold predictions must cover exactly the scored rows, besides rows without a target. For a labelled table any
    split will do, and predictions of further ids are ignored.
    """
    if predictions.header.kind == "vectors":
        return _check_vectors(predictions, truth)
    labelled = not truth.folds_hash
    problems = mismatches(predictions.header, truth, predictions.header.split if labelled else "oof")
    scored = {id: fold for id, fold in zip(truth.table.ids, truth.folds.tolist(), strict=True) if fold >= 0}
    fold_of = dict(zip(predictions.frame["id"], predictions.frame["fold"], strict=True))
    missing = scored.keys() - fold_of.keys()
    why = explain_ids(scored, fold_of) if missing else ""
    problems += listed(f"rows of {truth.table.path} have no prediction{why}", missing)
    if not labelled:
        unknown = {id for id, known in zip(truth.table.ids, truth.table.known, strict=True) if not known}
        other = fold_of.keys() - scored.keys() - unknown
        problems += listed("predicted ids are not scored rows of the table", other)
        moved = [id for id in scored.keys() & fold_of.keys() if scored[id] != fold_of[id]]
        problems += listed("ids are in another fold now", moved)
    raise_problems(predictions.folder, problems)


def _check_vectors(predictions: Predictions, truth: GroundTruth) -> None:
    """Each fold's model must have embedded the whole table: the images to search, and those to search among."""
    problems = mismatches(predictions.header, truth, "oof")
    ids = dict(iter(predictions.frame.groupby("fold")["id"]))
    for fold in truth.scored_folds:
        missing = set(truth.table.ids).difference(ids.get(fold, ()))
        problems += listed(f"rows of {truth.table.path} have no vector of fold {fold}", missing)
    problems += listed(f"ids are not in {truth.table.path}", set(predictions.frame["id"]) - set(truth.table.ids))
    raise_problems(predictions.folder, problems)


def align(predictions: Predictions, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Check out-of-fold predictions and average them over snapshots and views.

    Returns:
        Table indices (N,) int64 of the scored rows, ascending, and their values (N, C) float64.
    """
    check_predictions(predictions, truth)
    average = average_members(predictions.frame, predictions.columns).set_index("id")
    rows = np.flatnonzero(truth.folds >= 0)
    ids = [truth.table.ids[row] for row in rows]
    return rows, average.loc[ids, list(truth.table.classes)].to_numpy(np.float64)


def _open(source: Path, data: str | None, overrides: Sequence[str]) -> tuple[dict[str, Any], Samples, Code]:
    """Load the resolved configuration of a source or of `data`, its reader, and the owner's code.

    The code is the run's copy if it has one, else the working tree's. A configuration may come from somebody else, so
    the reader must be a class of foldwise or of this code.
    """
    if data is None:
        if overrides:
            raise Refusal(f"{', '.join(overrides)} changes the configuration of --data: add --data <name>")
        if not source.is_dir():
            raise Refusal(f"there is no folder {source}")
        if not (source / "config.yaml").is_file():
            raise Refusal(f"{source} has no config.yaml: name its data and metric with --data <name>")
        config, code = read_config(source), run_code(run_of(source)[0])
    else:
        config, code = resolve_config(compose_config([f"data={data}", *overrides])), NO_CODE
    if not code.files:
        code = current_code({key: config[key] for key in ("samples", "metric")})
    arguments = {name: value for name, value in config["samples"].items() if name != "_target_"}
    kind = resolve_strict(module_target(config["samples"]["_target_"]), code.alias, Samples, "samples._target_")
    return config, kind(**arguments), code
