"""Description of a bundle, `bundle.json`: models, blend, post-processing and submission format, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import FORMAT_VERSION
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.predictions.decisions import clipping, number_rules, rules
from foldwise.predictions.decisions.calibration import CALIBRATORS
from foldwise.predictions.decisions.deciding import Decision
from foldwise.predictions.decisions.expected_f import Group
from foldwise.predictions.decisions.formats import FORMATS
from foldwise.predictions.decisions.layers import ClassCuts, Unchanged
from foldwise.predictions.decisions.masks import Cleaning
from foldwise.predictions.ensembles.blending import MAP_EDGE, arithmetic, geometric, rank_mean
from foldwise.predictions.ensembles.extra import Extra
from foldwise.predictions.ensembles.stack import Stacks
from foldwise.predictions.finder import Finder
from foldwise.tasks import Task, find_task

SPEC = "bundle.json"
STACK = "stack"  # the blend of a fitted stack


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """One set of weights; `snapshot` counts within the fold, `folder` is relative to the bundle."""

    fold: int
    snapshot: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class BundledRun:
    """A bundled run; its models are averaged over snapshots and views.

    Attributes:
        source: run folder for the rehearsal, relative to where bundle.py was run.
        output: name of the output to submit; "" is the main one.
        views, mean: see `TTA.from_names`.
        weights: in the blend, by fold.
        columns: number of its values, if it has others than the classes.
        feature: its values are further inputs of stacking.
    """

    name: str
    source: str
    output: str
    views: Sequence[str]
    mean: str
    models: Sequence[BundledModel]
    weights: Mapping[int, float]
    columns: int | None = None
    feature: bool = False


@dataclass(frozen=True, kw_only=True)
class BundledPresence:
    """Output of a bundled run, by number, that predicts which classes of the masks an image has: those in `columns`."""

    run: int
    output: str
    columns: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class BundleSpec:
    """A bundle.

    Attributes:
        blend: "arithmetic", "geometric", "rank" or STACK, of the runs within a fold; the folds are then averaged.
        tiles: predict maps in tiles at the stored resolution.
        columns: names of the test table's id, image, unit and group column, or None.
        fallback: (C,) prediction for images that cannot be used.
        decision: a fitted `Decision`, or how masks are made: `Cleaning`, `ClassCuts` or `Unchanged`; of `first`, the
            `Finder` of boxes.
        layout: submission format, one of `formats.FORMATS`.
        presence: what the decision about masks also needs; None: nothing.
        score: out-of-fold score of the bundle, with its post-processing.
        half: weights are rounded to half precision.
        needs: modules that the host must have.
        versions: of these modules and Python where the bundle was written.
        stacks: of the blend STACK, in files of their own.
        reduction: of the images of a unit, see `Task.of_units`.
        runtime: of the networks, one of `passes.ENGINES`.
        first: the networks whose masks give the boxes that these read; it has no layout.
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
    presence: BundledPresence | None = None
    version: int = FORMAT_VERSION
    stacks: Stacks | None = None
    reduction: str = "mean"
    runtime: str = "torch"
    first: "BundleSpec | None" = None

    @property
    def maps(self) -> bool:
        return find_task(self.task).kind == "maps"

    @property
    def members(self) -> list[tuple[int, int]]:
        """(run number, fold) of what is blended, in the order of stored predictions."""
        return [(number, fold) for number, run in enumerate(self.runs) for fold in run.weights]

    @property
    def widths(self) -> list[int]:
        """Number of values of each of `members`."""
        return [self.runs[run].columns or len(self.classes) for run, _ in self.members]

    def read_extra(self, frame: pd.DataFrame, path: Path) -> Extra | None:
        """Read the further inputs of stacking from a table; refuse missing columns. None without stacking."""
        if self.stacks is None:
            return None
        if missing := [name for name in self.stacks.columns if name not in frame]:
            raise Refusal(f"{path} has no column {', '.join(missing)}, which the stacking of this bundle reads")
        return Extra.of(frame, self.stacks.encoder, self.stacks.group)

    def decide_rows(self, values: np.ndarray, units: Sequence[str], extra: Extra | None = None) -> np.ndarray:
        """Answer for each unit (U, C), in the order of their first images, as ensemble.py and submit.py do.

        Blend the runs of each fold, reduce the images of a unit, calibrate each fold, average the folds, and apply the
        decision rule. A unit without a usable image gets the fallback.

        Args:
            values: (N, members, columns), NaN where a member did not predict, and beyond its `widths`.
            units: (N,) unit of each image, or its id.
            extra: from `read_extra`.
        """
        unit_of, _ = pd.factorize(np.asarray(units, object))
        each = [np.isfinite(values[:, member, :width]).all(axis=1) for member, width in enumerate(self.widths)]
        predicted = np.stack(each, axis=1)
        if self.stacks is not None and extra is not None:
            blended = {fold: self._stack(fold, values, predicted, extra) for fold in self.stacks.folds}
        else:
            blended = self._blend_rows(values, predicted)
        reduce = find_task(self.task).of_units
        of_units = {fold: reduce(blend, unit_of, self.reduction) for fold, blend in blended.items()}
        mean = self.decision.average(of_units)
        return self.decision.rule.decide(np.where(np.isfinite(mean), mean, self.fallback))

    def _stack(self, fold: int, values: np.ndarray, predicted: np.ndarray, extra: Extra) -> np.ndarray:
        """Predict (N, C) with the stack of a fold; NaN for rows that lack one of its members."""
        assert self.stacks is not None
        inside = [(m, self.runs[run].feature) for m, (run, of_fold) in enumerate(self.members) if of_fold == fold]
        rows = predicted[:, [m for m, _ in inside]].all(axis=1)
        stacked = np.full((len(values), len(self.classes)), np.nan)
        if rows.any():
            features = [values[rows, m, : self.widths[m]] for m, feature in inside if feature]
            sources = np.stack([values[rows, m, : len(self.classes)] for m, feature in inside if not feature])
            extra = extra.take(rows).beside(np.hstack([np.zeros((rows.sum(), 0), np.float32), *features]))
            stacked[rows] = self.stacks.folds[fold].predict(sources, extra)
        return stacked

    def _blend_rows(self, values: np.ndarray, predicted: np.ndarray) -> dict[int, np.ndarray]:
        blended = {fold: np.full((len(values), values.shape[2]), np.nan) for _, fold in self.members}
        for pattern in np.unique(predicted, axis=0):  # more than one only if models were dropped to save time
            rows = (predicted == pattern).all(axis=1)
            present = [member for member, used in zip(self.members, pattern, strict=True) if used]
            for fold, blend in self._blend(present, values[rows][:, pattern].transpose(1, 0, 2)).items():
                blended[fold][rows] = blend
        return blended

    def decide_mask(
        self, members: Sequence[tuple[int, int]], maps: np.ndarray, present: np.ndarray | None = None
    ) -> np.ndarray:
        """Make the mask, (H, W) or per class (C, H, W), from maps (A, C, H, W) of `members`: blend within folds,
        average, clean.

        Args:
            present: probabilities of the columns of `presence`, if it is given and known.
        """
        blended = self._blend(members, maps)
        mean = sum(blended.values(), np.zeros(maps.shape[1:], np.float32)) / len(blended)
        if self.presence is None or present is None:
            return self.decision(mean)
        of_class = dict(zip(self.presence.columns, present.tolist(), strict=True))
        return self.decision(mean, np.array([of_class.get(name, 1.0) for name in self.classes]))

    def _blend(self, members: Sequence[tuple[int, int]], values: np.ndarray) -> dict[int, np.ndarray]:
        return blend_folds(find_task(self.task), self.blend, [run.weights for run in self.runs], members, values)


