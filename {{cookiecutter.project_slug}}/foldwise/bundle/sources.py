"""Sources of a bundle: runs with equal weights, or an ensemble with its weights or stack; and their post-processing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldwise.bundle.spec import STACK, BundledPresence, blend_folds
from foldwise.data.boxes import read_origin
from foldwise.data.problems import some
from foldwise.errors import Refusal
from foldwise.files import read_json, sha256_file
from foldwise.inference.runs import TrainedRun, check_together, load_run
from foldwise.inference.tta import TTA
from foldwise.predictions.decisions.deciding import Chosen, choose_decision
from foldwise.predictions.decisions.layers import choose_masks
from foldwise.predictions.decisions.presence import presence_by_id
from foldwise.predictions.ensembles.stack import DESCRIPTION
from foldwise.predictions.finder import Finder
from foldwise.predictions.ground_truth import GroundTruth, align, check_predictions
from foldwise.predictions.pseudo.teachers import IDENTITY
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.store import Predictions, iter_average_maps, read_predictions
from foldwise.tasks.outputs import Output, run_of

ENSEMBLE = "ensemble.json"


@dataclass(frozen=True)
class RunSource:
    """A run, the output to submit, its out-of-fold predictions, and its positive weights by fold.

    With `feature`, the output is a further input of stacking.
    """

    run: TrainedRun
    output: Output
    oof: Predictions
    weights: dict[int, float]
    feature: bool = False

    @property
    def tiles(self) -> bool:
        return bool(self.oof.header.tta.get("tiles"))

    @property
    def snapshots(self) -> dict[tuple[int, str], int]:
        """Bundled (fold, snapshot) pairs, which predicted out of fold, with a number that counts within the fold."""
        models = [model for model in self.run.models if model[0] in self.weights]
        measured = set(self.oof.frame["snapshot"])
        chosen = [model for model in models if model[1] in measured] or models
        names = {fold: [name for other, name in chosen if other == fold] for fold in self.weights}
        return {model: names[model[0]].index(model[1]) for model in chosen}


class Sources(NamedTuple):
    """Runs, how to blend them within a fold (see `BundleSpec`), and the ensemble with the stacks."""

    runs: list[RunSource]
    blend: str
    stacked: Path | None = None


def open_sources(folders: Sequence[Path], oof: str) -> Sources:
    """Find the runs, weights and out-of-fold predictions to bundle.

    Args:
        folders: one ensemble, or runs or further outputs of runs.
        oof: "oof", or a name in the runs' `predictions/`; ignored for an ensemble, which records its own.
    """
    ensembles = [folder for folder in folders if (folder / ENSEMBLE).is_file()]
    if ensembles and len(folders) > 1:
        raise Refusal(f"{ensembles[0]} is an ensemble: combine all sources with ensemble.py, and bundle the result")
    if ensembles:
        sources = _of_ensemble(folders[0])
    else:
        paths = [folder / ("oof" if oof == "oof" else f"predictions/{oof}") for folder in folders]
        runs = [_open_source(folder, path) for folder, path in zip(folders, paths, strict=True)]
        equal = [dict.fromkeys(source.run.members, 1 / len(runs)) for source in runs]
        sources = Sources([replace(run, weights=each) for run, each in zip(runs, equal, strict=True)], "arithmetic")
    check_together([source.run for source in sources.runs], alike=sources.stacked is None)
    problems = [problem for source in sources.runs if (problem := _problem(source, sources.runs[0]))]
    if problems:
        raise Refusal("\n".join(problems))
    return sources


def open_first(runs: Sequence[RunSource]) -> tuple[RunSource, Finder] | None:
    """The run in whose masks the boxes of the runs' tables were found, and how; None if they come from elsewhere."""
    tables = [Path(source.run.data["table"]) for source in runs]
    origins = [read_origin(table) for table in tables]
    if any(origin != origins[0] for origin in origins):
        raise Refusal(f"the boxes of {some(sorted(set(map(str, tables))))} were found differently: bundle one of them")
    origin = origins[0]
    if origin is None:
        return None
    run = Path(origin["run"])
    if not (run / IDENTITY).is_file() or sha256_file(run / IDENTITY)[:16] != origin["identity"]:
        raise Refusal(
            f"the boxes of {tables[0]} were found in masks of {run}, which a bundle needs and which is not here or has "
            "changed: bundle where it is, or find the boxes again with tools/crop.py"
        )
    finder = Finder(**{each.name: origin[each.name] for each in fields(Finder) if each.name in origin})
    return open_sources([run], "oof").runs[0], finder


def _of_ensemble(folder: Path) -> Sources:
    made = read_json(folder / ENSEMBLE)
    method, weights = made["method"], made["weights"]
    if weights is None:
        return _of_stack(folder, made)
    blend = method if method in ("geometric", "rank") else "arithmetic"
    runs: list[RunSource] = []
    for source in made["sources"]:
        path, by_fold = Path(source["folder"]), zip(made["folds"], weights[source["name"]], strict=True)
        outer = {fold: weight for fold, weight in by_fold if weight > 0}
        if outer and not (path / ENSEMBLE).is_file():
            runs.append(replace(_open_source(path, Path(source["oof"])), weights=outer))
        elif outer:
            inner = _of_ensemble(path)
            if {blend, inner.blend} != {"arithmetic"}:
                raise Refusal(
                    f"{folder} contains the ensemble {path}, and one of them is not a weighted mean: make one ensemble "
                    "of all runs"
                )
            for run in inner.runs:
                product = {fold: outer[fold] * weight for fold, weight in run.weights.items() if fold in outer}
                runs += [replace(run, weights=product)] if product else []
    return Sources(runs, blend)


