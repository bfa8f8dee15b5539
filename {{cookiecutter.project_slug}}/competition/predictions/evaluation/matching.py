"""Which predictions are scored, and by which truth.

Out-of-fold predictions have the competition's table and folds. Predictions of any kind can be scored by a labelled
table: a benchmark, a hold-out, a test set whose solution was published.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from competition.config import compose_config, read_config
from competition.data.table import Columns, read_table
from competition.predictions.metrics.building import build_metric
from competition.predictions.schema import HEADER, Header, raise_problems, some
from competition.predictions.sources import test_names
from competition.predictions.store import Predictions, read_header
from competition.predictions.truth import Truth, check_oof


def find_predictions(paths: Sequence[Path], oof: str, test: str | None, labelled: bool) -> list[Path]:
    """The prediction folder that each path means: itself, or one in a run, ensemble, or folder of that shape.

    Args:
        oof: "oof", or the name of out-of-fold predictions in `predictions/`.
        test: the name of predictions of kind test, to compare with a labelled table; None: the only ones.
        labelled: whether there is such a table.

    Raises:
        ValueError: predictions that are not there, twice the same, or several to choose from; all are listed.
    """
    problems: list[str] = []
    found: list[Path] = []
    for path in paths:
        if (path / HEADER).is_file():
            folder = path
        elif not labelled:
            folder = path / "oof" if oof == "oof" else path / "predictions" / oof
        else:
            names = [test] if test else test_names(path)
            if len(names) != 1:
                problems.append(
                    f"{path} has several test predictions, choose with --test: {', '.join(names)}"
                    if names
                    else f"{path} has no test predictions"
                )
                continue
            folder = path / "predictions" / names[0]
        if not (folder / HEADER).is_file():
            problems.append(f"{path} has no predictions {folder}")
        elif folder.resolve() in {other.resolve() for other in found}:
            problems.append(f"{path} is named twice")
        elif not labelled and read_header(folder).kind == "test":
            problems.append(f"{folder} is of kind test: name the table that has the truth with --table")
        found.append(folder)
    if problems:
        raise ValueError("\n".join(problems))
    return found


def read_labelled(path: Path, header: Header, source: Path, data: str | None, overrides: Sequence[str]) -> Truth:
    """The truth of a labelled table, for predictions that every fold's model made; it has no folds.

    Args:
        header: of the predictions, whose task and classes count.
        source, data, overrides: where the metric and the meaning of the columns come from, as in `truth.read_truth`.

    Raises:
        ValueError: there is no configuration, or something is wrong with the table.
    """
    if data is None and overrides:
        raise ValueError(f"{', '.join(overrides)} changes a configuration: name the data with --data")
    if data is None and not (source / "config.yaml").is_file():
        raise ValueError(f"{source} has no config.yaml: say what its metric and columns are with --data <name>")
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