def blend_folds(
    task: Task,
    blend: str,
    weights: Sequence[Mapping[int, float]],
    members: Sequence[tuple[int, int]],
    values: np.ndarray,
) -> dict[int, np.ndarray]:
    """Blend the predictions of `members` within each fold, with weights scaled to sum to 1.

    Args:
        weights: of each run, by fold.
        values: (A, N, C), or (A, C, H, W) for maps.
    """
    means: dict[str, Any] = {"arithmetic": arithmetic, "rank": rank_mean}
    maps: dict[str, Any] = {"axis": 0, "edge": MAP_EDGE} if task.kind == "maps" else {}
    means["geometric"] = partial(geometric, exclusive=task.exclusive, **maps)
    blended = {}
    for fold in dict.fromkeys(fold for _, fold in members):
        in_fold = [index for index, member in enumerate(members) if member[1] == fold]
        share = np.array([weights[members[index][0]][fold] for index in in_fold])
        blended[fold] = means[blend](values[in_fold], share / share.sum())
    return blended


FOUND = [*vars(rules).values(), *vars(number_rules).values(), *vars(clipping).values()]
RULES = [each for each in FOUND if isinstance(each, type) and issubclass(each, rules.Rule)]
FITTED = [type(calibrator) for each in CALIBRATORS.values() for calibrator in each]
# The only classes that `read_bundle` instantiates: bundle.json holds no code and no pickle.
CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        BundleSpec,
        BundledRun,
        BundledModel,
        BundledPresence,
        Decision,
        Cleaning,
        ClassCuts,
        Unchanged,
        Finder,
        Group,
        *RULES,
        *FITTED,
        *FORMATS.values(),
    )
}


def to_plain(value: Any) -> Any:
    """Convert instances of `CLASSES`, arrays, and containers of them to JSON values."""
    if isinstance(value, np.ndarray):
        return {"array": value.tolist()}
    if isinstance(value, Mapping):
        return {str(name): to_plain(each) for name, each in value.items()}
    if type(value).__name__ in CLASSES:
        arguments = {name: to_plain(getattr(value, name)) for name in signature(type(value)).parameters}
        return {"class": type(value).__name__, **arguments}
    return [to_plain(each) for each in value] if isinstance(value, list | tuple) else value


def from_plain(value: Any) -> Any:
    """Invert `to_plain`; lists become tuples, and numeric keys (folds) become int."""
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
    """Read `bundle.json`; refuse other folders and versions."""
    path = folder / SPEC
    if not path.is_file():
        raise Refusal(f"{folder} is not a bundle: it has no {SPEC}; python bundle.py makes one")
    values = read_json(path)
    if values["version"] > FORMAT_VERSION or values.get("class") != BundleSpec.__name__:
        raise Refusal(f"{path} is from another version of foldwise: write the bundle again with python bundle.py")
    spec = from_plain(values)
    return replace(spec, stacks=Stacks.load(folder)) if spec.blend == STACK else spec
