"""What a comparison of runs prints: what changed, and by how much the score did."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from foldwise.predictions.evaluation.evaluate import TWO_FILES, Evaluation
from foldwise.reporting.evaluation_console import format_interval

LINES = 30  # of changes a run; identity.json has all


def print_comparison(evaluation: Evaluation, changes: Sequence[Sequence[str]]) -> None:
    """Print for each further run what changed since the first, and the difference of their scores.

    Args:
        evaluation: of the first run and the others, in their order.
        changes: of each of the others, one line for each thing that differs.
    """
    console, metric = Console(highlight=False, markup=False), evaluation.metrics[0]
    names = [one.name for one in evaluation.evidence]
    for name, lines in zip(names[1:], changes, strict=True):
        console.print(f"{names[0]} -> {name}: " + (f"{len(lines)} changes" if len(lines) != 1 else "1 change"))
        for line in lines[:LINES]:
            console.print(f"  {line}")
        if len(lines) > LINES:
            console.print(f"  and {len(lines) - LINES} more")
    better = "greater" if metric.greater_is_better else "lower"
    grouped = f"{evaluation.groups:,} {evaluation.drawn}"
    table = Table(
        title=f"{type(metric).__name__} ({better} is better); 95 % intervals from {grouped}", title_justify="left"
    )
    for title in ("run", "changes", "score", "difference", "interval", "verdict"):
        table.add_column(title, justify="left" if title in ("run", "verdict") else "right", overflow="fold")
    own = evaluation.differences[evaluation.differences["metric"] == type(metric).__name__]
    table.add_row(names[0], "", f"{own['second'].iat[0]:.4f}", "", "", "")
    for name, lines, row in zip(names[1:], changes, own.itertuples(), strict=True):
        interval = format_interval(row.low, row.high)
        table.add_row(name, str(len(lines)), f"{row.first:.4f}", f"{row.difference:+.4f}", interval, str(row.verdict))
    console.print(table)
    console.print(TWO_FILES, style="dim")
    if any(len(lines) > 1 for lines in changes):
        console.print("Where several things changed, the difference cannot be laid on one of them.", style="bold")
