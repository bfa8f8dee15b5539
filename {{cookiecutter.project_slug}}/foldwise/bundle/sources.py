"""What a bundle is made of: runs whose mean is taken, or those of an ensemble with its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.inference.runs import TrainedRun, check_together, open_run
from foldwise.inference.tta import TTA
from foldwise.predictions.sources import output_folder
from foldwise.predictions.store import Predictions, read_predictions
from foldwise.tasks.outputs import Output, run_of

ENSEMBLE = "ensemble.json"


@dataclass(frozen=True)
class Part:
    """A run, the output of it that answers, that one's out-of-fold predictions, and its weight in the blend of each
    fold, above 0."""

    run: TrainedRun
    output: Output
    oof: Predictions
    weights: dict[int, float]

    @property
    def source(self) -> Path:
        """Where predictions of the output lie."""
        return output_folder(self.run.folder, self.output)

    @property
    def tiles(self) -> bool:
        return bool(self.oof.header.tta.get("tiles"))

    @property
    def snapshots(self) -> dict[tuple[int, str], int]:
        """The place of each (fold, snapshot) that is bundled: those that predicted out of fold."""
        models = [model for model in self.run.models if model[0] in self.weights]
        measured = set(self.oof.frame["snapshot"])
        chosen = [model for model in models if model[1] in measured] or models
        names = {fold: [name for other, name in chosen if other == fold] for fold in self.weights}
        return {model: names[model[0]].index(model[1]) for model in chosen}


class Parts(NamedTuple):
    """The parts, and how they are blended within a fold: "arithmetic", "geometric" or "rank"."""

    parts: list[Part]
    blend: str

    @property
    def tiles(self) -> bool:
        """Whether pictures are cut into tiles, as they were when the runs predicted out of fold."""
        return self.parts[0].tiles


def open_parts(folders: Sequence[Path], oof: str) -> Parts:
    """Find the models behind sources.

    Args:
        folders: one ensemble, or runs, or further outputs of runs.
        oof: "oof", or a name in the `predictions/` of the runs; an ensemble says by itself which it was made of.

    Raises:
        Refusal: they do not go together, or are what no bundle can have; says what to do.
    """
    ensembles = [folder for folder in folders if (folder / ENSEMBLE).is_file()]
    if ensembles and len(folders) > 1:
        raise Refusal(f"{ensembles[0]} is an ensemble: put all together with ensemble.py, and bundle the outcome")
    if ensembles:
        found = _of_ensemble(folders[0])
    else:
        equal = 1 / len(folders)
        parts = [_open_part(folder, folder / ("oof" if oof == "oof" else f"predictions/{oof}")) for folder in folders]
        found = Parts([replace(part, weights=dict.fromkeys(part.run.members, equal)) for part in parts], "arithmetic")
    check_together([part.run for part in found.parts])
    problems = [problem for part in found.parts for problem in _problems(part)]
    problems += [
        f"{part.oof.folder} and {found.parts[0].oof.folder}: one is in tiles and the other is not; predict both alike"
        for part in found.parts
        if part.tiles != found.tiles
    ]
    if problems:
        raise Refusal("\n".join(problems))
    return found


def _of_ensemble(folder: Path) -> Parts:
    made = read_json(folder / ENSEMBLE)
    method, weights = made["method"], made["weights"]
    if weights is None:
        raise Refusal(
            f"{folder} is a second level ({method}), whose fitted estimators could only be bundled as pickles: make "
            f"an ensemble with --use mean, greedy or simplex"
        )
    blend = method if method in ("geometric", "rank") else "arithmetic"
    parts: list[Part] = []
    for source in made["sources"]:
        own = dict(zip(made["folds"], weights[source["name"]], strict=True))
        own = {fold: weight for fold, weight in own.items() if weight > 0}
        path = Path(source["folder"])
        if not (path / ENSEMBLE).is_file():
            parts += [replace(_open_part(path, Path(source["oof"])), weights=own)] if own else []
            continue
        inner = _of_ensemble(path)
        if {blend, inner.blend} != {"arithmetic"}:
            raise Refusal(f"{folder} blends the ensemble {path}, and not both by weights: make one of all runs")
        both = [{fold: own[fold] * part.weights[fold] for fold in part.weights if fold in own} for part in inner.parts]
        parts += [replace(part, weights=each) for part, each in zip(inner.parts, both, strict=True) if each]
    return Parts(parts, blend)


def _open_part(source: Path, oof: Path) -> Part:
    folder, name = run_of(source)
    run = open_run(folder)
    outputs = {output.name: output for output in run.spec.outputs}
    if name not in outputs:
        raise Refusal(f"{source}: the models of {folder} have no output {name}")
    return Part(run, outputs[name], read_predictions(oof), {})


def _problems(part: Part) -> list[str]:
    tta, folder = part.oof.header.tta, part.oof.folder
    if any("#" in name for name in tta["views"]):
        return [
            f"{folder} has random draws, which need albumentations on the host: take views (predict.py --oof --tta)"
        ]
    try:
        TTA.from_names(tta["views"], tta["mean"])
    except Refusal as error:
        return [f"{folder}: {error}; a bundle needs views and a mean as predict.py --oof --tta makes them"]
    without = sorted(set(part.weights) - set(part.run.members))
    return [f"{part.run.folder}: folds {without} have no model"] if without else []
