"""Charts of reports, each a function that gives a matplotlib Figure; they work without a screen.

Nothing fails for having nothing to show, or too much of it: of many classes, those that matter are shown.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 40  # more rows and columns cannot be read
MOST_NUMBERS = 15  # a larger confusion matrix has colours only
LINE_COLORS = 10  # of matplotlib's cycle
DPI = 100  # pixels an inch, which sizes are given in


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG, the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once, where savefig lays out and draws a second time
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3]).save(buffer, format="png")
    return buffer.getvalue()


def new_figure(width: float, height: float, dpi: float = DPI) -> "Figure":
    """An empty figure of so many inches, which lays itself out and needs no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def nothing_to_show(text: str) -> "Figure":
    """A figure that says why it is empty."""
    figure = new_figure(4, 1)
    figure.text(0.5, 0.5, text, ha="center", va="center", color="0.4")
    return figure


def shorten(text: str, most: int = 24) -> str:
    """A label of at most so many characters."""
    text = text.replace("$", r"\$")  # which matplotlib takes for mathematics
    return text if len(text) <= most else text[: most - 1] + "…"


def learning_curves(history: Mapping[int, pd.DataFrame], metric: str = "score") -> "Figure":
    """Losses, the metric and the learning rate over the epochs, a colour a fold.

    Args:
        history: of each fold: columns epoch, lr, train_loss, val_loss, score; NaN where nothing was measured.
    """
    history = {fold: frame for fold, frame in sorted(history.items()) if len(frame)}
    if not history:
        return nothing_to_show("no epochs yet")
    figure = new_figure(12, 3.4)
    losses, scores, rates = figure.subplots(1, 3)
    for fold, frame in history.items():
        color = f"C{fold % LINE_COLORS}"
        _line(losses, frame, "train_loss", color=color, linestyle="--", linewidth=1)
        _line(losses, frame, "val_loss", color=color)
        _line(scores, frame, "score", color=color, label=f"fold {fold}")
        _line(rates, frame, "lr", color=color)
    losses.set_title("loss: training dashed, validation solid")
    scores.set_title(f"{metric} (validation, no TTA)")
    rates.set_title("learning rate")
    scores.legend(fontsize=8, ncols=1 + len(history) // 8)
    for axis in (losses, scores, rates):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> "Figure":
    """A confusion matrix (C, C) of (true, answered) counts, coloured by the share of the true class.

    Of more than 40 classes, the 40 with the most errors.
    """
    if not matrix.size or not matrix.sum():
        return nothing_to_show("no answers yet")
    names, title = list(classes), ""
    if len(names) > MOST_CLASSES:
        errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
        chosen = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
        title = f"the {MOST_CLASSES} of {len(names)} classes with the most errors"
        shares = _shares(matrix)[np.ix_(chosen, chosen)]
        matrix, names = matrix[np.ix_(chosen, chosen)], [names[index] for index in chosen]
    else:
        shares = _shares(matrix)
    side = min(12.0, 2.5 + 0.45 * len(names))
    figure = new_figure(side + 0.8, side)
    axis = figure.subplots()
    picture = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(names) <= MOST_NUMBERS:
        for row, column in np.ndindex(*matrix.shape):
            if matrix[row, column]:
                color = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(names)), [shorten(name) for name in names], rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), [shorten(name) for name in names], fontsize=8)
    axis.set(xlabel="answered", ylabel="true", title=title)
    figure.colorbar(picture, ax=axis, label="share of the true class", shrink=0.8)
    return figure


def per_class(
    values: np.ndarray,
    classes: Sequence[str],
    name: str,
    support: np.ndarray | None = None,
    greater_is_better: bool = True,
) -> "Figure":
    """A bar a class, the worst on top; of more than 40 classes, the 40 worst. NaN has no bar and says so.

    Args:
        values: (C,) scores.
        support: (C,) how often each class occurs.
    """
    values = np.asarray(values, float)
    if not len(values):
        return nothing_to_show("no classes")
    worst = np.where(np.isnan(values), np.inf, values if greater_is_better else -values)
    order = np.argsort(worst, kind="stable")[:MOST_CLASSES]
    shown = values[order]
    figure = new_figure(8, 1.2 + 0.24 * len(order))
    axis = figure.subplots()
    axis.barh(range(len(order)), np.nan_to_num(shown), color="C0", height=0.7)
    for place, value in enumerate(shown):
        text = " does not occur" if math.isnan(value) else f" {value:.3f}"
        axis.text(max(0.0, float(np.nan_to_num(value))), place, text, va="center", fontsize=8)
    counts = [""] * len(values) if support is None else [f"  ({int(count):,})" for count in support]
    axis.set_yticks(range(len(order)), [shorten(classes[index]) + counts[index] for index in order], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.5 / len(order))
    left_out = f": the {MOST_CLASSES} worst of {len(values)} classes" if len(values) > MOST_CLASSES else ""
    axis.set_title(name + left_out)
    return figure


def reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "Figure":
    """A reliability diagram: how often answers are right against how sure they are, and below it how many there are.

    Args:
        curves: by name, of each bin of confidence: mean confidence, share of right answers, count; NaN has no dot.
    """
    figure = new_figure(6, 6.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for place, (name, (confidence, right, count)) in enumerate(curves.items()):
        color = f"C{place % LINE_COLORS}"
        there = np.isfinite(confidence)
        upper.plot(confidence[there], right[there], marker="o", markersize=4, color=color, label=shorten(name, 40))
        lower.plot(confidence[there], count[there] / count.sum(), marker="o", markersize=4, color=color)
    upper.set(
        ylabel="share that is right",
        xlim=(0, 1),
        ylim=(0, 1),
        title="above the dashed line: right more often than said",
    )
    upper.legend(fontsize=8)
    lower.set(xlabel="probability", ylabel="share of answers", yscale="log")
    return figure


def intervals(frame: pd.DataFrame, name: str) -> "Figure":
    """A dot and its interval for each row, a colour a prediction.

    Args:
        frame: columns label, prediction, score, low, high; rows of one label stand together. NaN has no interval.
    """
    labels, predictions = list(dict.fromkeys(frame["label"])), list(dict.fromkeys(frame["prediction"]))
    figure = new_figure(8, 1.2 + 0.16 * len(labels) * (1 + len(predictions)))
    axis = figure.subplots()
    for number, prediction in enumerate(predictions):
        rows = frame[frame["prediction"] == prediction]
        place = [labels.index(label) + (number + 0.5) / len(predictions) * 0.8 - 0.4 for label in rows["label"]]
        color = f"C{number % LINE_COLORS}"
        axis.plot(rows["score"], place, "o", markersize=4, color=color, label=shorten(prediction, 40))
        axis.hlines(place, rows["low"], rows["high"], color=color)
    axis.set_yticks(range(len(labels)), [shorten(label, 40) for label in labels], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(name)
    axis.legend(fontsize=8)
    return figure


def _line(axis: Any, frame: pd.DataFrame, column: str, **style: Any) -> None:
    """A line over the epochs in which the column was measured, with a dot where there is but one."""
    if column not in frame:
        return
    measured = frame[["epoch", column]].dropna()
    axis.plot(measured["epoch"], measured[column], marker="o" if len(measured) < 2 else None, **style)


def _shares(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
