"""The description of a bundle, `bundle.json`: models, blend, post-processing and submission format, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import FORMAT_VERSION
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.predictions.decisions import rules
from foldwise.predictions.decisions.calibration import CALIBRATORS
from foldwise.predictions.decisions.deciding import Decision
from foldwise.predictions.decisions.expected_f import Group
from foldwise.predictions.decisions.formats import FORMATS
from foldwise.predictions.decisions.masks import Cleaning
from foldwise.predictions.ensembles.blending import arithmetic, geometric, rank_mean
from foldwise.tasks import Task, find_task

SPEC = "bundle.json"
MAP_EDGE = 0.5 / 255  # as when ensemble.py blended maps of 8 bits: 0 means less than this


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """One set of weights; `snapshot` counts within the fold, `folder` is relative to the bundle."""

    fold: int
    snapshot: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class BundledRun:
    """A run, whose models are averaged over snapshots and views.

    Attributes:
        source: folder of the run, relative to where the bundle was written; for the rehearsal.
        output: name of the output that is submitted; "" the main one.
        views, mean: see `TTA.from_names`.
        weights: in the blend of each fold.
    """

    name: str
    source: str
    output: str
    views: Sequence[str]
    mean: str
    models: Sequence[BundledModel]
    weights: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class BundleSpec:
    """A bundle.

    Attributes:
        blend: "arithmetic", "geometric" or "rank", of the runs within a fold; the folds are then averaged.
        tiles: maps are predicted in tiles at the stored resolution.
        columns: names of the test table's id, image, unit and group column; None: it has none.
        fallback: (C,) the task's own, where an image cannot be used.
        decision: a fitted `Decision`, or of masks a `Cleaning`.
        layout: the submission format, of `formats.FORMATS`.
        score: out of fold, of what is bundled with its decision.
        half: weights are rounded to half precision.
        needs: modules that the host must have; `versions`: theirs and Python's where the bundle was written.
    """

    task: str
    classes: Sequence[str]
    runs: Sequence[BundledRun]
    blend: str
    tiles: bool
    columns: Mapping[str, str | None]
    fallback: np.ndarray
    decision: Any
    layout: Any
    metric: str
    score: float | None
    half: bool
    needs: Sequence[str]
    versions: Mapping[str, str]
    version: int = FORMAT_VERSION

    @property
    def maps(self) -> bool:
        return find_task(self.task).kind == "maps"

    @property
    def members(self) -> list[tuple[int, int]]:
        """(number of the run, fold) of what is blended, in the order of stored predictions."""
        return [(number, fold) for number, run in enumerate(self.runs) for fold in run.weights]

    def decide_rows(self, values: np.ndarray, units: Sequence[str]) -> np.ndarray:
        """Answers (U, C) of units, in the order of their first images.

        As ensemble.py and submit.py do: runs are blended within each fold, images of a unit averaged, each fold's blend
        calibrated, the folds averaged, and the rule decides. A unit without a usable image gets the fallback.

        Args:
            values: (N, members, C), NaN where a member did not predict.
            units: (N,) of each image; its id where there are none.
        """
        unit_of, _ = pd.factorize(np.asarray(units, object))
        predicted = np.isfinite(values).all(axis=2)
        blended = {fold: np.full((len(values), values.shape[2]), np.nan) for _, fold in self.members}
        for pattern in np.unique(predicted, axis=0):  # several only where time was short
            rows = (predicted == pattern).all(axis=1)
            present = [member for member, there in zip(self.members, pattern, strict=True) if there]
            for fold, blend in self._blend(present, values[rows][:, pattern].transpose(1, 0, 2)).items():
                blended[fold][rows] = blend
        of_units = {fold: pd.DataFrame(blend).groupby(unit_of).mean().to_numpy() for fold, blend in blended.items()}
        mean = self.decision.average(of_units)
        return self.decision.rule.decide(np.where(np.isfinite(mean), mean, self.fallback))

    def decide_mask(self, members: Sequence[tuple[int, int]], maps: np.ndarray) -> np.ndarray:
        """The mask (H, W) of the maps (A, C, H, W) of these members: blended within folds, averaged, cleaned."""
        blended = self._blend(members, maps)
        return self.decision(sum(blended.values(), np.zeros(maps.shape[1:], np.float32)) / len(blended))

    def _blend(self, members: Sequence[tuple[int, int]], values: np.ndarray) -> dict[int, np.ndarray]:
        return blend_folds(find_task(self.task), self.blend, [run.weights for run in self.runs], members, values)


def blend_folds(
    task: Task,
    blend: str,
    weights: Sequence[Mapping[int, float]],
    members: Sequence[tuple[int, int]],
    values: np.ndarray,
) -> dict[int, np.ndarray]:
    """The blend of each fold that some of the members (A,) belong to; their weights are made to sum to 1.

    Args:
        weights: of each run, by fold.
        values: (A, N, C), or (A, C, H, W) for maps.
    """
    means: dict[str, Any] = {"arithmetic": arithmetic, "rank": rank_mean}
    maps: dict[str, Any] = {"axis": 0, "edge": MAP_EDGE} if task.kind == "maps" else {}
    means["geometric"] = partial(geometric, exclusive=task.exclusive, **maps)
    blended = {}
    for fold in dict.fromkeys(fold for _, fold in members):
        own = [place for place, member in enumerate(members) if member[1] == fold]
        share = np.array([weights[members[place][0]][fold] for place in own])
        blended[fold] = means[blend](values[own], share / share.sum())
    return blended


RULES = [each for each in vars(rules).values() if isinstance(each, type) and issubclass(each, rules.Rule)]
FITTED = [type(calibrator) for each in CALIBRATORS.values() for calibrator in each]
# The only classes that reading a bundle makes: no code and no pickle is in its description.
CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (BundleSpec, BundledRun, BundledModel, Decision, Cleaning, Group, *RULES, *FITTED, *FORMATS.values())
}


def to_plain(value: Any) -> Any:
    """Instances of `CLASSES`, arrays, and containers of them as JSON can have them."""
    if isinstance(value, np.ndarray):
        return {"array": value.tolist()}
    if isinstance(value, Mapping):
        return {str(name): to_plain(each) for name, each in value.items()}
    if type(value).__name__ in CLASSES:
        arguments = {name: to_plain(getattr(value, name)) for name in signature(type(value)).parameters}
        return {"class": type(value).__name__, **arguments}
    return [to_plain(each) for each in value] if isinstance(value, list | tuple) else value


def from_plain(value: Any) -> Any:
    """What `to_plain` was given, with tuples for lists; folds, as keys, are numbers."""
    if isinstance(value, list):
        return tuple(map(from_plain, value))
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array(value["array"])
    values = {name: from_plain(each) for name, each in value.items() if name != "class"}
    if "class" in value:
        return CLASSES[value["class"]](**values)
    return {int(name) if name.lstrip("-").isdecimal() else name: each for name, each in values.items()}


def read_bundle(folder: Path) -> BundleSpec:
    """Read `bundle.json`.

    Raises:
        Refusal: the folder is no bundle, or another version of foldwise wrote it.
    """
    path = folder / SPEC
    if not path.is_file():
        raise Refusal(f"{folder} is not a bundle: it has no {SPEC}; python bundle.py makes one")
    values = read_json(path)
    if values["version"] > FORMAT_VERSION or values.get("class") != BundleSpec.__name__:
        raise Refusal(f"{path} is of another version of foldwise: write the bundle again with python bundle.py")
    return from_plain(values)
