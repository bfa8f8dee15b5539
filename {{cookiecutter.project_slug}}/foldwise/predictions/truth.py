"""What out-of-fold predictions are measured by: the table with its targets, the folds, and the competition's metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.code.build import resolve_strict
from foldwise.code.runs import OwnerCode, current_code, module_target, run_code
from foldwise.code.source import Code
from foldwise.config import compose_config, read_config
from foldwise.data.folds import folds_hash, table_folds
from foldwise.data.pictures import Pictures
from foldwise.data.prepare import read_items
from foldwise.data.samples import Samples
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.predictions.members import average_members
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.schema import PredictionsError, some
from foldwise.predictions.store import Predictions
from foldwise.tasks import Task, find_task
from foldwise.tasks.outputs import run_of


@dataclass(frozen=True)
class Truth:
    """The truth of one competition.

    `folds` is (N,) int64, the fold of each row of the table, -1 for rows that are never scored. `metric` is ready for
    the task. `config` is the resolved configuration that all this comes from. `pictures` are the rows' to look at.
    `code` is the owner's that reading and metric are from.
    """

    table: Table
    folds: np.ndarray
    folds_hash: str
    metric: Any
    config: dict[str, Any]
    pictures: Pictures
    code: Code | None = None

    @property
    def task(self) -> Task:
        return find_task(self.table.task)


def read_truth(source: Path, data: str | None = None, overrides: Sequence[str] = ()) -> Truth:
    """Read the truth that belongs to a source of predictions.

    Args:
        source: a run or an ensemble, whose config.yaml says which data and metric it is about.
        data: a file in configs/data by name, for predictions that come without a config.yaml; None: `source` has one.
        overrides: key=value changes of the configuration, as in train.py; only beside `data`.

    Raises:
        Refusal: there is no configuration, no folds.csv, or something is wrong with the table.
    """
    config = source_config(source, data, overrides)
    section = config["data"]
    classes = section["classes"]
    if section["name"] == "sample":
        from foldwise.data.sample import sample_classes

        classes = classes or sample_classes(config["task"])
    code = source_code(source, data, config)
    samples = build_reader(config["samples"], code.alias)
    read = read_items(section, config["task"], samples, classes)
    folds = table_folds(read.table, section)
    metric = build_metric(config["metric"], config["task"], read.table.classes, read.table, code.alias)
    fold_of = np.array([folds[id] for id in read.table.ids])
    return Truth(read.table, fold_of, folds_hash(folds), metric, config, Pictures.of(read.source, samples), code.code)


def align(predictions: Predictions, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold predictions of rows in the order of the table, averaged over snapshots and views.

    Returns:
        rows (N,) int64 of the table that are scored, in its order, and their values (N, C) float64.

    Raises:
        PredictionsError: as `check_oof`.
    """
    check_oof(predictions, truth)
    average = average_members(predictions.frame, predictions.columns).set_index("id")
    rows = np.flatnonzero(truth.folds >= 0)
    ids = [truth.table.ids[row] for row in rows]
    return rows, average.loc[ids, list(truth.table.classes)].to_numpy(np.float64)


def check_oof(predictions: Predictions, truth: Truth) -> None:
    """Refuse predictions that are not out-of-fold predictions of exactly the scored rows of the truth.

    Raises:
        PredictionsError: another split, task, columns or folds, ids that are missing or unknown; all are listed.
    """
    header, table = predictions.header, truth.table
    if header.split != "oof":
        raise PredictionsError(predictions.folder, [f"their split is {header.split}, and only oof ones can be scored"])
    problems = []
    if header.task != table.task:
        problems.append(f"their task is {header.task}, and that of {table.path} is {table.task}")
    if header.columns != list(table.classes):
        problems.append(f"their columns are {some(header.columns)}, and those of {table.path} {some(table.classes)}")
    if header.folds_hash is not None and header.folds_hash != truth.folds_hash:
        problems.append(f"they were made with the folds {header.folds_hash}, and the folds now are {truth.folds_hash}")
    scored = dict(zip(table.ids, truth.folds.tolist(), strict=True))
    wanted = {id for id, fold in scored.items() if fold >= 0}
    fold_of = dict(zip(predictions.frame["id"], predictions.frame["fold"], strict=True))
    for what, names in (
        ("rows of the table have no prediction", sorted(wanted - fold_of.keys())),
        ("predicted ids are not scored rows of the table", sorted(fold_of.keys() - wanted)),
        ("ids are of another fold", sorted(id for id in wanted & fold_of.keys() if scored[id] != fold_of[id])),
    ):
        if names:
            problems.append(f"{len(names)} {what}: {some(names)}")
    if problems:
        raise PredictionsError(predictions.folder, problems)


def build_reader(config: Mapping[str, Any], alias: str | None) -> Samples:
    """The reader of a source's configuration, which may come from other people: a class of foldwise or of `alias`.

    Raises:
        Refusal: another target.
    """
    arguments = {name: value for name, value in config.items() if name != "_target_"}
    kind = resolve_strict(module_target(config["_target_"]), alias, Samples, "samples._target_")
    return kind(**arguments)


def source_code(source: Path, data: str | None, config: dict[str, Any]) -> OwnerCode:
    """The owner's code that belongs to a source's configuration: its own, or the working copy's.

    Raises:
        Refusal: it is not trusted.
    """
    own = run_code(run_of(source)[0]) if data is None else OwnerCode()
    return own if own.alias else current_code({key: config[key] for key in ("samples", "metric")})


def source_config(source: Path, data: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of a source, or of `data`; as in `read_truth`."""
    if data is None:
        if overrides:
            raise Refusal(f"{', '.join(overrides)} changes a configuration: name the data with --data")
        if not (source / "config.yaml").is_file():
            raise Refusal(f"{source} has no config.yaml: say which data and metric it is about with --data <name>")
        return read_config(source)
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(compose_config([f"data={data}", "experiment_name=null", *overrides]), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}
