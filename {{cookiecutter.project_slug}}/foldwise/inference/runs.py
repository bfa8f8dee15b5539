"""Finished runs as predict.py and bundles load them: data settings and models, nothing instantiated."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldwise.config import read_config
from foldwise.data.features import FOLDER, RECORD, FeatureSet, size_problems
from foldwise.data.holdout import FULL, fold_name
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.inference.spec import ModelSpec, read_spec
from foldwise.inference.weights import find_models
from foldwise.shell import command, override
from foldwise.tasks.outputs import run_of


@dataclass(frozen=True)
class TrainedRun:
    """A run with models: `data` is that section of its configuration, `models` are folders by (fold, snapshot)."""

    folder: Path
    data: dict[str, Any]
    models: dict[tuple[int, str], Path]
    spec: ModelSpec

    @property
    def members(self) -> list[int]:
        """Folds with models; a full fit counts as FULL and comes first."""
        return sorted({fold for fold, _ in self.models})

    @property
    def folds(self) -> list[int]:
        """Folds with models, without FULL."""
        return [fold for fold in self.members if fold != FULL]

    @property
    def folds_hash(self) -> str | None:
        path = self.folder / "identity.json"
        return read_json(path).get("identity", {}).get("content folds") if path.is_file() else None

    @property
    def missing_folds(self) -> list[int]:
        """Folds without a model; empty for a full fit alone or with folds from the table."""
        if not self.folds or self.data["columns"]["fold"] is not None:
            return []
        return [fold for fold in range(self.data["folds"]) if fold not in self.folds]

    def features(self, table: Table) -> list[FeatureSet]:
        """The stored features that it was trained on; refuse others, and images whose size has changed since."""
        names = self.data.get("features")
        if not names:
            raise Refusal(f"{self.folder} was not trained on stored features: leave out --features")
        sets, problems = [], []
        identity = read_json(self.folder / "identity.json")["identity"]
        sizes = {image: str(table.image_path(row).stat().st_size) for row, image in enumerate(table.frame["image"])}
        for number, name in enumerate(names):
            folder = FOLDER / name
            if not (folder / RECORD).is_file():
                problems.append(f"{self.folder} was trained on {folder}, which does not exist: leave out --features")
                continue
            sets.append(FeatureSet(folder, read_json(folder / RECORD)))
            if sets[-1].digest != identity[f"content features {number}"]:
                problems.append(f"{folder} has other features than {self.folder} was trained on: leave out --features")
            problems += size_problems(sets[-1], sizes)
        if problems:
            raise Refusal("\n".join(problems))
        return sets

    @property
    def outputs(self) -> list[tuple[str, str, tuple[str, ...]]]:
        return [(output.name, output.task, output.columns) for output in self.spec.outputs]


def load_run(folder: Path) -> TrainedRun:
    """Find the models of a run; refuse a folder without models, or folds that differ in outputs or snapshots."""
    config = read_config(folder)
    run, output = run_of(folder)
    if output:
        raise Refusal(f"{folder} is one output of a run, and its models predict all outputs at once: name {run}")
    folds = {int(match[1]): path for path in folder.glob("fold*") if (match := re.fullmatch(r"fold(\d+)", path.name))}
    folds[FULL] = folder / fold_name(FULL)
    models = {(fold, name): path for fold in sorted(folds) for name, path in find_models(folds[fold]).items()}
    if not models and (folder / "ensemble.json").is_file():
        raise Refusal(f"{folder} is an ensemble, which has no models of its own: name one of its runs")
    if not models and config.get("task") == "detection":
        raise Refusal(f"{folder} has the boxes of a detector that was trained elsewhere, and no models")
    if not models:
        resume = command("python", "train.py", override("run", str(folder)))
        raise Refusal(f"{folder} has no model yet: no fold is finished; resume with {resume}")
    snapshots = {fold: [name for other, name in models if other == fold] for fold, _ in models}
    first = next(iter(snapshots.values()))
    for fold, names in snapshots.items():
        if len(names) != len(first):
            raise Refusal(f"{folder}: {fold_name(fold)} has snapshots {names}, but the first fold has {first}")
    specs = {member: read_spec(path) for member, path in models.items()}
    spec = next(iter(specs.values()))
    for (fold, _), other in specs.items():
        if other.outputs != spec.outputs:
            raise Refusal(f"{folder}: the model of {fold_name(fold)} differs from the first one in task or classes")
    return TrainedRun(folder, config["data"], models, spec)


def check_together(runs: Sequence[TrainedRun], alike: bool = True) -> None:
    """Refuse runs that cannot be predicted in one pass; if they must be `alike`, also other outputs, and repeats."""
    first = runs[0]
    for index, run in enumerate(runs[1:], start=1):
        if alike and run.folder.resolve() in {other.folder.resolve() for other in runs[:index]}:
            raise Refusal(f"{run.folder} is named twice")
        for what, ours, its in (
            ("task", first.spec.task, run.spec.task),
            ("classes", first.spec.classes, run.spec.classes),
            ("outputs", first.outputs, run.outputs),
            ("data root", first.data["root"], run.data["root"]),
            *((f"columns.{key}", first.data["columns"].get(key), name) for key, name in run.data["columns"].items()),
            ("test table", first.data["test_table"], run.data["test_table"]),
            ("folds", first.folds_hash, run.folds_hash),
        ):
            if ours != its and (alike or what not in ("task", "classes", "outputs", "columns.target")):
                raise Refusal(
                    f"{run.folder} and {first.folder} differ in {what} ({its} and {ours}): predict them in two commands"
                )
