"""Charts of reports as matplotlib figures, drawn without a screen.

They accept empty data; with too many classes, they show the ones that matter most.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 40  # more are unreadable
MOST_NUMBERS = 15  # larger matrices have colours only
MOST_PLOTS, MOST_POINTS = 6, 5000
DPI = 100


def to_png(figure: "Figure") -> bytes:
    """Render a figure as PNG; equal figures give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # savefig would lay out and draw twice
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3]).save(buffer, format="png")
    return buffer.getvalue()


def new_figure(width: float, height: float, dpi: float = DPI) -> "Figure":
    """Make an empty figure with automatic layout; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def nothing_to_show(text: str) -> "Figure":
    """Make a figure that says why it is empty."""
    figure = new_figure(4, 1)
    figure.text(0.5, 0.5, text, ha="center", va="center", color="0.4")
    return figure


def shorten(text: str, most: int = 24) -> str:
    """Shorten a label to `most` characters."""
    text = text.replace("$", r"\$")  # matplotlib would read it as mathematics
    return text if len(text) <= most else text[: most - 1] + "…"


def color_of(number: int) -> np.ndarray:
    """Return an RGB colour (3,) in [0, 1]: one of matplotlib's ten, then hues in golden-ratio steps."""
    from matplotlib.colors import hsv_to_rgb, to_rgb

    if number < 10:
        return np.array(to_rgb(f"C{number}"))
    return np.asarray(hsv_to_rgb((0.618034 * number % 1, 0.5 + 0.5 * (number % 2), 0.95)))


def learning_curves(history: Mapping[int, pd.DataFrame], metric: str = "score") -> "Figure":
    """Plot losses, metric and learning rate over the epochs, one colour per fold.

    Args:
        history: by fold, columns epoch, lr, train_loss, val_loss, score; NaN if not measured.
    """
    history = {fold: frame for fold, frame in sorted(history.items()) if len(frame)}
    if not history:
        return nothing_to_show("no epochs yet")
    figure = new_figure(12, 3.4)
    losses, scores, rates = figure.subplots(1, 3)
    for fold, frame in history.items():
        color = color_of(fold)
        _line(losses, frame, "train_loss", color=color, linestyle="--", linewidth=1)
        _line(losses, frame, "val_loss", color=color)
        _line(scores, frame, "score", color=color, label=f"fold {fold}")
        _line(rates, frame, "lr", color=color)
    losses.set_title("loss: training dashed, validation solid")
    scores.set_title(f"{metric} (validation, no TTA)")
    rates.set_title("learning rate at the end of an epoch")
    scores.legend(fontsize=8, ncols=1 + len(history) // 8)
    for axis in (losses, scores, rates):
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> "Figure":
    """Draw a confusion matrix (C, C) of (true, predicted) counts; at most the 40 classes with the most errors."""
    if not matrix.size or not matrix.sum():
        return nothing_to_show("no predictions yet")
    shares, names, title = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), list(classes), ""
    if len(names) > MOST_CLASSES:
        errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
        chosen = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
        title = f"the {MOST_CLASSES} of {len(names)} classes with the most errors"
        shares, matrix = shares[np.ix_(chosen, chosen)], matrix[np.ix_(chosen, chosen)]
        names = [names[index] for index in chosen]
    texts = np.where(matrix > 0, matrix.astype(str), "")
    figure = heat_map(shares, names, texts, cmap="Blues", vmin=0, label="share of the true class")
    figure.axes[0].set(xlabel="predicted", ylabel="true", title=title)
    return figure


def heat_map(
    values: np.ndarray, names: Sequence[str], texts: np.ndarray, cmap: str, vmin: float, label: str = ""
) -> "Figure":
    """Draw a matrix (N, N) of values up to 1, with texts (N, N) if it is small enough to read them."""
    side = min(12.0, 2.5 + 0.45 * len(names))
    figure = new_figure(side + 0.8, side)
    axis = figure.subplots()
    picture = axis.imshow(values, vmin=vmin, vmax=1, cmap=cmap)
    if len(names) <= MOST_NUMBERS:
        for row, column in np.ndindex(*values.shape):
            dark = picture.cmap(picture.norm(values[row, column]))[1] < 0.5  # green dominates brightness
            color = "white" if dark else "black"
            axis.text(column, row, str(texts[row, column]), ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(names)), [shorten(name) for name in names], rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), [shorten(name) for name in names], fontsize=8)
    figure.colorbar(picture, ax=axis, label=label, shrink=0.8)
    return figure


def bars(axis: Any, values: np.ndarray, names: Sequence[str], **style: Any) -> None:
    """Draw horizontal bars (N,), the first on top."""
    axis.barh(range(len(values)), np.nan_to_num(values), height=0.7, **style)
    axis.set_yticks(range(len(values)), names, fontsize=8)
    axis.set_ylim(len(values) - 0.5, -0.5)


