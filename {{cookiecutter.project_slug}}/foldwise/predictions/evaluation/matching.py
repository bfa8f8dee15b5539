"""Which predictions are scored, and by which truth.

Out-of-fold predictions have the competition's table and folds. Predictions of any kind can be scored by a labelled
table: a benchmark, a hold-out, a test set whose solution was published.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.config import compose_config, read_config
from foldwise.data.table import Columns, read_table
from foldwise.errors import Refusal
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.schema import Header, raise_problems, some
from foldwise.predictions.store import Predictions
from foldwise.predictions.truth import Truth, check_oof


def read_labelled(path: Path, header: Header, source: Path, data: str | None, overrides: Sequence[str]) -> Truth:
    """The truth of a labelled table, for predictions that every fold's model made; it has no folds.

    Args:
        header: of the predictions, whose task and classes count.
        source, data, overrides: where the metric and the meaning of the columns come from, as in `truth.read_truth`.

    Raises:
        Refusal: there is no configuration, or something is wrong with the table.
    """
    if data is None and overrides:
        raise Refusal(f"{', '.join(overrides)} changes a configuration: name the data with --data")
    if data is None and not (source / "config.yaml").is_file():
        raise Refusal(f"{source} has no config.yaml: say what its metric and columns are with --data <name>")
    from omegaconf import OmegaConf

    config: Any
    if data is None:
        config = read_config(source)
    else:
        composed = compose_config([f"data={data}", "experiment_name=null", *overrides])
        config = OmegaConf.to_container(composed, resolve=True)
    section = config["data"]
    columns = replace(Columns.from_config(section["columns"]), fold=None, weight=None)
    table = read_table(path, header.task, section["root"], columns, header.classes)
    metric = build_metric(config["metric"], header.task, table.classes)
    return Truth(table, np.zeros(len(table), np.int64), "", metric, config)


def check_labelled(predictions: Predictions, truth: Truth) -> None:
    """Refuse predictions that lack rows of a labelled table; others than its rows are not scored.

    Raises:
        PredictionsError: another task or classes, or rows without a prediction; all are listed.
    """
    header, table = predictions.header, truth.table
    problems = []
    if header.task != table.task:
        problems.append(f"their task is {header.task}, and not {table.task}")
    if header.classes != list(table.classes):
        problems.append(f"their classes are {some(header.classes)}, and not {some(table.classes)}")
    missing = sorted(set(table.ids) - set(predictions.frame["id"]))
    if missing:
        problems.append(f"{len(missing)} rows of {table.path} have no prediction: {some(missing)}")
    raise_problems(predictions.folder, problems)


def check_predictions(predictions: Predictions, truth: Truth, labelled: bool) -> None:
    """Refuse what does not fit the truth: the labelled table, or the competition's folds.

    Raises:
        PredictionsError: everything that does not fit.
    """
    if labelled:
        return check_labelled(predictions, truth)
    check_oof(predictions, truth)
