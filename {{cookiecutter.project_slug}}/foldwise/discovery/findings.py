"""What was found, with its evidence, and what could not be decided."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from foldwise.discovery.files import PICTURES
from foldwise.discovery.targets import Target
from foldwise.tasks import find_task

TABLES = "tables"  # folder of the tables that are written, in data/<name>


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

    def say(self, what: str, text: str) -> None:
        self.lines.append((what, text))

    def ask(self, question: str, options: Sequence[str], sentence: str, usual: str | None = None) -> str | None:
        """Ask on a terminal; elsewhere, or if nothing is answered, note the sentence and take the usual option."""
        if not sys.stdin.isatty():
            self.doubts.append(sentence)
            return usual
        print(f"\n{question}")
        for number, option in enumerate(options, 1):
            print(f"  {number}  {option}{'  (Enter)' if option == usual else ''}")
        while (answer := ask_for("number: ")) and not (answer.isdecimal() and 0 < int(answer) <= len(options)):
            print(f"a number from 1 to {len(options)}, or nothing to decide later")
        if answer:
            return options[int(answer) - 1]
        self.doubts.append(sentence)
        return usual

    def set_task(self, name: str, why: str, masks: str = "exclusive") -> None:
        """Choose the task, with a metric and a loss of it where the repository's own do not suit."""
        own_task, own_metric = project_choices()
        meaning = find_task("segmentation_overlapping" if masks == "overlapping" else name)
        self.settings["masks"] = masks
        if name != own_task:
            self.choices |= {"task": name, "metric": meaning.metric}
        if masks == "overlapping":
            self.choices |= {"task": name, "metric": meaning.metric, "loss": "bce_dice"}
        changed = (
            "" if name == own_task else f" (configs/project.yaml has {own_task}; the file's first lines change it)"
        )
        self.say("task", f"{name}, {why}{changed}")
        if self.choices.get("metric") not in (None, own_metric):
            self.doubts.append(
                f"the competition's metric is in no file: {meaning.metric} was taken. For another one change the "
                "line of /metric (python train.py --help lists them)"
            )


def ask_for(prompt: str) -> str:
    """What is typed; "" if the input ends."""
    try:
        return input(prompt).strip()
    except EOFError:
        return ""


def project_choices() -> tuple[str, str]:
    """The task and the metric of configs/project.yaml."""
    from foldwise.settings import OWNER, read_yaml

    entries = read_yaml(OWNER / "project.yaml")["defaults"]
    chosen = {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}
    return str(chosen["task"]), str(chosen["metric"])


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
