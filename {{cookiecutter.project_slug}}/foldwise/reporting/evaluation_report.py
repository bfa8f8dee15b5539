"""Report of an evaluation: scores and differences with intervals, error analysis, and pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from foldwise.predictions.evaluation.evaluate import Evaluation
from foldwise.predictions.evaluation.evidence import (
    ClassEvidence,
    Evidence,
    class_table,
    disagreement,
    expected_calibration_error,
    gather_boxes,
    reliability_curve,
)
from foldwise.reporting.console import TWO_FILES
from foldwise.reporting.figures import confusion, intervals, numbers, reliability
from foldwise.reporting.pictures import compare_boxes, compare_masks, compare_values
from foldwise.reporting.report import escape, figure_html, summary_html, table_html, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 24  # per gallery
OVERLAYS = 4  # segmentation: images per gallery, each with its predicted and true mask
SHOWN = 48  # pictures of --show; segmentation: a quarter of them


def write_evaluation(path: Path, evaluation: Evaluation, importance: pd.DataFrame | None = None) -> None:
    """Write the report as one self-contained HTML file; Refusal if a picture cannot be read.

    Args:
        importance: of `measure_importance`.
    """
    first, metric = evaluation.evidence[0], type(evaluation.metrics[0]).__name__
    scores = evaluation.scores
    overall = scores[scores["column"] == ""]
    parts = [_summary(evaluation), "<h2>Scores</h2>", _table(overall.drop(columns=["column", "value"]))]
    if len(evaluation.differences):
        differences = evaluation.differences.dropna(axis="columns", how="all")  # one pair: no seeds
        differences = differences.rename(columns={"what": "left − right", "first": "left", "second": "right"})
        parts += ["<h2>Differences</h2>", _table(differences)]
        if (evaluation.differences["pairs"] == 1).any():
            parts.append(f"<p>{escape(TWO_FILES)}</p>")
    if importance is not None:
        shown = importance[1:].rename(columns={"predicted from": "label", "worse by": "score"})
        figure = intervals(shown.assign(prediction=first.name), f"{metric}: worse by")
        parts += ["<h2>Pictures and metadata</h2>", figure_html("What each part brings", figure), _table(importance)]
    for column, rows in scores[scores["column"] != ""].groupby("column", sort=False):
        frame = pd.concat([overall, rows])
        frame = frame[frame["metric"] == metric].rename(columns={"value": "label"})
        parts += [f"<h2>By {escape(column)}</h2>", figure_html(f"{metric} by {column}", intervals(frame, metric))]
        parts.append(_table(rows.drop(columns="column")))
    if first.classes is not None:
        parts += _classes(evaluation, first.name, first.classes)
    elif evaluation.truth.task.kind == "rows":
        for one in evaluation.evidence:
            target, values, _ = one.arrays[0]
            figure = numbers(target, values, evaluation.truth.table.classes)
            parts.append(figure_html(f"Predicted and true numbers: {one.name}", figure))
    elif evaluation.truth.task.kind == "boxes":
        parts.append(_class_scores(evaluation))
    parts += [figure_html(caption, figure) for caption, figure in _galleries(evaluation, first)]
    if evaluation.notes:
        items = "".join(f"<li>{escape(note)}</li>\n" for note in evaluation.notes)
        parts.append(f"<h2>Notes</h2>\n<ul>\n{items}</ul>")
    write_page(path, "Evaluation: " + ", ".join(one.name for one in evaluation.evidence), parts)


def _table(frame: pd.DataFrame) -> str:
    return table_html(frame.to_dict("records"))


def _summary(evaluation: Evaluation) -> str:
    table, metric = evaluation.truth.table, evaluation.metrics[0]
    scored, shown = len(evaluation.evidence[0].rows), len(evaluation.shown)
    return summary_html(
        {
            "ground truth": f"{table.path}: {scored:,} scored, {shown:,} only shown",
            "metric": f"{metric.name}, {'greater' if metric.greater_is_better else 'lower'} is better",
            "predictions": ", ".join(str(one.predictions.folder) for one in evaluation.evidence),
            "intervals": f"95 %, {evaluation.resamples:,} bootstrap draws of {evaluation.groups:,} {evaluation.drawn}",
        }
    )


def _classes(evaluation: Evaluation, name: str, classes: ClassEvidence) -> list[str]:
    """Scores and confusion of the classes, and the calibration of every prediction."""
    parts = [f"<h2>Classes: {escape(name)}</h2>", _table(class_table(classes, evaluation.truth))]
    if classes.confusion is not None:
        figure = confusion(classes.confusion, evaluation.truth.table.classes)
        parts.append(figure_html(f"Confusion matrix: {name}", figure))
    curves, task = {}, evaluation.truth.task
    for one in evaluation.evidence:
        assert one.classes is not None
        sums = one.classes.reliability
        curves[f"{one.name} (ECE {expected_calibration_error(sums):.4f})"] = (*reliability_curve(sums), sums[0])
    about = "every pixel and class" if task.kind == "maps" else "every label"
    if task.exclusive:
        about = "every pixel's predicted class" if task.kind == "maps" else "the predicted class"
    caption = f"Reliability of the probability of {about}; ECE is the expected calibration error"
    parts += ["<h2>Calibration</h2>", figure_html(caption, reliability(curves))]
    if classes.correct.all():
        parts.append(f"<p>{escape(name)}: no prediction is wrong.</p>")
    return parts


def _class_scores(evaluation: Evaluation) -> str:
    """The score of each class and prediction, if the metric has such."""
    metric, frame = evaluation.metrics[0], pd.DataFrame({"class": evaluation.truth.table.classes})
    if not hasattr(metric, "per_class"):
        return ""
    scores = {one.name: metric.per_class(*one.arrays[0]) for one in evaluation.evidence}
    return f"<h2>Classes: {escape(metric.name)}</h2>\n{_table(frame.assign(**scores))}"


def _galleries(evaluation: Evaluation, first: Evidence) -> list[tuple[str, "Figure"]]:
    """Captions and pictures of the worst, the most uncertain, and the shown images."""
    classes, truth = first.classes, evaluation.truth
    maps = truth.task.kind == "maps"
    all_rows = np.ones(len(first.rows), bool)
    if classes is None:
        chosen = {"Largest errors (look here for label errors)": (first.wrong, all_rows)}
    else:
        chosen = {
            "Most wrong (look here for label errors)": (first.wrong, ~classes.correct),
            "Most uncertain": (classes.unsure, all_rows),
        }
    apart = disagreement(evaluation.evidence) if first.boxes else None
    if apart is not None:
        what = "members" if len(evaluation.evidence) == 1 else "predictions"
        chosen[f"Largest disagreement of the {what}"] = (apart, all_rows)
    rows_of = {}
    for caption, (values, among) in chosen.items():
        order = np.argsort(-values, kind="stable")
        rows_of[caption] = first.rows[order[among[order]][: OVERLAYS if maps else PICTURES]]
    rows_of["Shown and not scored"] = evaluation.shown
    figures: list[tuple[str, Figure]] = []
    for caption, rows in rows_of.items():
        title = f"{caption}: {first.name}"
        if maps:
            chosen_rows, ignore_index = rows[: SHOWN // 4].tolist(), truth.metric.ignore_index
            figures += compare_masks(title, truth.items, truth.table, chosen_rows, first.predictions, ignore_index)
        elif first.boxes and len(rows):
            boxes = gather_boxes(first.predictions, truth, rows[:SHOWN])
            figure = compare_boxes(truth.items, truth.table, rows[:SHOWN].tolist(), boxes)
            figures.append((f"{title}: found boxes, over those of the ground truth (thick, white)", figure))
        elif len(rows):
            assert first.average is not None
            chosen_rows = rows[:SHOWN].tolist()
            values = first.average.loc[[truth.table.ids[row] for row in chosen_rows]].to_numpy()
            more = f" (the first {SHOWN} of {len(rows)})" if len(rows) > SHOWN else ""
            figure = compare_values(truth.items, truth.table, chosen_rows, values, truth.task)
            figures.append((f"{title}: ground truth → predicted{more}", figure))
    return figures
