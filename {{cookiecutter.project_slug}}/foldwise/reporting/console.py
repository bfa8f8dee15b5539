"""Console output of finished commands: scores, comparisons and the next command."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from foldwise.data.holdout import fold_name
from foldwise.files import read_json
from foldwise.predictions.evaluation.evidence import class_table
from foldwise.predictions.selection import paired_error
from foldwise.shell import command, override

if TYPE_CHECKING:
    from foldwise.predictions.decisions.deciding import Outcome
    from foldwise.predictions.decisions.submit import Submission
    from foldwise.predictions.evaluation.evaluate import Evaluation
    from foldwise.predictions.pseudo.labelling import Student

CLASSES = 30  # with more, the table of classes is only in the report
SHIFTS, CHANGES, IMAGES, NOTES = 40, 30, 50, 5  # most lines printed; the rest is in the report or in files
DATA = "content folds:", "content images:", "content table:"  # changes that new rows make together
TWO_FILES = (
    "One prediction per side: the interval covers other images, not other seeds, so it cannot show that a change is "
    "real. Train both sides with several seeds, and name the second side with --against."
)


def make_table(title: str, texts: Iterable[str], numbers: Iterable[str], **style: Any) -> Table:
    """Make a table with text columns on the left and number columns on the right."""
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(name, **style)
    for name in numbers:
        table.add_column(name, justify="right", **style)
    return table


def format_score(value: float | None) -> str:
    return "—" if value is None or math.isnan(value) else f"{value:.4f}"


def format_interval(low: float, high: float) -> str:
    """Format an interval; NaN ends mean too few groups."""
    return "(too few)" if math.isnan(low) else f"[{low:.4f}, {high:.4f}]"


def print_run(run: Path, folds: Sequence[int], greater_is_better: bool, can_train_full: bool = True) -> None:
    """Print the scores of a run's finished models and of all `folds`, and the next commands."""
    console = Console()
    names = [*map(fold_name, folds), "full", *(path.name for path in sorted(run.glob("without-*")))]
    models = {name: read_json(path) for name in names if (path := run / name / "metrics.json").exists()}
    missing = [fold for fold in folds if fold_name(fold) not in models]
    columns = ["model", next(iter(models.values()))["metric"], "epochs", "seconds"]
    has_gold = any("gold" in model for model in models.values())
    table = make_table(run.name, [], [*columns, "gold"] if has_gold else columns)
    for name, model in models.items():
        gold = [format_score(model.get("gold"))] if has_gold else []
        table.add_row(name, format_score(model["score"]), str(model["epochs"]), f"{model['seconds']:.0f}", *gold)
    scores = [model["score"] for name, model in models.items() if name.startswith("fold")]
    scores = [score for score in scores if score is not None]
    if len(scores) > 1:
        table.add_section()
        table.add_row("mean ± std", f"{np.mean(scores):.4f} ± {np.std(scores):.4f}")
    if (run / "oof").exists():
        scored = {"overall": None} if missing else read_json(run / "metrics.json")
        gold = ["", "", format_score(scored.get("gold"))] if has_gold else []
        table.add_row("OOF overall", format_score(scored["overall"]), *gold)
    console.print(table)
    if any(model["chosen_on_own_fold"] for model in models.values()):
        console.print("[yellow]optimistic: epochs or learning rates were chosen on the fold that is scored[/yellow]")
    if "full" in models:
        console.print("full                 trained on every row: no rows are left to score it")
    if any(name.startswith("without-") for name in models):
        print_line(console, f"teach a student      {command('python', 'tools/distill.py', run)} --out <table>.csv")
    if missing and len(missing) < len(folds):
        console.print(f"folds {missing} are not finished: run the same command with fold=all to train them")
    if not missing:
        console.print(f"models and history   {run}/fold<k>/\nout-of-fold          {run}/oof/")
        console.print(f"report               {run}/report.html")
        print_line(console, f"epochs               {_describe_epochs(run, folds, greater_is_better)}")
        if can_train_full and "full" not in models:
            full = command("python", "train.py", override("run", str(run)), "fold=full")
            print_line(console, f"to train every row   {full}")
    if not missing or "full" in models:
        print_line(console, f"next                 {command('python', 'predict.py', run)}")


