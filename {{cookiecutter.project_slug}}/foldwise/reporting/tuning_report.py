"""Report of a search for settings: the trials, the importance of each setting, and the scores over its values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console

from foldwise.files import write_csv
from foldwise.reporting.console import format_score, make_table
from foldwise.reporting.figures import bars, color_of, new_figure, nothing_to_show, shorten
from foldwise.reporting.report import figure_html, summary_html, table_html, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 10  # trials on the console
COLUMNS = 3  # plots side by side


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a search found.

    Attributes:
        trials: columns trial, state, score, epochs, seconds, one per setting, why (a trial was refused).
        params: settings of each trial.
        start: the experiment's own values.
        logarithmic: settings whose range is.
        curves: score by epoch of each trial.
        importances: of the settings, summing to 1; {} with too few trials.
        notes: what was not varied.
        settings: overrides that made the trials small.
    """

    folder: Path
    metric: str
    greater_is_better: bool
    trials: pd.DataFrame
    params: Mapping[int, Mapping[str, Any]]
    start: Mapping[str, Any]
    logarithmic: Sequence[str]
    curves: Mapping[int, Mapping[int, float]]
    importances: Mapping[str, float]
    notes: Sequence[str]
    settings: str

    @property
    def ranked(self) -> pd.DataFrame:
        """Complete trials, the best first; of equals, the earlier."""
        complete = self.trials[self.trials["state"] == "complete"]
        return complete.sort_values("score", ascending=not self.greater_is_better, kind="stable")

    @property
    def is_start_best(self) -> bool:
        """Whether no trial scored better than the experiment itself."""
        return self.best is None or self.params[self.best] == self.start

    @property
    def best(self) -> int | None:
        """Number of the best trial."""
        ranked = self.ranked
        return int(ranked["trial"].iloc[0]) if len(ranked) else None


def print_trial(tuned: Tuned, number: int) -> None:
    """Print a finished trial, and the best so far."""
    row = tuned.trials.set_index("trial").loc[number]
    values = " ".join(f"{name}={_short(value)}" for name, value in tuned.params[number].items())
    outcome = {
        "pruned": f"pruned after {row['epochs']} epochs",
        "refused": f"refused: {row['why'].partition(chr(10))[0]}",
    }
    best = "" if tuned.best is None else f"best {format_score(tuned.ranked['score'].iloc[0])} (trial {tuned.best})"
    print(f"trial {number:>3}  {outcome.get(row['state'], format_score(row['score']))}  {best}  {values}", flush=True)


def print_tuned(tuned: Tuned) -> None:
    """Print the best trials and the importances."""
    states = tuned.trials["state"].value_counts()
    title = f"{tuned.metric}: " + ", ".join(f"{count} {state}" for state, count in states.items())
    table = make_table(title, ["trial"], [tuned.metric, *tuned.start])
    for row in tuned.ranked.head(LISTED).to_dict("records"):
        params = tuned.params[row["trial"]]
        values = [_short(params.get(name, "")) for name in tuned.start]
        table.add_row(str(row["trial"]), format_score(row["score"]), *values)
    console = Console(highlight=False, markup=False)
    console.print(table)
    if tuned.importances:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in tuned.importances.items())
        console.print(f"importance    {shares}")


def report_tuned(tuned: Tuned, verdict: str) -> None:
    """Write trials.csv and report.html, replacing older ones."""
    write_csv(tuned.folder / "trials.csv", tuned.trials)
    better = "greater" if tuned.greater_is_better else "lower"
    ranked = tuned.ranked
    summary = {
        "verdict": verdict,
        "metric": f"{tuned.metric}, {better} is better; of the trials, which are small: {tuned.settings}",
        "trials": ", ".join(f"{count} {state}" for state, count in tuned.trials["state"].value_counts().items()),
    }
    if tuned.notes:
        summary["notes"] = "; ".join(tuned.notes)
    rows = [
        {"": row["trial"], tuned.metric: row["score"], "seconds": row["seconds"]}
        | {name: _short(tuned.params[row["trial"]].get(name, "")) for name in tuned.start}
        for row in ranked.to_dict("records")
    ]
    figures = [
        ("Scores in the order of the trials; the line is the best so far", _progress(tuned)),
        ("Importance: which settings separate the best trials from the others (PED-ANOVA)", _importances(tuned)),
        ("Score over each setting; the star is the experiment's own value", _slices(tuned)),
        ("Score by epoch; pruned trials end early", _curves(tuned)),
    ]
    parts = [summary_html(summary), *(figure_html(caption, figure) for caption, figure in figures)]
    parts.append(f"<h2>Complete trials, the best first</h2>\n{table_html(rows)}")
    write_page(tuned.folder / "report.html", f"Search of {tuned.folder.name}", parts)


def _progress(tuned: Tuned) -> "Figure":
    complete = tuned.ranked.sort_values("trial")
    if complete.empty:
        return nothing_to_show("no complete trial")
    figure = new_figure(8, 3)
    axis = figure.subplots()
    best = complete["score"].cummax() if tuned.greater_is_better else complete["score"].cummin()
    axis.plot(complete["trial"], complete["score"], "o", markersize=4, color=color_of(0))
    axis.step(complete["trial"], best, where="post", color=color_of(1))
    axis.set(xlabel="trial", ylabel=tuned.metric)
    axis.grid(alpha=0.3)
    return figure


def _importances(tuned: Tuned) -> "Figure":
    if not tuned.importances:
        return nothing_to_show("too few complete trials")
    figure = new_figure(8, 1.2 + 0.3 * len(tuned.importances))
    bars(figure.subplots(), np.array([*tuned.importances.values()]), [*tuned.importances], color=color_of(0))
    return figure


def _slices(tuned: Tuned) -> "Figure":
    from matplotlib.ticker import NullFormatter

    ranked, names = tuned.ranked, [name for name in tuned.start if tuned.trials[name].notna().any()]
    if ranked.empty:
        return nothing_to_show("no complete trial")
    lines = math.ceil(len(names) / COLUMNS)
    figure = new_figure(4 * COLUMNS, 2.8 * lines)
    axes = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    own = ranked["trial"].map(lambda number: tuned.params[number] == tuned.start)
    for axis, name in zip(axes, names, strict=False):
        known = ranked[name].notna()
        values = ranked[name].map(_short) if isinstance(tuned.start[name], str) else ranked[name]
        axis.scatter(values[known], ranked["score"][known], c=ranked["trial"][known], cmap="viridis", s=14)
        axis.plot(values[own], ranked["score"][own], "*", markersize=13, color=color_of(3))
        if name in tuned.logarithmic:
            axis.set_xscale("log")
            if values[known].max() > 10 * values[known].min():  # else labels of powers of ten are too few
                axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(shorten(name))
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[::COLUMNS]:
        axis.set_ylabel(tuned.metric)
    return figure


def _curves(tuned: Tuned) -> "Figure":
    figure = new_figure(8, 3.4)
    axis = figure.subplots()
    states = tuned.trials.set_index("trial")["state"]
    for number, curve in tuned.curves.items():
        style: dict[str, Any] = {"color": "0.75", "linewidth": 1}
        if states[number] == "complete":
            style = {"color": color_of(0), "linewidth": 1, "alpha": 0.6}
        axis.plot([*curve], [*curve.values()], marker="o" if len(curve) < 2 else None, markersize=2, **style)
    axis.set(xlabel="epoch", ylabel=f"{tuned.metric} (validation, no TTA)")
    axis.grid(alpha=0.3)
    return figure


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
