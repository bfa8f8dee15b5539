"""What an evaluation prints: scores, subgroups by the competition's metric, differences, and a few of the notes."""

import math
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from foldwise.predictions.evaluation.evaluate import TWO_FILES, Evaluation
from foldwise.predictions.evaluation.evidence import ClassEvidence, class_table

NOTES = 5  # more are in the report
CLASSES = 30  # of more, the table is in the report only


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the evaluation."""
    console, scores = Console(highlight=False, markup=False), evaluation.scores
    everything = scores["column"] == ""
    console.print(_overall(evaluation, scores[everything]))
    first = evaluation.evidence[0]
    if first.classes is not None and len(evaluation.truth.table.classes) <= CLASSES:
        console.print(_classes(evaluation, first.name, first.classes))
    metric = type(evaluation.metrics[0]).__name__
    for column, rows in scores[~everything & (scores["metric"] == metric)].groupby("column", sort=False):
        console.print(_subgroups(f"{metric} by {column}", rows, evaluation))
    if len(evaluation.differences):
        for what, rows in evaluation.differences.groupby("what", sort=False):
            console.print(_differences(str(what), rows))
        if (evaluation.differences["pairs"] == 1).any():
            console.print(TWO_FILES)
    for note in evaluation.notes[:NOTES]:
        console.print(f"note: {note}", soft_wrap=True)
    if len(evaluation.notes) > NOTES:
        console.print(f"and {len(evaluation.notes) - NOTES} more notes in the report")


def _overall(evaluation: Evaluation, rows: pd.DataFrame) -> Table:
    table = _table(
        f"{evaluation.truth.table.path}: {rows['images'].iat[0]:,} scored; 95 % intervals from "
        f"{evaluation.resamples:,} draws of {evaluation.groups:,} {evaluation.drawn}",
        ["prediction", "metric"],
        ["score", "interval"],
    )
    for row in rows.itertuples():
        table.add_row(row.prediction, row.metric, f"{row.score:.4f}", format_interval(row.low, row.high))
    return table


def _classes(evaluation: Evaluation, name: str, classes: ClassEvidence) -> Table:
    frame = class_table(classes, evaluation.truth).drop(columns=["answered", "right"])
    unit = "pixels" if evaluation.truth.task.kind == "maps" else "times"
    table = _table(f"classes of {name}", ["class"], [f"{unit} true", *frame.columns[2:]])
    for name, true, *ratios in frame.itertuples(index=False):
        table.add_row(str(name), f"{true:,}", *("—" if math.isnan(value) else f"{value:.3f}" for value in ratios))
    return table


def _subgroups(title: str, rows: pd.DataFrame, evaluation: Evaluation) -> Table:
    grouped = evaluation.drawn != "images"
    counts = ["images", *([evaluation.drawn] if grouped else [])]
    table = _table(title, ["value"], [*counts, *(one.name for one in evaluation.evidence)])
    for value, same in rows.groupby("value", sort=False):
        numbers = [f"{same[name].iat[0]:,}" for name in ("images", "groups")[: len(counts)]]
        scores = (f"{row.score:.4f} {format_interval(row.low, row.high)}" for row in same.itertuples())
        table.add_row(str(value), *numbers, *scores)
    return table


def _differences(what: str, rows: pd.DataFrame) -> Table:
    several = rows["pairs"].iat[0] > 1
    over = ["95 % over images", *([f"95 % over {rows['pairs'].iat[0]} seeds"] if several else [])]
    table = _table(what, ["metric"], ["first", "second", "difference", *over])
    table.add_column("first is", overflow="fold")
    for row in rows.itertuples():
        error = f" ± {row.error:.4f}" if several else ""
        seeds = [format_interval(row.seed_low, row.seed_high)] if several else []
        table.add_row(
            row.metric,
            f"{row.first:.4f}",
            f"{row.second:.4f}",
            f"{row.difference:+.4f}{error}",
            format_interval(row.low, row.high),
            *seeds,
            row.verdict,
        )
    return table


def _table(title: str, texts: list[str], numbers: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def format_interval(low: Any, high: Any) -> str:
    """An interval in brackets; NaN ends mean that there are too few groups for one."""
    return "(too few)" if math.isnan(low) else f"[{low:.4f}, {high:.4f}]"
