"""Inputs of a submission: predictions, ground truth, sample submission and format, read and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from foldwise.data.columns import Columns, plain
from foldwise.data.problems import enumerated, some
from foldwise.data.targets import as_numbers
from foldwise.errors import Refusal
from foldwise.predictions.decisions.formats import FORMATS
from foldwise.predictions.decisions.rules import takes_values
from foldwise.predictions.decisions.sample import Sample, fit_layout, locate, read_sample
from foldwise.predictions.decisions.submission import check_rows
from foldwise.predictions.ground_truth import (
    GroundTruth,
    check_predictions,
    mismatches,
    read_ground_truth,
    read_test_table,
)
from foldwise.predictions.schema import listed, raise_problems
from foldwise.predictions.sources import Source, find_sources
from foldwise.predictions.store import Predictions, read_header, read_predictions
from foldwise.shell import command


class Material(NamedTuple):
    """Checked inputs of a submission; `units` maps test ids to units, if the table has units."""

    source: Source
    truth: GroundTruth
    oof: Predictions
    test: Predictions
    units: pd.Series | None
    layout: Any
    sample: Sample | None
    found: list[str]  # notes on the sample submission

    @property
    def notes(self) -> list[str]:
        notes = list(self.found)
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
        boxes = read_header(source.oof).task == "detection"
        make = "tools/boxes.py found ... --test" if boxes else command("python", "predict.py", source.folder)
        raise Refusal(f"{source.folder} has no test predictions; make them with {make}")
    truth = read_ground_truth(folder, data, overrides)
    of_oof, of_test = read_predictions(source.oof), read_predictions(source.test)
    check_predictions(of_oof, truth)
    raise_problems(of_test.folder, mismatches(of_test.header, truth, "test"))
    units = _units(truth, of_test)
    ids = (of_test.frame["id"] if units is None else units).unique().tolist()
    sample = None if sample_path is None else locate(read_sample(sample_path), ids, truth.table.classes)
    layout, notes = choose_layout(truth, sample, kind, options)
    notes += check_rows(layout, ids, sample)
    return Material(source, truth, of_oof, of_test, units, layout, sample, notes)


def choose_layout(
    truth: GroundTruth,
    sample: Sample | None,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Any, list[str]]:
    """Choose the format, with notes on it; column names come from the sample submission, or else from the table.

    `kind` is a name in `formats.FORMATS`, or None to go by sample, task and metric; `options` are fields of the format.
    """
    task, classes, options = truth.task, truth.table.classes, dict(options or {})
    notes = [] if sample is None else sample.notes
    values = task.kind == "rows" and takes_values(truth.metric)
    template = options.get("row_id") or (sample and sample.row_id) or ""
    by_class = "{class}" in template or "{index}" in template
    several = sample is not None and len(sample.values) > 1
    of_rows = "columns" if values or several or by_class or "positive" in options else "labels"
    numbers = task.kind == "maps" and not task.exclusive and not truth.metric.of_counts
    of_maps = "masks" if numbers else "rle"
    chosen = FORMATS[kind or {"maps": of_maps, "vectors": "ranking", "boxes": "boxes"}.get(task.kind, of_rows)]
    option = f"--format {chosen.name}"
    problems = [f"{option} has no {name}" for name in sorted(options.keys() - {item.name for item in fields(chosen)})]
    if not chosen.suits(task):
        problems.append(f"{option} is for {enumerated(chosen.tasks())}, but the task is {task.name}")
    elif chosen.name == "labels" and values:
        problems.append(f"{option}: {truth.metric.name} scores probabilities, so use --format columns")
    if "names" in options:
        named = options["names"]
        problems += [f"--names: there is no class {name}" for name in named if name not in classes]
        options["names"] = [named.get(name, name) for name in classes]
    if chosen.name == "labels":
        options = {"separator": truth.config["data"].get("label_separator") or " ", **options}
        problems += [
            f"the class {name!r} contains the separator {options['separator']!r}: choose another with --separator"
            for name in options.get("names", classes)
            if not task.exclusive and options["separator"] in name
        ]
        notes += _number_notes(sample, options.get("names", classes))
    if chosen.name == "columns" and "positive" not in options and sample is not None and not several and not by_class:
        positive = _positive(truth, sample.values[0])
        if positive is None:
            problems.append(f"{sample.path} has only one column beside the ids: name its class with --positive")
        elif len(classes) > 1:
            notes.append(f"Column {sample.values[0]} has the probabilities of {positive}; for another, --positive.")
        options |= {"positive": positive or classes[0]}
    if chosen.name == "rle" and numbers:
        name = type(truth.metric).__name__
        problems.append(f"{option}: {name} scores numbers, so no threshold is fitted: use --format masks")
    if task.kind == "maps" and not task.exclusive:
        options = {"painted": classes, **options} if chosen.name == "rle" else {"layers": True, **options}
    raise_problems("the format", problems)
    columns = Columns.from_config(truth.config["data"]["columns"])
    value = columns.target if isinstance(columns.target, str) else task.column
    value = "PredictionString" if chosen.name == "boxes" else value
    layout = chosen(classes=classes, id_column=columns.id, value_column=value, **options)
    if sample is None:
        return layout, notes
    fitted = fit_layout(layout, sample)
    if fitted.written != layout.written:
        pairs = [f"{name} for {old}" for name, old in zip(fitted.written, layout.written, strict=True) if name != old]
        notes.append(f"Sample submission: the columns are called {some(pairs)}.")
    return fitted, notes


def _positive(truth: GroundTruth, column: str) -> str | None:
    """The class of a single column: of its name, the metric's, or the second of two exclusive; None if it is open."""
    classes = truth.table.classes
    alike = [name for name in classes if plain(name) == plain(column)]
    if alike:
        return alike[0]
    usual = len(classes) == 1 or (len(classes) == 2 and truth.task.exclusive)
    return getattr(truth.metric, "positive", None) or (classes[-1] if usual else None)


def _number_notes(sample: Sample | None, names: Sequence[str]) -> list[str]:
    """Note that a sample submission has numbers where names of classes will be written."""
    if sample is None or as_numbers(list(names)) or len(sample.values) != 1:
        return []
    texts = [text for text in sample.frame[sample.values[0]].unique() if text]
    if not texts or not as_numbers(texts):
        return []
    pairs = " ".join(f"{name}={number}" for number, name in enumerate(names[:3]))
    return [
        f"The sample submission has numbers such as {texts[0]} in column {sample.values[0]}, and the file has names of "
        f"classes: for numbers give --names {pairs}{' ...' if len(names) > 3 else ''}."
    ]


def _units(truth: GroundTruth, test: Predictions) -> pd.Series | None:
    """Map test ids to units, if the training table has units."""
    if truth.task.kind == "maps" or "unit" not in truth.table.frame:
        return None
    table, ids = read_test_table(truth), test.frame["id"].unique()
    units = table.frame.set_index("id")["unit"]
    raise_problems(test.folder, listed(f"ids are not in {table.path}", set(ids) - set(units.index)))
    return units.loc[ids]
