"""The report of an evaluation: scores and differences with intervals, where the errors are, and pictures of them."""

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from competition.data.images import read_image, read_mask, resize
from competition.files import write_text
from competition.predictions.evaluation.evaluate import TWO_FILES, Evaluation
from competition.predictions.evaluation.evidence import Evidence
from competition.predictions.evaluation.reliability import expected_calibration_error, reliability_curve
from competition.predictions.store import iter_average_maps
from competition.reporting.figures import confusion, gallery, intervals, overlay, reliability, to_png
from competition.reporting.report import PAGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 24  # of a gallery
OVERLAYS = 4  # segmentation: images of a gallery, each with answer and truth
SHOWN = 48  # pictures of the visual subset; segmentation: a quarter of it
LONGEST = 320  # pixels of a thumbnail


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write the report as one HTML file that loads nothing.

    Raises:
        ValueError: a picture cannot be read.
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
        parts += [_heading(f"By {column}"), _picture(f"{metric} by {column}", intervals(own, metric))]
        parts.append(_table(rows.drop(columns="column")))
    parts += [_heading(f"Classes: {first.name}"), _table(class_table(first, evaluation.truth.table.classes))]
    if first.confusion is not None:
        figure = confusion(first.confusion, evaluation.truth.table.classes)
        parts.append(_picture(f"Confusion matrix: {first.name}", figure))
    parts += ["<h2>Calibration</h2>", _calibration(evaluation)]
    shown = _galleries(evaluation, first)
    parts += [_picture(caption, figure) for caption, figure in shown]
    if evaluation.notes:
        items = "".join(f"<li>{html.escape(note)}</li>\n" for note in evaluation.notes)
        parts.append(f"<h2>Notes</h2>\n<ul>\n{items}</ul>")
    title = "Evaluation: " + ", ".join(one.name for one in evaluation.evidence)
    write_text(path, PAGE.substitute(title=html.escape(title), body="\n".join(parts)))


def class_table(evidence: Evidence, classes: tuple[str, ...]) -> pd.DataFrame:
    """Precision, recall and F1 of each class; what it counts are units, or pixels. NaN where it does not exist."""
    right, answered, true = evidence.counts.T.astype(np.float64)

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)

    return pd.DataFrame(
        {
            "class": classes,
            "true": true.astype(np.int64),
            "answered": answered.astype(np.int64),
            "right": right.astype(np.int64),
            "precision": ratio(right, answered),
            "recall": ratio(right, true),
            "F1": ratio(2 * right, answered + true),
        }
    )


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


def _calibration(evaluation: Evaluation) -> str:
    curves = {}
    for one in evaluation.evidence:
        error = expected_calibration_error(one.reliability)
        curves[f"{one.name} (ECE {error:.4f})"] = (*reliability_curve(one.reliability), one.reliability[0])
    about = {
        "multiclass": "the probability of the answered class",
        "multilabel": "the probability of every label",
        "segmentation": "the probability of every pixel's answered class",
    }
    caption = f"Reliability of {about[evaluation.truth.task]}; ECE is the expected calibration error"
    return _picture(caption, reliability(curves))


def _galleries(evaluation: Evaluation, first: Evidence) -> list[tuple[str, "Figure"]]:
    chosen = {
        "Most wrong (look here for label errors)": _largest(first, first.wrong),
        "Most uncertain": _largest(first, first.unsure),
        "Shown and not scored": evaluation.shown,
    }
    draw = _overlays if first.average is None else _thumbnails
    figures = []
    for caption, rows in chosen.items():
        if len(rows):
            figures += draw(evaluation, first, f"{caption}: {first.name}", rows)
    return figures


def _largest(evidence: Evidence, values: np.ndarray) -> np.ndarray:
    return evidence.rows[np.argsort(-values, kind="stable")[: OVERLAYS if evidence.average is None else PICTURES]]


def _thumbnails(
    evaluation: Evaluation, evidence: Evidence, caption: str, rows: np.ndarray
) -> list[tuple[str, "Figure"]]:
    table = evaluation.truth.table
    assert table.target is not None and evidence.average is not None
    images, titles = [], []
    for row in rows[:SHOWN]:
        image = read_image(table.image_path(row))
        shrink = LONGEST / max(image.shape[:2])
        images.append(image if shrink >= 1 else resize(image, [max(1, round(s * shrink)) for s in image.shape[:2]]))
        answer = evidence.average.loc[table.ids[row]].to_numpy()
        titles.append(f"{table.ids[row]}\n{_labels(table, table.target[row])}\n→ {_labels(table, answer)}")
    more = f" (the first {SHOWN} of {len(rows)})" if len(rows) > SHOWN else ""
    return [(f"{caption}: truth → answer{more}", gallery(images, titles))]


def _labels(table: Any, values: np.ndarray) -> str:
    """The labels from 0.5 on, or the largest class with its probability."""
    if table.task == "multilabel":
        return " ".join(name for name, value in zip(table.classes, values, strict=True) if value >= 0.5) or "(none)"
    best = int(values.argmax())
    return table.classes[best] if values[best] == 1 else f"{table.classes[best]} {values[best]:.2f}"


def _overlays(evaluation: Evaluation, evidence: Evidence, caption: str, rows: np.ndarray) -> list[tuple[str, "Figure"]]:
    table, figures = evaluation.truth.table, []
    rows = rows[: SHOWN // 4]
    maps = iter_average_maps(evidence.predictions, [table.ids[row] for row in rows])
    for row, (id, probability) in zip(rows, maps, strict=True):
        image, mask = read_image(table.image_path(row)), read_mask(table.mask_path(row))
        for what, painted in (("answer", probability.argmax(0)), ("truth", np.where(mask < len(probability), mask, 0))):
            figures.append((f"{caption}: {id}, {what}", overlay(image, painted, table.classes)))
    return figures


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def _table(frame: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", None):
        return frame.to_html(index=False, border=0, na_rep="—", float_format="{:.4f}".format, justify="left")


def _picture(caption: str, figure: "Figure") -> str:
    data, name = base64.b64encode(to_png(figure)).decode(), html.escape(caption)
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'
