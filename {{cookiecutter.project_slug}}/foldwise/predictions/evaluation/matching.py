"""Which predictions are scored, and by which truth.

Out-of-fold predictions have the competition's table and folds. Predictions of any kind can be scored by a labelled
table: a benchmark, a hold-out, a test set whose solution was published.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from foldwise.data.pictures import Pictures
from foldwise.data.samples import item_table
from foldwise.data.table import Columns, read_table
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.schema import Header, raise_problems, some
from foldwise.predictions.store import Predictions
from foldwise.predictions.truth import Truth, build_reader, check_oof, source_code, source_config


def read_labelled(path: Path, header: Header, source: Path, data: str | None, overrides: Sequence[str]) -> Truth:
    """The truth of a labelled table, for predictions that every fold's model made; it has no folds.

    Args:
        header: of the predictions, whose task and columns count.
        source, data, overrides: where the metric and the meaning of the columns come from, as in `truth.read_truth`.

    Raises:
        Refusal: there is no configuration, or something is wrong with the table.
    """
    config = source_config(source, data, overrides)
    section = config["data"]
    columns = replace(Columns.from_config(section["columns"]), fold=None, weight=None)
    code = source_code(source, data, config)
    table = read_table(path, header.task, section["root"], columns, header.columns)
    pictures = Pictures.of(table, build_reader(config["samples"], code.alias))
    table = item_table(table, pictures.items)
    metric = build_metric(config["metric"], header.task, table.classes, table, code.alias)
    return Truth(table, np.zeros(len(table), np.int64), "", metric, config, pictures, code.code)


def check_labelled(predictions: Predictions, truth: Truth) -> None:
    """Refuse predictions that lack rows of a labelled table; others than its rows are not scored.

    Raises:
        PredictionsError: another task or columns, or rows without a prediction; all are listed.
    """
    header, table = predictions.header, truth.table
    problems = []
    if header.task != table.task:
        problems.append(f"their task is {header.task}, and not {table.task}")
    if header.columns != list(table.classes):
        problems.append(f"their columns are {some(header.columns)}, and not {some(table.classes)}")
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