def _of_stack(folder: Path, made: dict[str, Any]) -> Sources:
    if not (folder / DESCRIPTION).is_file():
        raise Refusal(
            f"{folder} uses stacking ({made['method']}), but has no {DESCRIPTION} with the fitted models: make the "
            "ensemble again with ensemble.py"
        )
    runs: list[RunSource] = []
    for kind in ("sources", "features"):
        for each in made[kind]:
            path = Path(each["folder"])
            if (path / ENSEMBLE).is_file():
                raise Refusal(f"{folder} stacks the ensemble {path}: make one of runs, which a bundle can predict with")
            opened = _open_source(path, Path(each["oof"]))
            runs.append(replace(opened, weights=dict.fromkeys(made["folds"], 1.0), feature=kind == "features"))
    return Sources(runs, STACK, folder)


def _open_source(source: Path, oof: Path) -> RunSource:
    folder, name = run_of(source)
    run = load_run(folder)
    outputs = {output.name: output for output in run.spec.outputs}
    if name not in outputs:
        raise Refusal(f"{source}: the models of {folder} have no output {name}")
    return RunSource(run, outputs[name], read_predictions(oof), {})


def _problem(source: RunSource, first: RunSource) -> str:
    tta, folder = source.oof.header.tta, source.oof.folder
    if any("#" in name for name in tta["views"]):
        return f"{folder} has random draws, which a bundle cannot make: choose a TTA of views (predict.py --oof --tta)"
    try:
        TTA.from_names(tta["views"], tta["mean"])
    except Refusal as error:
        return f"{folder}: {error}; make predictions with python predict.py --oof --tta"
    if missing := sorted(set(source.weights) - set(source.run.members)):
        return f"{source.run.folder}: folds {missing} have no model"
    if source.tiles != first.tiles:
        return f"{folder} and {first.oof.folder}: one is in tiles and the other is not; predict both the same way"
    return ""


def open_presence(sources: Sources, folder: Path, truth: GroundTruth) -> BundledPresence:
    """Find the output of a bundled run that predicts the presence of classes; refuse any other source."""
    if truth.task.kind != "maps":
        raise Refusal(f"--presence is for masks, but the task is {truth.task.name}")
    run, name = run_of(folder)
    numbers = [number for number, each in enumerate(sources.runs) if each.run.folder.resolve() == run.resolve()]
    outputs = {output.name: output for number in numbers[:1] for output in sources.runs[number].run.spec.outputs}
    if not name or name not in outputs:
        raise Refusal(
            f"--presence {folder} is no head of a bundled run, and a bundle predicts presence in the same pass as the "
            "masks: train them in one run, with outputs.presence, and name runs/<name>/outputs/presence"
        )
    return BundledPresence(run=numbers[0], output=name, columns=outputs[name].columns)


def choose_post_processing(
    sources: Sources,
    truth: GroundTruth,
    decision: str | None = None,
    exclusive: Sequence[Sequence[str]] | None = None,
    sums: Sequence[Sequence[str]] = (),
    presence: BundledPresence | None = None,
) -> Chosen:
    """Compare and fit post-processing out of fold on what is bundled, as submit.py does."""
    for source in sources.runs:
        if not source.feature:
            check_predictions(source.oof, truth)
    if truth.task.kind == "maps":
        found = None
        if presence is not None:
            masks = sources.runs[presence.run].oof
            path = Path("oof") if masks.folder.name == "oof" else Path("predictions") / masks.folder.name
            predictions = read_predictions(sources.runs[presence.run].run.folder / "outputs" / presence.output / path)
            found = presence_by_id(predictions, truth, masks)
        return choose_masks(truth.metric, blended_maps(sources, truth), decision, found)
    rows, predicted = blended_rows(sources, truth)
    scored = by_unit(truth.table, rows, predicted, truth.folds[rows])
    return choose_decision(truth.metric, scored, sources.blend == "rank", exclusive, decision, sums=sums)


def blended_rows(sources: Sources, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Blend the out-of-fold predictions: row indices (N,) of the table, and values (N, C)."""
    if sources.stacked is not None:
        return align(read_predictions(sources.stacked / "oof"), truth)
    aligned = [align(source.oof, truth) for source in sources.runs]
    rows = aligned[0][0]
    values = np.stack([predicted for _, predicted in aligned]).astype(np.float32)
    blended = np.zeros(values.shape[1:])
    for fold in np.unique(truth.folds[rows]).tolist():
        in_fold = truth.folds[rows] == fold
        blended[in_fold] = _blend(sources, truth, fold, values[_runs_of_fold(sources, fold)][:, in_fold])
    return rows, blended


def blended_maps(sources: Sources, truth: GroundTruth) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """Yield (id, mask, blended out-of-fold probability (C, H, W), fold), one image at a time."""
    for fold in truth.scored_folds:
        rows = np.flatnonzero(truth.folds == fold).tolist()
        ids = [truth.table.ids[row] for row in rows]
        runs = _runs_of_fold(sources, fold)
        maps = zip(*(iter_average_maps(sources.runs[run].oof, ids) for run in runs), strict=True)
        for row, id, of_runs in zip(rows, ids, maps, strict=True):
            blended = _blend(sources, truth, fold, np.stack([probability for _, probability in of_runs]))
            yield id, truth.table.read_mask(row), blended, fold


def _runs_of_fold(sources: Sources, fold: int) -> list[int]:
    return [number for number, source in enumerate(sources.runs) if fold in source.weights]


def _blend(sources: Sources, truth: GroundTruth, fold: int, values: np.ndarray) -> np.ndarray:
    members = [(number, fold) for number in _runs_of_fold(sources, fold)]
    return blend_folds(truth.task, sources.blend, [each.weights for each in sources.runs], members, values)[fold]
