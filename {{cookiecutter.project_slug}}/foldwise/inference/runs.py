"""Finished runs as predict.py needs them: where their data is, and the models of their folds.

Only files that a run left are read: its config.yaml (where the table is and what its columns are called) and its model
folders. Nothing is instantiated from a configuration.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldwise.config import read_config
from foldwise.data.holdout import FULL, fold_name
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.inference.weights import SPEC, ModelSpec, find_models, read_spec
from foldwise.tasks.outputs import run_of


@dataclass(frozen=True)
class TrainedRun:
    """A run that has models: its configuration's data section, and the model folders by (fold, snapshot).

    The fold of a model of every row is FULL.
    """

    folder: Path
    data: dict[str, Any]
    models: dict[tuple[int, str], Path]
    spec: ModelSpec

    @property
    def members(self) -> list[int]:
        """The folds that have models, FULL first where there is one of every row."""
        return sorted({fold for fold, _ in self.models})

    @property
    def folds(self) -> list[int]:
        """The folds that have models."""
        return [fold for fold in self.members if fold != FULL]

    @property
    def folds_hash(self) -> str | None:
        path = self.folder / "identity.json"
        return read_json(path).get("identity", {}).get("content folds") if path.is_file() else None

    @property
    def missing_folds(self) -> list[int]:
        """Folds without a model; none are missing beside a model of every row alone.

        With folds given in the table, how many there are stands nowhere else.
        """
        if not self.folds:
            return []
        existing = range(self.data["folds"]) if self.data["columns"]["fold"] is None else self.folds
        return [fold for fold in existing if fold not in self.folds]

    def hashes(self) -> list[str]:
        """A hash of each model."""
        return [read_json(path / SPEC).get("sha256", "") for path in self.models.values()]


def open_run(folder: Path) -> TrainedRun:
    """Find the models of a run.

    Raises:
        Refusal: it is not a run, no fold has a model yet, or the folds' models do not go together.
    """
    config = read_config(folder)
    run, output = run_of(folder)
    if output:
        raise Refusal(f"{folder} is an output of a run, whose models predict all of them at once: name {run}")
    folds = {int(match[1]): path for path in folder.glob("fold*") if (match := re.fullmatch(r"fold(\d+)", path.name))}
    folds[FULL] = folder / fold_name(FULL)
    models = {(fold, name): path for fold in sorted(folds) for name, path in find_models(folds[fold]).items()}
    if not models:
        raise Refusal(f"{folder} has no model yet: no fold is finished; go on with python train.py run={folder}")
    names = {fold: [name for other, name in models if other == fold] for fold, _ in models}
    for fold, snapshots in names.items():
        first = next(iter(names.values()))
        if len(snapshots) != len(first):
            raise Refusal(f"{folder}: {fold_name(fold)} has the snapshots {snapshots}, and the first model has {first}")
    specs = {member: read_spec(path) for member, path in models.items()}
    spec = next(iter(specs.values()))
    for (fold, _), other in specs.items():
        if other.outputs != spec.outputs:
            raise Refusal(f"{folder}: the model of {fold_name(fold)} has another task or other classes than the first")
    return TrainedRun(folder, config["data"], models, spec)


def _names(run: TrainedRun) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(output.name, output.task, output.columns) for output in run.spec.outputs]


def check_together(runs: Sequence[TrainedRun]) -> None:
    """Refuse runs that cannot be predicted in one go, or that are named twice.

    Raises:
        Refusal: names the run and what differs.
    """
    first = runs[0]
    for index, run in enumerate(runs[1:], start=1):
        if run.folder.resolve() in {other.folder.resolve() for other in runs[:index]}:
            raise Refusal(f"{run.folder} is named twice")
        for what, ours, its in (
            ("task", first.spec.task, run.spec.task),
            ("classes", first.spec.classes, run.spec.classes),
            ("outputs", _names(first), _names(run)),
            ("data root", first.data["root"], run.data["root"]),
            ("columns", first.data["columns"], run.data["columns"]),
            ("test table", first.data["test_table"], run.data["test_table"]),
            ("folds", first.folds_hash, run.folds_hash),
        ):
            if ours != its:
                raise Refusal(
                    f"{run.folder} and {first.folder} do not have the same {what} ({its} and {ours}): "
                    "predict them in two commands"
                )
