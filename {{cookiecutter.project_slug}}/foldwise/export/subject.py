"""What is exported: models of a run, their post-processing, and the pictures to measure them on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.functional import center_crop

from foldwise.bundle.sources import choose_post_processing, open_sources
from foldwise.data.batches import unpack
from foldwise.data.fields import Field, seen_spatial
from foldwise.data.holdout import FULL, GOLD
from foldwise.errors import Refusal, refuse_all
from foldwise.export.graph import CARRIED, Graph, graph_name, thresholds
from foldwise.inference.items import InputSpec, Items
from foldwise.inference.reading import load_batches
from foldwise.inference.runs import TrainedRun, load_run
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model, load_model
from foldwise.models.network import Batch
from foldwise.predictions.decisions.calibration import Platt, Temperature
from foldwise.predictions.decisions.deciding import Decision, choose
from foldwise.predictions.ground_truth import GroundTruth, read_ground_truth
from foldwise.shell import command
from foldwise.training.identity import hash_identity, read_identity

SHORTEST = 3  # of example stacks: the exporter takes an axis of length 1 for a constant


@dataclass(frozen=True)
class Subject:
    """Models of a run to export as one graph.

    Attributes:
        members: fold and snapshot of each model.
        decision: calibration and rule; None: neither.
        held: items of the ground truth to measure on: the held-out ones of the first fold.
        trained: the other items but gold ones.
        seen: some model was trained on the held-out items.
        notes: what is not in the graph, and why.
    """

    run: TrainedRun
    truth: GroundTruth
    members: list[tuple[int, str]]
    models: list[Model]
    decision: Decision | None
    held: list[int]
    trained: list[int]
    seen: bool
    notes: list[str]

    @property
    def fields(self) -> dict[str, Field]:
        return {name: field for name, field in self.models[0].samples.fields.items() if not field.train_only}

    @property
    def maps(self) -> bool:
        return self.run.spec.main.meaning.kind == "maps"

    @property
    def tiles(self) -> bool:
        return self.run.spec.fit == "tiles"

    def graph(self) -> Graph:
        return Graph(self.models, [fold for fold, _ in self.members], self.decision)

    def combine(self, predicted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the graph computes, from the networks' values (M, 1, C, ...) by output; float64."""
        combined = {}
        for name, values in predicted.items():
            folds: dict[int, list[np.ndarray]] = {}
            for (fold, _), each in zip(self.members, values[:, 0].astype(np.float64), strict=True):
                folds.setdefault(fold, []).append(each / 255 if self.tiles else each)
            means = {fold: np.mean(each, axis=0) for fold, each in folds.items()}
            if self.decision is not None and not name:
                means = {fold: self.decision.calibrate(fold, each[None])[0] for fold, each in means.items()}
            combined[name] = np.mean(list(means.values()), axis=0)
        return combined

    def decided(self, values: np.ndarray) -> np.ndarray:
        """What the metric gets of values (C,) of the main output."""
        return values if self.decision is None else self.decision.rule.decide(values[None])[0].astype(np.float64)

    def answers(self, values: np.ndarray) -> np.ndarray:
        """Answers of values (C,), or masks of (C, H, W), before any cleaning."""
        task = self.run.spec.main.meaning
        if self.maps:
            return task.answer(values)
        decided = self.decided(values)
        return decided == decided.max() if task.exclusive else decided >= 0.5

    def describe(self) -> dict[str, Any]:
        """The file's metadata."""
        spec, decision, outputs = self.run.spec, self.decision, self.run.spec.outputs
        main = spec.main
        exclusive = "argmax" if main.meaning.exclusive else "fixed-threshold"
        rule = str(decision.rule) if decision else exclusive if main.meaning.probabilities else "values"
        fixed = [0.5] * len(main.columns) if rule == "fixed-threshold" and decision is None else None
        return {
            "run": self.run.folder.resolve().name,
            "identity": hash_identity(read_identity(self.run.folder)),
            "folds": sorted({fold for fold, _ in self.members}),
            "models": [
                {"fold": fold, "snapshot": name, "sha256": model.spec.sha256}
                for (fold, name), model in zip(self.members, self.models, strict=True)
            ],
            "task": main.task,
            "classes": list(main.columns),
            "outputs": [
                {
                    "output": graph_name(output),
                    "name": output.name,
                    "task": output.task,
                    "kind": output.meaning.kind,
                    "columns": list(output.columns),
                }
                for output in outputs
            ],
            "rule": rule,
            "thresholds": thresholds(decision.rule, len(main.columns)) if decision else fixed,
            "temperature": decision and _temperatures(decision, [fold for fold, _ in self.members]),
            "size": list(spec.image_size),
            "samples": {
                "reader": spec.samples,
                "state": spec.state,
                "fields": {name: {"kind": each.kind, "ragged": each.ragged} for name, each in self.fields.items()},
                "exif": spec.exif,
                "fit": spec.fit,
                "scales": spec.scales,
                "channels": spec.network["channels"],
            },
            "notes": self.notes,
        }


