"""Console output and report of an ensemble: scores, gains, weights, correlations and the verdict."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from foldwise.predictions.ensembles.comparing import STRICT, Comparison
from foldwise.reporting.console import format_score, make_table
from foldwise.reporting.figures import bars, color_of, heat_map, new_figure, shorten
from foldwise.reporting.report import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def print_ensemble(comparison: Comparison) -> None:
    """Print sources, methods, the verdict, and how to read the scores."""
    console, metric = Console(), comparison.metric.name
    better = "greater" if comparison.metric.greater_is_better else "lower"
    sources = make_table(f"sources, out of fold; {better} is better", ["source"], [metric, "fold spread"])
    for row in _source_rows(comparison):
        sources.add_row(row["name"], format_score(row[metric]), format_score(row["fold spread"]))
    title = "methods, cross-fitted; gains are mean ± standard error over the folds"
    methods = make_table(title, ["method"], [metric, "over single", "over mean"], no_wrap=True)
    for number, row in enumerate(_method_rows(comparison)):
        style = "bold" if number == comparison.chosen else None
        methods.add_row(row["name"], format_score(row[metric]), row["over single"], row["over mean"], style=style)
    console.print(sources)
    console.print(methods)
    console.print(f"[bold]{comparison.verdict}[/bold]")
    console.print(comparison.scores_are, style="dim")
    if comparison.strict is not None:
        console.print(_strict_line(comparison))
        console.print(STRICT, style="dim")


def report_ensemble(path: Path, title: str, comparison: Comparison) -> None:
    """Write `report.html`."""
    metric = comparison.metric.name
    chosen = comparison.titles[comparison.chosen]
    summary = {
        "verdict": comparison.verdict,
        "written": f"{chosen} (as requested)"
        if comparison.forced
        else f"{chosen}, the simplest within one standard error of the best",
        "metric": f"{metric}, {'greater' if comparison.metric.greater_is_better else 'lower'} is better",
        "what the scores are": comparison.scores_are,
    }
    if comparison.strict is not None:
        summary |= {"strict": _strict_line(comparison), "what it is": STRICT}
    scores = [
        {"": number, "kind": kind, **row}
        for kind, rows in (("source", _source_rows(comparison)), ("method", _method_rows(comparison)))
        for number, row in enumerate(rows, 1)
    ]
    figures: list[tuple[str, Figure | bytes]] = [
        ("Gain of each method, mean and standard error over the folds", _gains(comparison)),
        ("Correlation of the sources' errors: the lower, the more a blend can gain", _correlations(comparison)),
    ]
    weights = comparison.weights[comparison.chosen]
    if weights is not None:
        figures.append(("Weights, mean and range over the folds", _weights(weights, comparison.sources)))
    write_report(path, title, summary, scores, {}, figures, metric=metric)


def _source_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return _rows(comparison, comparison.sources, comparison.source_scores, comparison.source_overall)


def _method_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = _rows(comparison, comparison.titles, comparison.scores, comparison.overall)
    for number, row in enumerate(rows):
        for over in ("single", "mean"):
            mean, error = comparison.gain(number, over)
            row[f"over {over}"] = "" if comparison.names[number] == over else f"{mean:+.4f} ± {error:.4f}"
    return rows


def _strict_line(comparison: Comparison) -> str:
    assert comparison.strict is not None
    strict = comparison.strict
    counts = {name: strict.chosen.count(name) for name in comparison.names if name in strict.chosen}
    chosen = ", ".join(f"{name} {count} times" for name, count in counts.items())
    score = f"{comparison.metric.name} {format_score(strict.overall)}"
    return f"strict {score}; chosen on the other folds: {chosen}"


def _rows(comparison: Comparison, names: list[str], scores: np.ndarray, overall: np.ndarray) -> list[dict[str, Any]]:
    metric = comparison.metric.name
    return [
        {"name": name, metric: float(total), "fold spread": float(np.std(per_fold))}
        for name, per_fold, total in zip(names, scores, overall, strict=True)
    ]


def _gains(comparison: Comparison) -> "Figure":
    """Draw each method's gain over the best single source and over the plain mean, with standard errors."""
    names = comparison.titles
    figure = new_figure(9, 1.4 + 0.35 * len(names))
    titles = {"single": "best single source", "mean": "arithmetic mean"}
    for axis, (over, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        gain, error = np.array([comparison.gain(number, over) for number in range(len(names))]).T
        colors = [color_of(int(number == comparison.chosen)) for number in range(len(names))]
        bars(axis, gain, names, xerr=np.where(np.isfinite(error), error, 0), color=colors)
        axis.axvline(0, color="0.3", linewidth=1)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(f"over the {title}", fontsize=9)
    return figure


def _correlations(comparison: Comparison) -> "Figure":
    values = comparison.correlation
    texts = np.array([[f"{value:.2f}" for value in row] for row in values])
    return heat_map(values, [_tail(name) for name in comparison.sources], texts, "viridis", min(0.0, values.min()))


def _weights(weights: np.ndarray, names: list[str]) -> "Figure":
    """Draw one bar per source, largest on top: mean and range over the folds of its weights (K, M)."""
    mean = weights.mean(axis=0)
    order = np.argsort(-mean, kind="stable")
    figure = new_figure(8, 1.2 + 0.24 * len(order))
    axis = figure.subplots()
    spread = np.stack([mean - weights.min(axis=0), weights.max(axis=0) - mean])[:, order]
    bars(axis, mean[order], [_tail(names[index]) for index in order], xerr=spread.clip(min=0), color=color_of(0))
    axis.set_xlim(left=0)
    return figure


def _tail(name: str) -> str:
    return shorten(name if len(name) <= 24 else f"…{name[-23:]}")