def numbers(target: np.ndarray, values: np.ndarray, columns: Sequence[str]) -> "Figure":
    """Plot predicted over true numbers (N, C) of each column, and below them the residuals; the first 6 columns."""
    columns = columns[:MOST_PLOTS]
    figure = new_figure(max(4, 3.2 * len(columns)), 6)
    axes = figure.subplots(2, len(columns), squeeze=False)
    chosen = np.random.default_rng(0).permutation(len(target))[:MOST_POINTS]
    for (upper, lower), name, true, predicted in zip(axes.T, columns, target[chosen].T, values[chosen].T, strict=False):
        known = np.isfinite(true)
        true, predicted = true[known], predicted[known]
        style: Any = {"s": 6, "alpha": 0.5, "linewidths": 0, "color": color_of(0)}
        upper.scatter(true, predicted, **style)
        lower.scatter(predicted, true - predicted, **style)
        if len(true):
            ends = [true.min(), true.max()]
            upper.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
        lower.axhline(0, color="0.6", linestyle="--", linewidth=1)
        upper.set(title=shorten(name), xlabel="true", ylabel="predicted")
        lower.set(xlabel="predicted", ylabel="residual (true - predicted)")
    return figure


def per_class(
    values: np.ndarray,
    classes: Sequence[str],
    name: str,
    support: np.ndarray,
    greater_is_better: bool = True,
) -> "Figure":
    """Draw one bar per class of scores (C,) with its support (C,), worst on top; at most the 40 worst."""
    values = np.asarray(values, float)
    if not len(values):
        return nothing_to_show("no classes")
    worst = np.where(np.isnan(values), np.inf, values if greater_is_better else -values)
    order = np.argsort(worst, kind="stable")[:MOST_CLASSES]
    figure = new_figure(8, 1.2 + 0.24 * len(order))
    axis = figure.subplots()
    names = [f"{shorten(classes[index])}  ({int(support[index]):,})" for index in order]
    bars(axis, values[order], names, color=color_of(0))
    for row, value in enumerate(values[order]):
        text = " does not occur" if math.isnan(value) else f" {value:.3f}"
        axis.text(max(0.0, float(np.nan_to_num(value))), row, text, va="center", fontsize=8)
    axis.margins(x=0.12)
    left_out = f": the {MOST_CLASSES} worst of {len(values)} classes" if len(values) > MOST_CLASSES else ""
    axis.set_title(name + left_out)
    return figure


def reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "Figure":
    """Draw a reliability diagram: accuracy over confidence, and below it a histogram of confidence.

    Args:
        curves: by name, arrays over bins: mean confidence, accuracy, count; NaN has no dot.
    """
    figure = new_figure(6, 6.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for number, (name, (confidence, correct, count)) in enumerate(curves.items()):
        style: Any = {"marker": "o", "markersize": 4, "color": color_of(number)}
        filled = np.isfinite(confidence)
        upper.plot(confidence[filled], correct[filled], label=shorten(name, 40), **style)
        lower.plot(confidence[filled], count[filled] / count.sum(), **style)
    title = "above the dashed line: correct more often than predicted"
    upper.set(ylabel="share that is correct", xlim=(0, 1), ylim=(0, 1), title=title)
    upper.legend(fontsize=8)
    lower.set(xlabel="probability", ylabel="share of predictions", yscale="log")
    lower.tick_params(axis="y", which="minor", labelleft=False)
    return figure


def intervals(frame: pd.DataFrame, name: str) -> "Figure":
    """Draw a dot and an interval per row, one colour per prediction, grouped by label.

    Args:
        frame: columns label, prediction, score, low, high; NaN has no interval.
    """
    labels, predictions = list(dict.fromkeys(frame["label"])), list(dict.fromkeys(frame["prediction"]))
    figure = new_figure(8, 1.2 + 0.16 * len(labels) * (1 + len(predictions)))
    axis = figure.subplots()
    for number, prediction in enumerate(predictions):
        rows, color = frame[frame["prediction"] == prediction], color_of(number)
        height = [labels.index(label) + (number + 0.5) / len(predictions) * 0.8 - 0.4 for label in rows["label"]]
        axis.plot(rows["score"], height, "o", markersize=4, color=color, label=shorten(prediction, 40))
        axis.hlines(height, rows["low"], rows["high"], color=color)
    axis.set_yticks(range(len(labels)), [shorten(label, 40) for label in labels], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(name)
    axis.legend(fontsize=8)
    return figure


def rounds(frame: pd.DataFrame) -> "Figure":
    """Plot the score of each round (`predictions.evaluation.rounds`), and its difference from the one before."""
    figure = new_figure(max(6, 2 + 1.1 * len(frame)), 6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(frame))
    for axis, name, low, high in (
        (upper, "score", "low", "high"),
        (lower, "difference", "difference_low", "difference_high"),
    ):
        axis.plot(places, frame[name], "o-" if axis is upper else "o", color=color_of(0))
        axis.vlines(places, frame[low].astype(float), frame[high].astype(float), color=color_of(0))
        axis.grid(axis="y", alpha=0.3)
    first = frame.iloc[0]
    upper.set(ylabel=first["metric"], title=f"{first['images']:,} images, {first['scored_on']}; 95 % intervals")
    lower.axhline(0, color="0.6", linestyle="--", linewidth=1)
    lower.set(ylabel="difference from the round before")
    names = [
        f"{number}\n{shorten(Path(row.table).stem, 14)}\n{row.rows} rows"
        for number, row in enumerate(frame.itertuples())
    ]
    lower.set_xticks(places, names, fontsize=8)
    return figure


def _line(axis: Any, frame: pd.DataFrame, column: str, **style: Any) -> None:
    """Plot a column over the epochs in which it was measured; a single epoch gets a dot."""
    if column in frame:
        measured = frame[["epoch", column]].dropna()
        axis.plot(measured["epoch"], measured[column], marker="o" if len(measured) < 2 else None, **style)
