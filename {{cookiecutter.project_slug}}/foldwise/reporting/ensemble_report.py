"""What came out of comparing ways of putting members together: printed, and as report.html."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foldwise.predictions.ensembles.comparing import STRICT, Comparison
from foldwise.reporting.report import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERS = 15  # a larger picture of correlations has colours only


def print_ensemble(comparison: Comparison) -> None:
    """Members, methods, the verdict, and what the scores are and are not."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    metric = type(comparison.metric).__name__
    better = "greater" if comparison.metric.greater_is_better else "lower"
    members = Table(title=f"sources, out of fold; {better} is better", title_justify="left")
    methods = Table(title="methods, cross-fitted; gains are mean ± standard error over the folds", title_justify="left")
    for name in ("source", metric, "fold spread"):
        members.add_column(name, justify="left" if name == "source" else "right")
    for name in ("method", metric, "over single", "over mean"):
        methods.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in _member_rows(comparison):
        members.add_row(row["name"], _number(row[metric]), _number(row["fold spread"]))
    for number, row in enumerate(_method_rows(comparison)):
        style = "bold" if number == comparison.chosen else None
        methods.add_row(row["name"], _number(row[metric]), row["over single"], row["over mean"], style=style)
    console.print(members)
    console.print(methods)
    console.print(f"[bold]{comparison.verdict}[/bold]")
    console.print(comparison.scores_are, style="dim")
    if comparison.strict is not None:
        console.print(_strict_line(comparison))
        console.print(STRICT, style="dim")


def report_ensemble(path: Path, title: str, comparison: Comparison) -> None:
    """Write `report.html`: scores of members and methods, gains, weights, correlations, and the verdict."""
    metric = type(comparison.metric).__name__
    better = "greater" if comparison.metric.greater_is_better else "lower"
    summary = {
        "verdict": comparison.verdict,
        "written": f"{comparison.titles[comparison.chosen]}"
        + (" (as asked for)" if comparison.forced else ", the simplest within one standard error of the best"),
        "metric": f"{metric}, {better} is better",
        "what the scores are": comparison.scores_are,
    }
    if comparison.strict is not None:
        summary |= {"strict": _strict_line(comparison), "what it is": STRICT}
    scores: list[dict[str, Any]] = []
    for kind, rows in (("source", _member_rows(comparison)), ("method", _method_rows(comparison))):
        scores += [{"": number, "kind": kind, **row} for number, row in enumerate(rows, 1)]
    figures: list[tuple[str, Figure | bytes]] = [
        ("Gain of each method, mean and standard error over the folds", gains(comparison)),
        ("Correlation of the sources' errors: the lower, the more a blend can gain", correlations(comparison)),
    ]
    weights = comparison.weights[comparison.chosen]
    if weights is not None:
        figures.append(("Weights, mean and range over the folds", weight_bars(weights, comparison.members)))
    write_report(path, title, summary, scores, {}, figures, metric=metric)


def gains(comparison: Comparison) -> "Figure":
    """For each method its gain over the best single source and over the plain mean, with standard errors."""
    names = comparison.titles
    figure = _figure(9, 1.4 + 0.35 * len(names))
    for axis, over, title in zip(
        figure.subplots(1, 2, sharey=True), ("single", "mean"), ("best single source", "arithmetic mean"), strict=True
    ):
        pairs = np.array([comparison.gain(number, over) for number in range(len(names))])
        colors = ["C1" if number == comparison.chosen else "C0" for number in range(len(names))]
        errors = np.where(np.isfinite(pairs[:, 1]), pairs[:, 1], 0)
        axis.barh(range(len(names)), np.nan_to_num(pairs[:, 0]), xerr=errors, color=colors, height=0.7)
        axis.axvline(0, color="0.3", linewidth=1)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(f"over the {title}", fontsize=9)
    axis.invert_yaxis()
    return figure


def correlations(comparison: Comparison) -> "Figure":
    """The (M, M) correlations of the members' errors in colours, with numbers where they can be read."""
    values, names = comparison.correlation, [_short(name) for name in comparison.members]
    side = min(12.0, 2.5 + 0.45 * len(names))
    figure = _figure(side + 0.8, side)
    axis = figure.subplots()
    lowest = min(0.0, float(values.min()))
    picture = axis.imshow(values, vmin=lowest, vmax=1, cmap="viridis")
    if len(names) <= MOST_NUMBERS:
        for row, column in np.ndindex(*values.shape):
            color = "black" if values[row, column] > 0.6 else "white"
            axis.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(picture, ax=axis, shrink=0.8)
    return figure


def weight_bars(weights: np.ndarray, members: list[str]) -> "Figure":
    """A bar a member, the largest on top: its weight (K, M), mean and range over the folds."""
    mean = weights.mean(axis=0)
    order = np.argsort(-mean, kind="stable")
    figure = _figure(8, 1.2 + 0.24 * len(order))
    axis = figure.subplots()
    spread = np.stack([mean - weights.min(axis=0), weights.max(axis=0) - mean])[:, order]
    axis.barh(range(len(order)), mean[order], xerr=spread.clip(min=0), color="C0", height=0.7)
    axis.set_yticks(range(len(order)), [_short(members[index]) for index in order], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    return figure


def _member_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return _rows(comparison, comparison.members, comparison.member_scores, comparison.member_overall)


def _method_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = _rows(comparison, comparison.titles, comparison.scores, comparison.overall)
    for number, row in enumerate(rows):
        for name, over in (("over single", "single"), ("over mean", "mean")):
            itself = comparison.names[number] == over
            mean, error = comparison.gain(number, over)
            row[name] = "" if itself else f"{mean:+.4f} ± {error:.4f}"
    return rows


def _rows(comparison: Comparison, names: list[str], scores: np.ndarray, overall: np.ndarray) -> list[dict[str, Any]]:
    metric = type(comparison.metric).__name__
    return [
        {"name": name, metric: float(total), "fold spread": float(np.std(per_fold))}
        for name, per_fold, total in zip(names, scores, overall, strict=True)
    ]


def _strict_line(comparison: Comparison) -> str:
    assert comparison.strict is not None
    strict, metric = comparison.strict, type(comparison.metric).__name__
    counts = {name: strict.chosen.count(name) for name in comparison.names if name in strict.chosen}
    chosen = ", ".join(f"{name} {count} times" for name, count in counts.items())
    return f"strict {metric} {_number(strict.overall)}; chosen on the other folds: {chosen}"


def _number(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.4f}"


def _short(name: str) -> str:
    name = name.replace("$", r"\$")  # which matplotlib takes for mathematics
    return name if len(name) <= 32 else "…" + name[-31:]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
