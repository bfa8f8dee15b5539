"""A report as one HTML file: pictures inline, nothing loaded from anywhere."""

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

# The policy makes the browser refuse whatever a name or caption might try to load.
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


def write_report(
    path: Path,
    title: str,
    summary: Mapping[str, str],
    scores: Sequence[Mapping[str, Any]],
    history: Mapping[int, pd.DataFrame],
    figures: Sequence[tuple[str, "Figure | bytes"]],
    metric: str = "score",
) -> None:
    """Write a report; an older one is replaced.

    Args:
        path: the HTML file.
        summary: what there is to know at the top, by name.
        scores: rows of the table of scores, for example {"fold": 0, "accuracy": 0.9}; a row whose first value is
            text ("OOF") is set off as a total. NaN is shown as a dash.
        history: of each fold, its history.csv; empty leaves the learning curves out.
        figures: captions with matplotlib figures or PNG files' bytes, in their order.
        metric: the name of `score` in the history.
    """
    parts = []
    if summary:
        rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>\n" for name, value in summary.items())
        parts.append(f"<table>\n{rows}</table>")
    if scores:
        parts.append(f"<h2>Scores</h2>\n{_score_table(scores)}")
    if history:
        parts.append(figure_html("Learning curves", learning_curves(history, metric)))
    parts += [figure_html(caption, figure) for caption, figure in figures]
    write_text(path, PAGE.substitute(title=_text(title), body="\n".join(parts)))


def _score_table(scores: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in scores for name in row))
    head = "".join(f'<th class="number">{_text(name)}</th>' for name in names)
    lines = []
    for row in scores:
        total = ' class="total"' if isinstance(row.get(names[0]), str) else ""
        cells = "".join(f'<td class="number">{_text(_number(row.get(name, "")))}</td>' for name in names)
        lines.append(f"<tr{total}>{cells}</tr>")
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(lines) + "\n</table>"


def _number(value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "—"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def figure_html(caption: str, figure: "Figure | bytes") -> str:
    """A figure, or the bytes of a PNG file, inline under its caption."""
    data = base64.b64encode(figure if isinstance(figure, bytes) else to_png(figure)).decode()
    name = _text(caption)
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def _text(value: Any) -> str:
    return html.escape(str(value))