def open_subject(folder: Path, folds: Sequence[str], oof: str = "oof", decision: str | None = None) -> Subject:
    """Load the models of some folds of a run.

    Args:
        folds: numbers, "all" or "full"; the pictures of the first are measured.
        oof, decision: as in `bundle.build`.
    """
    run = load_run(folder)
    if run.spec.main.meaning.kind == "vectors":
        raise Refusal("an export of retrieval would need all training images' vectors: predict with predict.py instead")
    known = {"full" if fold == FULL else str(fold): fold for fold in run.members}
    if missing := [name for name in folds if name not in known and name != "all"]:
        raise Refusal(f"{folder} has no model of fold {', '.join(missing)}; it has {', '.join(known)}")
    chosen = run.folds if "all" in folds else [known[name] for name in folds]
    members = [member for member in run.models if member[0] in chosen]
    models = [load_model(run.models[member]) for member in members]
    if len({InputSpec.of(model) for model in models}) > 1:
        raise Refusal(
            f"{folder}: the folds read differently (statistics of metadata are those of a fold's training items), so "
            f"they cannot share their inputs: export one, with --folds {members[0][0]}"
        )
    truth = read_ground_truth(folder)
    if chosen != [FULL] and run.folds_hash not in (None, truth.folds_hash):
        raise Refusal(
            f"{folder} was trained with other folds than {run.data['prepared']}/folds.csv has now, and it would be "
            "measured on its training pictures: bring that file back"
        )
    held = truth.folds >= 0 if chosen[0] == FULL else truth.folds == chosen[0]
    trained = (truth.folds != GOLD) & (np.ones_like(held) if chosen[0] == FULL else ~held)
    notes: list[str] = []
    seen = len(chosen) > 1 or FULL in chosen
    if seen:
        notes.append("scores are of pictures that a network of the graph was trained on: read only their differences")
    if run.spec.fit == "tiles":
        notes.append("the graph takes windows of the stored picture, which the reader of the file cuts and blends")
    rule = _choose(run, truth, oof, decision, notes)
    rows, others = (np.flatnonzero(each).tolist() for each in (held, trained))
    return Subject(run, truth, members, models, rule, rows, others, seen, notes)


def _choose(run: TrainedRun, truth: GroundTruth, oof: str, forced: str | None, notes: list[str]) -> Decision | None:
    """Choose and fit post-processing out of fold, as bundle.py does, where it can be a part of the graph."""
    if truth.task.kind == "maps":
        return None
    if "unit" in truth.table.frame:
        notes.append("answers are those of units: reduce the values of their pictures first, then decide")
    elif len(truth.scored_folds) < 2 or run.missing_folds or not run.folds:
        notes.append("post-processing is fitted out of fold, and not all folds have a model: none is in the graph")
    else:
        sources = open_sources([run.folder], oof)
        if (views := sources.runs[0].oof.header.tta["views"]) != ["identity"]:
            notes.append(
                f"post-processing was chosen on {len(views)} views, and the graph has one; to choose it on one: "
                f"{command('python', 'predict.py', run.folder, '--oof', '--tta', 'none')}, then export.py with "
                "--oof oof-none"
            )
        chosen = choose_post_processing(sources, truth, forced)
        name, rule = chosen.outcome.name, chosen.decision.rule
        if type(rule) in CARRIED:
            return chosen.decision
        kinds = {rule.name for rule in CARRIED}
        carried = [outcome for outcome in chosen.outcomes if outcome.name.rpartition("+")[2] in kinds]
        if forced is not None:
            names = ", ".join(outcome.name for outcome in carried)
            raise Refusal(f"--decision {forced} has no form in a graph: choose one of {names}")
        best = carried[choose(carried, truth.metric.greater_is_better)].name
        notes.append(f"the graph has post-processing {best}: {name}, which submit.py would choose, has no form in one")
        return choose_post_processing(sources, truth, best).decision
    return None


def _temperatures(decision: Decision, folds: Sequence[int]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for fold in dict.fromkeys(folds):
        calibrator = decision.calibrators.get(fold, decision.common)
        if isinstance(calibrator, Temperature):
            found[str(fold)] = float(calibrator.temperature)
        elif isinstance(calibrator, Platt):
            found[str(fold)] = {"slope": calibrator.slope.tolist(), "offset": calibrator.offset.tolist()}
    return found or None


def read_batches(subject: Subject, rows: Sequence[int], size: int) -> Iterator[Batch]:
    """Batches of items as the networks get them; of tiles, the window in the centre of each picture."""
    model = subject.models[0]
    inputs = InputSpec.of(model)
    items = Items(subject.truth.items.source, {inputs: model}, TTA(), rows, subject.tiles)
    for read in load_batches(items, size, 0, torch.device("cpu")):
        refuse_all(each.problem for each in read.bad)
        batch = unpack(read.batches[inputs])
        batch = {name: value for name, value in batch.items() if name.removesuffix("_valid") in subject.fields}
        if subject.tiles:
            spatial = seen_spatial(subject.fields)
            batch |= {name: center_crop(batch[name], model.spec.image_size) for name in spatial}
        yield batch


def example_batch(subject: Subject) -> Batch:
    """A batch of two items to export with, of stacks of at least SHORTEST pictures."""
    batch = next(read_batches(subject, [*subject.held, *subject.trained][:2], 2))
    for name, value in batch.items():
        value = torch.cat([value, value])[:2]
        if name.removesuffix("_valid") in subject.fields and subject.fields[name.removesuffix("_valid")].ragged:
            gap = value.new_zeros(len(value), max(0, SHORTEST - value.shape[1]), *value.shape[2:])
            value = torch.cat([value, gap], 1)
        batch[name] = value
    return batch
