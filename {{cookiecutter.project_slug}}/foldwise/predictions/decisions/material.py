"""Inputs of a submission: predictions, ground truth, sample submission and format, read and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from foldwise.data.table import Columns
from foldwise.errors import Refusal
from foldwise.predictions.decisions.formats import FORMATS
from foldwise.predictions.decisions.rules import takes_values
from foldwise.predictions.decisions.submission import check_rows, read_sample
from foldwise.predictions.ground_truth import (
    GroundTruth,
    check_predictions,
    mismatches,
    read_ground_truth,
    read_test_table,
)
from foldwise.predictions.schema import listed, raise_problems
from foldwise.predictions.sources import Source, find_sources
from foldwise.predictions.store import Predictions, read_predictions


class Material(NamedTuple):
    """Checked inputs of a submission; `units` maps test ids to units, if the table has units."""

    source: Source
    truth: GroundTruth
    oof: Predictions
    test: Predictions
    units: pd.Series | None
    layout: Any
    sample: pd.DataFrame | None
    sample_path: Path | None

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.sample is None:
            notes.append("Columns and ids are unchecked: pass the competition's sample submission with --sample.")
        if self.oof.header.tta != self.test.header.tta:
            notes.append(
                "The test predictions use a different TTA than the out-of-fold predictions, on which calibration and "
                "thresholds are fitted: choose matching ones with --oof and --test."
            )
        return notes


def open_material(
    folder: Path,
    oof: str,
    test: str | None,
    data: str | None,
    overrides: Sequence[str],
    sample_path: Path | None,
    kind: str | None,
    options: Mapping[str, Any],
) -> Material:
    """Read and check the inputs; arguments as in `submit.make_submission`."""
    source = find_sources([folder], oof, test)[0]
    if source.test is None:
        raise Refusal(f"{source.folder} has no test predictions; make them with python predict.py {source.folder}")
    truth = read_ground_truth(folder, data, overrides)
    of_oof, of_test = read_predictions(source.oof), read_predictions(source.test)
    check_predictions(of_oof, truth)
    raise_problems(of_test.folder, mismatches(of_test.header, truth, "test"))
    sample = None if sample_path is None else read_sample(sample_path)
    layout = choose_layout(truth, sample, sample_path, kind, options)
    units = _units(truth, of_test)
    ids = (of_test.frame["id"] if units is None else units).unique().tolist()
    check_rows(layout.row_ids(ids), layout.columns, sample, sample_path)
    return Material(source, truth, of_oof, of_test, units, layout, sample, sample_path)


def choose_layout(
    truth: GroundTruth,
    sample: pd.DataFrame | None,
    sample_path: Path | None = None,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Choose the format; column names come from the sample submission, or else from the table.

    `kind` is a name in `formats.FORMATS`, or None to go by sample, task and metric; `options` are fields of the format.
    """
    task, classes, options = truth.task, truth.table.classes, dict(options or {})
    values = task.kind == "rows" and takes_values(truth.metric)
    several = sample is not None and len(sample.columns) > 2
    of_rows = "columns" if values or several or "positive" in options else "labels"
    chosen = FORMATS[kind or ("rle" if task.kind == "maps" else of_rows)]
    option = f"--format {chosen.name}"
    problems = [f"{option} has no {name}" for name in sorted(options.keys() - {item.name for item in fields(chosen)})]
    if not chosen.suits(task):
        problems.append(f"{option} is for {' and '.join(chosen.tasks())}, but the task is {task.name}")
    elif chosen.name == "labels" and values:
        problems.append(f"{option}: {type(truth.metric).__name__} scores probabilities, so use --format columns")
    if chosen.name == "labels":
        options = {"separator": truth.config["data"].get("label_separator") or " ", **options}
        problems += [
            f"the class {name!r} contains the separator {options['separator']!r}: choose another with --separator"
            for name in classes
            if not task.exclusive and options["separator"] in name
        ]
    if chosen.name == "columns" and "positive" not in options and sample is not None and not several:
        if len(classes) > 1:
            problems.append(f"{sample_path} has only one column beside the ids: name its class with --positive")
        options |= {"positive": classes[0]}
    raise_problems("the format", problems)
    columns = Columns.from_config(truth.config["data"]["columns"])
    names = [columns.id, columns.target if isinstance(columns.target, str) else task.column]
    if sample is not None:
        names = sample.columns[:2].tolist()
    return chosen(classes=classes, id_column=names[0], value_column=names[1], **options)


def _units(truth: GroundTruth, test: Predictions) -> pd.Series | None:
    """Map test ids to units, if the training table has units."""
    if truth.task.kind == "maps" or "unit" not in truth.table.frame:
        return None
    table, ids = read_test_table(truth), test.frame["id"].unique()
    units = table.frame.set_index("id")["unit"]
    raise_problems(test.folder, listed(f"ids are not in {table.path}", set(ids) - set(units.index)))
    return units.loc[ids]
