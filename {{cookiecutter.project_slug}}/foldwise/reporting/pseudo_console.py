"""What pseudo_label.py prints: what each student gets, or the least certain images."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from foldwise.predictions.pseudo.student import Student

SHOWN = 50


def print_students(students: Sequence[Student]) -> None:
    """A row for images, for what was left out, and for each class: its targets, of masks its confident pixels."""
    rows = [
        ["images", *(student.rows for student in students)],
        ["left out: of its own fold", *(student.held_out for student in students)],
        ["left out: not confident", *(student.unsure for student in students)],
    ]
    rows += [[name, *(_of_class(student, name) for student in students)] for name in students[0].classes]
    _print(["for the student of fold", *(str(student.student) for student in students)], rows)
    if students[0].answered is not None:
        print("of each class: its share of all confident pixels, and in brackets how many of its pixels are confident")
    for student in students:
        if student.lacking:
            what = "pixel" if student.answered is not None else "image"
            print(
                f"the student of fold {student.student} gets no {what} of {', '.join(student.lacking)}: "
                f"--confident-class {student.lacking[0]}=<less> lets some in"
            )


def print_uncertain(frame: pd.DataFrame) -> None:
    """The images of the highest entropy."""
    names = ["id", "image", "entropy", "margin"]
    _print(names, frame[names].to_numpy().tolist())


def _of_class(student: Student, name: str) -> str:
    total = student.classes[name]
    if student.answered is None:
        return f"{total:.4g}"
    of_it = f"{total / student.answered[name]:.1%}" if student.answered[name] else "no pixel"
    return f"{total / sum(student.classes.values()):.2%} ({of_it})"


def _print(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """The first rows of a table."""
    table = Table()
    for name in names:
        table.add_column(name, justify="right")
    for row in rows[:SHOWN]:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    Console().print(table)
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN} more")