def print_line(console: Console, line: str) -> None:
    """Print a line unbroken and as it is."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _describe_epochs(run: Path, folds: Sequence[int], greater_is_better: bool) -> str:
    """Report the epoch with the best mean validation score over all folds."""
    histories = [pd.read_csv(run / fold_name(fold) / "history.csv") for fold in folds]
    mean = pd.concat(histories).groupby("epoch")["score"].mean().dropna()
    if mean.empty:
        return "no validation had a score"
    best, last = int(mean.idxmax() if greater_is_better else mean.idxmin()), int(mean.index[-1])
    text = f"the folds' mean validation was best after {best} of {last}: {mean[best]:.4f}"
    return text if best == last else f"{text}, at the end {mean[last]:.4f}"


def print_evaluation(
    evaluation: "Evaluation", changes: Mapping[str, Sequence[str]], importance: pd.DataFrame | None = None
) -> None:
    """Print scores, subgroups, differences and notes.

    Args:
        changes: how a run differs from another, by the names of both.
        importance: of `measure_importance`.
    """
    console, scores = Console(highlight=False, markup=False), evaluation.scores
    first, over_all = evaluation.evidence[0], scores["column"] == ""
    for names, lines in changes.items():
        count = "1 change" if len(lines) == 1 else f"{len(lines)} changes"
        console.print(f"{names}: {count}")
        for line in lines[:CHANGES]:
            console.print(f"  {line}")
        if len(lines) > CHANGES:
            console.print(f"  and {len(lines) - CHANGES} more")
    overall = scores[over_all]
    title = f"{evaluation.truth.table.path}: {overall['images'].iat[0]:,} scored; 95 % intervals from "
    title += f"{evaluation.resamples:,} draws of {evaluation.groups:,} {evaluation.drawn}"
    table = make_table(title, ["prediction", "metric"], ["score", "interval"], overflow="fold")
    for row in overall.itertuples():
        table.add_row(row.prediction, row.metric, f"{row.score:.4f}", format_interval(row.low, row.high))
    console.print(table)
    if first.classes is not None and len(evaluation.truth.table.classes) <= CLASSES:
        console.print(_class_table(evaluation))
    metric = type(evaluation.metrics[0]).__name__
    for column, rows in scores[~over_all & (scores["metric"] == metric)].groupby("column", sort=False):
        console.print(_subgroup_table(f"{metric} by {column}", rows, evaluation))
    if importance is not None:
        table = make_table(f"{metric} without a part", ["predicted from"], ["score", "worse by", "interval"])
        for name, score, worse, *ends in importance.itertuples(index=False):
            table.add_row(str(name), f"{score:.4f}", f"{worse:.4f}", format_interval(*ends))
        console.print(table)
    if len(evaluation.differences):
        for what, rows in evaluation.differences.groupby("what", sort=False):
            console.print(_difference_table(str(what), rows))
        if (evaluation.differences["pairs"] == 1).any():
            console.print(TWO_FILES)
    if any(len({DATA if line.startswith(DATA) else line for line in lines}) > 1 for lines in changes.values()):
        sentence = "Several things changed, so the difference cannot be attributed to one of them."
        console.print(sentence, style="bold", soft_wrap=True)
    for note in evaluation.notes[:NOTES]:
        console.print(f"note: {note}", soft_wrap=True)
    if len(evaluation.notes) > NOTES:
        console.print(f"and {len(evaluation.notes) - NOTES} more notes in the report")


def _class_table(evaluation: "Evaluation") -> Table:
    first = evaluation.evidence[0]
    assert first.classes is not None
    frame = class_table(first.classes, evaluation.truth).drop(columns=["predicted", "correct"])
    counted = "pixels" if evaluation.truth.task.kind == "maps" else "times"
    title = f"classes of {first.name}"
    table = make_table(title, ["class"], [f"{counted} true", *frame.columns[2:]], overflow="fold")
    for name, true, *ratios in frame.itertuples(index=False):
        table.add_row(str(name), f"{true:,}", *("—" if math.isnan(value) else f"{value:.3f}" for value in ratios))
    return table


def _subgroup_table(title: str, rows: pd.DataFrame, evaluation: "Evaluation") -> Table:
    counts = {"images": "images"} if evaluation.drawn == "images" else {"images": "images", evaluation.drawn: "groups"}
    names = [*counts, *(one.name for one in evaluation.evidence)]
    table = make_table(title, ["value"], names, overflow="fold")
    for value, same in rows.groupby("value", sort=False):
        scores = (f"{row.score:.4f} {format_interval(row.low, row.high)}" for row in same.itertuples())
        table.add_row(str(value), *(f"{same[name].iat[0]:,}" for name in counts.values()), *scores)
    return table


def _difference_table(what: str, rows: pd.DataFrame) -> Table:
    several = rows["pairs"].iat[0] > 1
    over = ["95 % over images", *([f"95 % over {rows['pairs'].iat[0]} seeds"] if several else [])]
    table = make_table(what, ["metric"], ["left", "right", "difference", *over], overflow="fold")
    table.add_column("left is", overflow="fold")
    for row in rows.itertuples():
        difference = f"{row.difference:+.4f}" + (f" ± {row.error:.4f}" if several else "")
        intervals = [format_interval(row.low, row.high)]
        intervals += [format_interval(row.seed_low, row.seed_high)] if several else []
        table.add_row(row.metric, f"{row.first:.4f}", f"{row.second:.4f}", difference, *intervals, row.verdict)
    return table


def print_export(variants: pd.DataFrame, groups: pd.DataFrame, metric: str, notes: Sequence[str]) -> None:
    """Print the variants of an export, and the subgroups whose answers change most."""
    console = Console(highlight=False, markup=False)
    console.print(f"one standard error of float's score is {variants['error'].iat[1]:.4f}")
    names = ["MB", "p50 ms", "p95 ms", "p50 / torch", "memory MB", metric, "loss", "interval", "change", "changed"]
    table = make_table("", ["variant"], names, overflow="fold")
    for row in variants.itertuples():
        times = (f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}", f"{row.p50_ratio:.2f}", f"{row.memory_mb:.0f}")
        lost = f"{row.loss:.4f}", format_interval(row.loss_low, row.loss_high)
        ends = f"{row.score:.4f}", *lost, f"{row.change:.1g}", f"{row.changed:.2%}"
        table.add_row(row.variant, f"{row.mb:.2f}", *times, *ends, style="bold" if row.chosen else None)
    Console(file=console.file, width=max(console.width, 145)).print(table)
    for chosen in variants.loc[variants["chosen"], "variant"]:
        console.print(f"chosen      {chosen}: the smallest within one standard error of float's score")
        worst = groups[(groups["variant"] == chosen) & (groups["changed"] >= 0.0001)].nlargest(NOTES, "changed")
        for row in worst.itertuples():
            console.print(f"changed     {row.changed:.2%} where {row.column} is {row.value} ({row.images} images)")
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)


def print_submission(console: Console, submission: "Submission") -> None:
    """Print the compared decisions, the chosen one, its files, and the next command."""
    path, ledger, metric, classes, chosen, shared, notes = submission
    print_outcomes(console, metric, chosen.outcomes, chosen.chosen_index)
    _print_class_shares(console, shared, classes, chosen.shares)
    for note in notes:
        console.print(note, style="yellow", markup=False)
    lines = (
        f"decision    {chosen.decision}",
        f"out of fold {metric} {chosen.outcome.overall:.4f}",
        f"submission  {path}",
        f"ledger      {ledger}",
        f"next        upload it, then: {command('python', 'submit.py', 'score', path)} <score of the leaderboard>",
    )
    print_line(console, "\n".join(lines))


def print_outcomes(console: Console, metric: str, outcomes: Sequence["Outcome"], chosen: int) -> None:
    """Print each decision's scores by fold, mean ± standard error, and paired difference from the chosen one."""
    folds = [f"fold {fold}" for fold in outcomes[0].per_fold]
    title = f"{metric} of each decision, fitted on the other folds"
    table = make_table(title, ["decision"], [*folds, "mean ± SE", "OOF", "against the chosen"], no_wrap=True)
    for number, outcome in enumerate(outcomes):
        scores = outcome.scores
        error = np.std(scores, ddof=1) / np.sqrt(len(scores))
        difference, paired = paired_error(scores, outcomes[chosen].scores)
        table.add_row(
            outcome.name,
            *(f"{score:.4f}" for score in scores),
            f"{np.mean(scores):.4f} ± {error:.4f}",
            f"{outcome.overall:.4f}",
            "chosen" if number == chosen else f"{difference:+.4f} ± {paired:.4f}",
            style="bold" if number == chosen else None,
        )
    # In a narrow terminal, long lines wrap and stay readable; truncated numbers would not.
    Console(file=console.file, width=max(console.width, 90 + 9 * len(folds))).print(table)


