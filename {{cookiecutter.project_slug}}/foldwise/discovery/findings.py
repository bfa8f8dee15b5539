"""What was found, with its evidence, and what could not be decided."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from foldwise.discovery.files import PICTURES
from foldwise.discovery.targets import Target
from foldwise.settings import OWNER


@dataclass
class Findings:
    """Findings of a folder.

    Attributes:
        lines: what, and the evidence.
        settings: of the data configuration, by name.
        choices: of other groups, such as the task.
        tables: to write.
        doubts: what could not be decided, with what to write.
        used: paths of tables that were joined to the training table.
    """

    root: Path
    name: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    tables: dict[Path, pd.DataFrame] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)

    @property
    def inside(self) -> Path:
        """The folder as the configuration names it."""
        repository = OWNER.parent
        return self.root.relative_to(repository) if self.root.is_relative_to(repository) else self.root

    @property
    def folder(self) -> Path:
        """Where tables are written."""
        return Path("data") / self.name / "tables"

    def place(self, frame: pd.DataFrame, name: str, stored: str | None = None) -> str:
        """The path of a table for the configuration: one of the folder, or else a new one, which is written."""
        if stored is not None:
            return (self.inside / stored).as_posix()
        self.tables[self.folder / name] = frame
        return (self.folder / name).as_posix()

    def say(self, what: str, text: str) -> None:
        self.lines.append((what, text))

    def ask(self, question: str, options: Sequence[str], sentence: str, usual: str | None = None) -> str | None:
        """Ask on a terminal; elsewhere, or if nothing is answered, note the sentence and take the usual option."""
        if sys.stdin.isatty():
            print(f"\n{question}")
            for number, option in enumerate(options, 1):
                print(f"  {number}  {option}{'  (Enter)' if option == usual else ''}")
            with suppress(EOFError):
                while answer := input("number: ").strip():
                    if answer in map(str, range(1, len(options) + 1)):
                        return options[int(answer) - 1]
                    print(f"a number from 1 to {len(options)}, or nothing to decide later")
        self.doubts.append(sentence)
        return usual


@dataclass
class Rows:
    """The training rows.

    Attributes:
        frame: their table.
        id, image: columns.
        stored: the file of the folder that has just these rows; None: a table is to be written.
        target: None if it is not known.
    """

    frame: pd.DataFrame
    id: str
    image: str
    stored: str | None = None
    target: Target | None = None

    @property
    def has_suffix(self) -> bool:
        """Whether the ids end with the suffix of the file."""
        return str(self.frame[self.id].iat[0]).casefold().endswith(PICTURES)


def first_free(frame: pd.DataFrame, *names: str) -> str:
    return next((name for name in names if name not in frame), f"{names[-1]}_")
