"""What a submission is made of: found, checked, and put into the format that the competition wants."""

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
    """Everything that a submission is made of, checked; `units` has the unit of each test id, where there are units."""

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
        """Warnings for the user."""
        notes = []
        if self.sample is None:
            notes.append("Without --sample nothing is compared with the competition's sample submission.")
        if self.oof.header.tta != self.test.header.tta:
            notes.append(
                "The test predictions have another TTA than the out-of-fold ones, on which calibration and thresholds "
                "are fitted: choose both alike with --oof and --test."
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
    """Read and check everything; arguments as in `submit.make_submission`.

    Raises:
        Refusal: whatever is wrong with the predictions, the ground truth, the sample submission or the format.
    """
    source = find_sources([folder], oof, test)[0]
    if source.test is None:
        raise Refusal(f"{source.folder} has no test predictions: python predict.py {source.folder} makes them")
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
    """The format, with the columns of the sample submission or else of the table.

    Args:
        kind: a name in `formats.FORMATS`; None: by the sample, the task and the metric.
        options: of the format, by the names of its fields.

    Raises:
        Refusal: an option or a format that does not suit.
    """
    task, classes, options = truth.task, truth.table.classes, dict(options or {})
    values = task.kind == "rows" and takes_values(truth.metric)
    several = sample is not None and len(sample.columns) > 2
    of_rows = "columns" if values or several or "positive" in options else "labels"
    chosen = FORMATS[kind or ("rle" if task.kind == "maps" else of_rows)]
    option = f"--format {chosen.name}"
    problems = [f"{option} has no {name}" for name in sorted(options.keys() - {item.name for item in fields(chosen)})]
    if not chosen.suits(task):
        problems.append(f"{option} is for {' and '.join(chosen.tasks())}, and this is {task.name}")
    elif chosen.name == "labels" and values:
        problems.append(f"{option}: {type(truth.metric).__name__} takes probabilities, which --format columns writes")
    if chosen.name == "columns" and "positive" not in options and sample is not None and not several:
        if len(classes) > 1:
            problems.append(f"{sample_path} has one column beside the ids: name its class with --positive")
        options |= {"positive": classes[0]}
    raise_problems("the format", problems)
    columns = Columns.from_config(truth.config["data"]["columns"])
    names = [columns.id, columns.target if isinstance(columns.target, str) else task.column]
    if sample is not None:
        names = sample.columns[:2].tolist()
    return chosen(classes=classes, id_column=names[0], value_column=names[1], **options)


def _units(truth: GroundTruth, test: Predictions) -> pd.Series | None:
    """The unit of each test id, where the training table has units."""
    if truth.task.kind == "maps" or "unit" not in truth.table.frame:
        return None
    table, ids = read_test_table(truth), test.frame["id"].unique()
    units = table.frame.set_index("id")["unit"]
    raise_problems(test.folder, listed(f"ids are not in {table.path}", set(ids) - set(units.index)))
    return units.loc[ids]