def _print_class_shares(console: Console, title: str, classes: Sequence[str], shares: Mapping[str, np.ndarray]) -> None:
    """Print each class's share, or mean number, in the ground truth and in predictions; if many, the largest shifts."""
    columns = np.stack(list(shares.values()), axis=1)  # (C, columns)
    are_shares = bool(((columns >= 0) & (columns <= 1)).all())
    largest = np.argsort(columns.min(axis=1) - columns.max(axis=1), kind="stable")[:SHIFTS]
    table = make_table(title, ["class"], shares, no_wrap=True)
    for index in sorted(largest.tolist()):
        table.add_row(classes[index], *(f"{share:.2%}" if are_shares else f"{share:.4g}" for share in columns[index]))
    if are_shares:
        table.add_section()
        table.add_row("sum", *(f"{share:.2%}" for share in columns.sum(axis=0)))
    console.print(table)
    if len(largest) < len(classes):
        console.print(f"the {len(largest)} classes of {len(classes)} that shift most")


def print_students(students: Sequence["Student"]) -> None:
    """Print how many pseudo-labelled images, and targets (confident pixels) per class, each student gets."""
    rows = [
        ["images", *(student.rows for student in students)],
        ["left out: of its own fold", *(student.held_out for student in students)],
        ["left out: not confident", *(student.unsure for student in students)],
    ]
    rows += [[name, *(_class_cell(student, name) for student in students)] for name in students[0].classes]
    _print_rows(["for the student of fold", *(str(student.student) for student in students)], rows)
    if students[0].answered is not None:
        print(
            "per class: its share of all confident pixels, and in brackets the share of its pixels that are confident"
        )
    for student in students:
        if student.lacking:
            what = "pixel" if student.answered is not None else "image"
            print(
                f"the student of fold {student.student} gets no {what} of {', '.join(student.lacking)}: "
                f"lower the threshold with --confident-class {student.lacking[0]}=<less>"
            )


def print_listed(frame: pd.DataFrame) -> None:
    """Print the first images of a list, without the probabilities."""
    known = ("id", "image", "label", "likely", "doubt", "entropy", "margin", "disagreement", "boxes")
    names = [name for name in frame if name in known]
    _print_rows(names, frame[names].to_numpy().tolist())


def _class_cell(student: "Student", name: str) -> str:
    total = student.classes[name]
    if student.answered is None:
        return f"{total:.4g}"
    confident = f"{total / student.answered[name]:.1%}" if student.answered[name] else "no pixel"
    return f"{total / sum(student.classes.values()):.2%} ({confident})"


def _print_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = make_table("", [], names)
    for row in rows[:IMAGES]:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    Console().print(table)
    if len(rows) > IMAGES:
        print(f"and {len(rows) - IMAGES} more")
