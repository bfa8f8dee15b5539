"""Self-contained HTML reports with inline pictures."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pandas as pd

from foldwise.files import write_text
from foldwise.reporting.figures import learning_curves, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The security policy stops names and captions from loading anything.
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.6em; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .25em 1em .25em 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.total td { font-weight: 600; border-top: 2px solid #888; }
figure { margin: 2em 0; }
figcaption { margin-bottom: .5em; font-weight: 600; }
img { max-width: 100%; height: auto; border: 1px solid #eee; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page of HTML parts, replacing an older one."""
    write_text(path, PAGE.substitute(title=escape(title), body="\n".join(parts)))


def write_report(
    path: Path,
    title: str,
    summary: Mapping[str, str],
    scores: Sequence[Mapping[str, Any]],
    history: Mapping[int, pd.DataFrame],
    figures: Sequence[tuple[str, "Figure | bytes"]],
    metric: str = "score",
) -> None:
    """Write the report of a run or an ensemble, replacing an older one.

    Args:
        scores: rows such as {"fold": 0, "accuracy": 0.9}; rows whose first value is text ("OOF") are set off as totals.
        history: history.csv by fold; empty omits the learning curves.
        metric: name of the metric in the history's `score` column.
    """
    parts = [summary_html(summary)] if summary else []
    if scores:
        parts.append(f"<h2>Scores</h2>\n{table_html(scores, totals=True)}")
    if history:
        parts.append(figure_html("Learning curves", learning_curves(history, metric)))
    write_page(path, title, parts + [figure_html(caption, figure) for caption, figure in figures])


def summary_html(values: Mapping[str, Any]) -> str:
    """Render a table of names and values."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in values.items())
    return f"<table>\n{rows}</table>"


def table_html(rows: Sequence[Mapping[str, Any]], totals: bool = False) -> str:
    """Render a table of rows, {column: value}; NaN is a dash, and `totals` sets off rows whose first value is text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    lines = []
    for row in rows:
        total = ' class="total"' if totals and isinstance(row.get(names[0]), str) else ""
        cells = "".join(f'<td class="number">{escape(_format(row.get(name, "")))}</td>' for name in names)
        lines.append(f"<tr{total}>{cells}</tr>")
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(lines) + "\n</table>"


def figure_html(caption: str, figure: "Figure | bytes") -> str:
    """Render a figure or PNG bytes inline under its caption."""
    data = base64.b64encode(figure if isinstance(figure, bytes) else to_png(figure)).decode()
    name = escape(caption)
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def escape(value: Any) -> str:
    return html.escape(str(value))


def _format(value: Any) -> str:
    if isinstance(value, float):
        return "—" if math.isnan(value) else f"{value:.4f}"
    return str(value)
