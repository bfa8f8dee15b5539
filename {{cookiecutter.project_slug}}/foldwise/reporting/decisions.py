"""Printed tables of post-processing: scores out of fold, and how the shares of classes shift from folds to test."""

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from foldwise.predictions.decisions.deciding import Outcome
from foldwise.predictions.decisions.submit import Submission
from foldwise.predictions.selection import paired_error

if TYPE_CHECKING:
    from rich.console import Console

MOST_CLASSES = 40


def print_submission(console: "Console", submission: Submission) -> None:
    """Print what was compared and chosen, where it is, and the next command."""
    path, ledger, metric, classes, chosen, shared, notes = submission
    print_outcomes(console, metric, chosen.outcomes, chosen.place)
    print_shares(console, shared, classes, chosen.shares)
    for note in notes:
        console.print(note, style="yellow", markup=False)
    lines = (
        f"decision    {chosen.decision}",
        f"out of fold {metric} {chosen.outcome.overall:.4f}",
        f"submission  {path}",
        f"ledger      {ledger}",
        f"next        upload it, then: python submit.py score {shlex.quote(str(path))} <score of the leaderboard>",
    )
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def print_outcomes(console: "Console", metric: str, outcomes: Sequence[Outcome], chosen: int) -> None:
    """A row a decision: its score in each fold, mean ± standard error, and the paired difference to the chosen one."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{metric} of each decision, fitted on the other folds", title_justify="left")
    table.add_column("decision", no_wrap=True)
    for name in (*(f"fold {fold}" for fold in outcomes[0].per_fold), "mean ± SE", "OOF", "against the chosen"):
        table.add_column(name, justify="right", no_wrap=True)
    for place, outcome in enumerate(outcomes):
        scores = outcome.scores
        error = np.std(scores, ddof=1) / np.sqrt(len(scores))
        difference, paired = paired_error(scores, outcomes[chosen].scores)
        against = "chosen" if place == chosen else f"{difference:+.4f} ± {paired:.4f}"
        cells = [*(f"{score:.4f}" for score in scores), f"{np.mean(scores):.4f} ± {error:.4f}"]
        style = "bold" if place == chosen else None
        table.add_row(outcome.name, *cells, f"{outcome.overall:.4f}", against, style=style)
    # As wide as needed: in a narrow terminal a long line can be read, and figures that are cut off cannot.
    Console(file=console.file, width=max(console.width, 90 + 9 * len(outcomes[0].per_fold))).print(table)


def print_shares(console: "Console", title: str, classes: Sequence[str], shares: Mapping[str, np.ndarray]) -> None:
    """A row a class: its share in ground truth and answers, (C,) a column; of many classes those that shift most."""
    from rich.table import Table

    columns = np.stack(list(shares.values()), axis=1)  # (C, columns)
    largest = np.argsort(columns.min(axis=1) - columns.max(axis=1), kind="stable")[:MOST_CLASSES]
    table = Table("class", title=title, title_justify="left")
    for name in shares:
        table.add_column(name, justify="right", no_wrap=True)
    for index in sorted(largest.tolist()):
        table.add_row(classes[index], *(f"{share:.2%}" for share in columns[index]))
    table.add_section()
    table.add_row("sum", *(f"{share:.2%}" for share in columns.sum(axis=0)))
    console.print(table)
    if len(largest) < len(classes):
        console.print(f"the {len(largest)} classes of {len(classes)} that shift most")
