"""Outputs of a run: what a network predicts under which name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.errors import Refusal
from foldwise.tasks import Task, find_task
from foldwise.tasks.transforms import undo

if TYPE_CHECKING:
    from torch import Tensor

MAIN_KEY, MAIN_TARGET = "logits", "target"
FOLDER = "outputs"  # folder in a run with the predictions of further outputs


@dataclass(frozen=True)
class Output:
    """A network output that is predicted, scored and stored.

    Attributes:
        name: "" for the main output; others have their own prediction folder, see `output_folder`.
        key: in the dict that the network returns.
        target: sample field with the target.
        columns: class names.
        task: name of the task.
        transform: state of `tasks.transforms`, fitted for each model; None: none. Outputs are equal without it.
    """

    name: str
    key: str
    target: str
    columns: tuple[str, ...]
    task: str
    transform: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def meaning(self) -> Task:
        return find_task(self.task)

    @property
    def stored(self) -> tuple[str, ...]:
        """Columns of stored predictions; empty for vectors, whose width the network decides."""
        return () if self.meaning.kind == "vectors" else self.columns

    @classmethod
    def main(cls, task: str, columns: Sequence[str]) -> "Output":
        return cls("", MAIN_KEY, MAIN_TARGET, tuple(columns), task)

    @classmethod
    def other(cls, name: str, config: Mapping[str, Any], columns: Sequence[str]) -> "Output":
        """Make a further output from its entry in the configuration's `outputs`."""
        return cls(name, config.get("key") or name, f"{MAIN_TARGET}_{name}", tuple(columns), config["task"])


def activate(raw: "Mapping[str, Tensor]", outputs: Sequence[Output]) -> "dict[str, Tensor]":
    """Apply each output's activation to the raw outputs of a network, and undo its transform; refuse missing ones."""
    missing = [output.key for output in outputs if output.key not in raw]
    if missing:
        raise Refusal(
            f"the network returns {', '.join(raw)} but not {', '.join(missing)}: `forward` must return a dict with the "
            "key of each output"
        )
    return {output.name: undo(output.transform, output.meaning.activate(raw[output.key])) for output in outputs}


def run_of(source: Path) -> tuple[Path, str]:
    """Split a source of predictions into the run folder and the output name, "" for the main output."""
    path = source.resolve()
    return (path.parents[1], path.name) if path.parent.name == FOLDER else (source, "")
