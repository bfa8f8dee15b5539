"""The report of an evaluation: scores and differences with intervals, where the errors are, and pictures of them."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from foldwise.data.images import read_mask
from foldwise.files import write_text
from foldwise.predictions.evaluation.evaluate import TWO_FILES, Evaluation
from foldwise.predictions.evaluation.evidence import ClassEvidence, Evidence, class_table
from foldwise.predictions.evaluation.reliability import expected_calibration_error, reliability_curve
from foldwise.predictions.store import iter_average_maps
from foldwise.reporting.figures import confusion, intervals, reliability
from foldwise.reporting.pictures import gallery, name_answer, overlay
from foldwise.reporting.report import PAGE, figure_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 24  # of a gallery
OVERLAYS = 4  # segmentation: images of a gallery, each with answer and truth
SHOWN = 48  # pictures of the visual subset; segmentation: a quarter of it


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write the report as one HTML file that loads nothing.

    Raises:
        Refusal: a picture cannot be read.
    """
    first, metric = evaluation.evidence[0], type(evaluation.metrics[0]).__name__
    scores = evaluation.scores
    overall = scores[scores["column"] == ""]
    parts = [_summary(evaluation), "<h2>Scores</h2>", _table(overall.drop(columns=["column", "value"]))]
    if len(evaluation.differences):
        parts += ["<h2>Differences</h2>", _table(evaluation.differences)]
        if (evaluation.differences["pairs"] == 1).any():
            parts.append(f"<p>{html.escape(TWO_FILES)}</p>")
    for column, rows in scores[scores["column"] != ""].groupby("column", sort=False):
        own = pd.concat([overall, rows])
        own = own[own["metric"] == metric].rename(columns={"value": "label"})
        parts += [_heading(f"By {column}"), figure_html(f"{metric} by {column}", intervals(own, metric))]
        parts.append(_table(rows.drop(columns="column")))
    if first.classes is not None:
        parts += _classes(evaluation, first.name, first.classes)
    shown = _galleries(evaluation, first)
    parts += [figure_html(caption, figure) for caption, figure in shown]
    if evaluation.notes:
        items = "".join(f"<li>{html.escape(note)}</li>\n" for note in evaluation.notes)
        parts.append(f"<h2>Notes</h2>\n<ul>\n{items}</ul>")
    title = "Evaluation: " + ", ".join(one.name for one in evaluation.evidence)
    write_text(path, PAGE.substitute(title=html.escape(title), body="\n".join(parts)))


def _summary(evaluation: Evaluation) -> str:
    table, metric = evaluation.truth.table, evaluation.metrics[0]
    lines: Mapping[str, Any] = {
        "truth": f"{table.path}: {len(evaluation.evidence[0].rows):,} scored, {len(evaluation.shown):,} only shown",
        "metric": f"{type(metric).__name__}, {'greater' if metric.greater_is_better else 'lower'} is better",
        "predictions": ", ".join(str(one.predictions.folder) for one in evaluation.evidence),
        "intervals": f"95 %, {evaluation.resamples:,} bootstrap draws of {evaluation.groups:,} {evaluation.drawn}",
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>\n" for name, value in lines.items())
    return f"<table>\n{rows}</table>"


def _classes(evaluation: Evaluation, name: str, classes: ClassEvidence) -> list[str]:
    """The classes' figures, their confusion and calibration."""
    parts = [_heading(f"Classes: {name}"), _table(class_table(classes, evaluation.truth))]
    if classes.confusion is not None:
        figure = confusion(classes.confusion, evaluation.truth.table.classes)
        parts.append(figure_html(f"Confusion matrix: {name}", figure))
    parts += ["<h2>Calibration</h2>", _calibration(evaluation)]
    if classes.right.all():
        parts.append(f"<p>{html.escape(name)}: no answer is wrong.</p>")
    return parts


def _calibration(evaluation: Evaluation) -> str:
    curves, task = {}, evaluation.truth.task
    for one in evaluation.evidence:
        assert one.classes is not None
        sums = one.classes.reliability
        curves[f"{one.name} (ECE {expected_calibration_error(sums):.4f})"] = (*reliability_curve(sums), sums[0])
    whose = "every pixel's " if task.kind == "maps" else "the "
    about = f"{whose}answered class" if task.exclusive else "every label"
    caption = f"Reliability of the probability of {about}; ECE is the expected calibration error"
    return figure_html(caption, reliability(curves))


def _galleries(evaluation: Evaluation, first: Evidence) -> list[tuple[str, "Figure"]]:
    chosen, classes = {}, first.classes
    every = np.ones(len(first.rows), bool)
    if classes is None:
        chosen["Largest errors (look here for label errors)"] = _largest(first, first.wrong, every)
    else:
        chosen["Most wrong (look here for label errors)"] = _largest(first, first.wrong, ~classes.right)
        chosen["Most uncertain"] = _largest(first, classes.unsure, every)
    chosen["Shown and not scored"] = evaluation.shown
    draw = _overlays if first.average is None else _thumbnails
    figures = []
    for caption, rows in chosen.items():
        if len(rows):
            figures += draw(evaluation, first, f"{caption}: {first.name}", rows)
    return figures


def _largest(evidence: Evidence, values: np.ndarray, among: np.ndarray) -> np.ndarray:
    order = np.argsort(-values, kind="stable")
    return evidence.rows[order[among[order]][: OVERLAYS if evidence.average is None else PICTURES]]


def _thumbnails(
    evaluation: Evaluation, evidence: Evidence, caption: str, rows: np.ndarray
) -> list[tuple[str, "Figure"]]:
    table = evaluation.truth.table
    assert table.target is not None and evidence.average is not None
    rows, more = rows[:SHOWN], f" (the first {SHOWN} of {len(rows)})" if len(rows) > SHOWN else ""
    images = (evaluation.truth.items.picture(row) for row in rows)

    def named(values: np.ndarray) -> str:
        return name_answer(table.classes, values, evaluation.truth.task)

    titles = [
        f"{table.ids[row]}\n{named(table.target[row])}\n→ {named(evidence.average.loc[table.ids[row]].to_numpy())}"
        for row in rows
    ]
    return [(f"{caption}: truth → answer{more}", gallery(images, titles))]


def _overlays(evaluation: Evaluation, evidence: Evidence, caption: str, rows: np.ndarray) -> list[tuple[str, "Figure"]]:
    table, figures = evaluation.truth.table, []
    rows = rows[: SHOWN // 4]
    maps = iter_average_maps(evidence.predictions, [table.ids[row] for row in rows])
    for row, (id, probability) in zip(rows, maps, strict=True):
        image, mask = evaluation.truth.items.picture(row), read_mask(table.mask_path(row))
        for what, painted in (("answer", probability.argmax(0)), ("truth", mask)):
            picture = overlay(image, painted, table.classes, ignore_index=evaluation.truth.metric.ignore_index)
            figures.append((f"{caption}: {id}, {what}", picture))
    return figures


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def _table(frame: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", None):
        return frame.to_html(index=False, border=0, na_rep="—", float_format="{:.4f}".format, justify="left")
