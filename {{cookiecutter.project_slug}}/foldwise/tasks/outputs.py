"""Outputs of a run: their names, their columns, and their values from what a network gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.errors import Refusal
from foldwise.tasks import Task, find_task

if TYPE_CHECKING:
    from torch import Tensor

MAIN_KEY, MAIN_TARGET = "logits", "target"
FOLDER = "outputs"  # of a run, with a source for each further output


@dataclass(frozen=True)
class Output:
    """One of a network's outputs that is predicted, scored and stored.

    Attributes:
        name: "" for the main one; others have a prediction folder of their own, see `output_folder`.
        key: of the network's outputs.
        target: the field of the samples that has its target.
        columns: names of the values: classes.
        task: its meaning, by name.
    """

    name: str
    key: str
    target: str
    columns: tuple[str, ...]
    task: str

    @property
    def meaning(self) -> Task:
        return find_task(self.task)

    @classmethod
    def main(cls, task: str, columns: Sequence[str]) -> "Output":
        return cls("", MAIN_KEY, MAIN_TARGET, tuple(columns), task)

    @classmethod
    def other(cls, name: str, config: Mapping[str, Any], columns: Sequence[str]) -> "Output":
        """An output beside the main one, from its entry in the configuration's `outputs`."""
        return cls(name, config["key"], f"{MAIN_TARGET}_{name}", tuple(columns), config["task"])


def activate(raw: "Mapping[str, Tensor]", outputs: Sequence[Output]) -> "dict[str, Tensor]":
    """The values of outputs by their names, from what a network gives.

    Raises:
        Refusal: the network does not give one of them.
    """
    missing = [output.key for output in outputs if output.key not in raw]
    if missing:
        raise Refusal(
            f"the network gives {', '.join(raw)} and not {', '.join(missing)}: `forward` returns a dict with the "
            "key of each output"
        )
    return {output.name: output.meaning.activate(raw[output.key]) for output in outputs}


def run_of(source: Path) -> tuple[Path, str]:
    """The run that a source of predictions belongs to, and the name of the output: "" where it is the run."""
    there = source.resolve()
    return (there.parents[1], there.name) if there.parent.name == FOLDER else (source, "")
