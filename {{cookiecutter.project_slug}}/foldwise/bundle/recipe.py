"""What a bundle says of itself, `bundle.json`: its models, how they are put together, what decides, what it writes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foldwise import FORMAT_VERSION
from foldwise.bundle.parameters import Decider, decider_from_plain, layout_from_plain
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.predictions.ensembles.blending import arithmetic, geometric, rank_mean
from foldwise.tasks import Task, find_task

RECIPE = "bundle.json"
MAP_EDGE = 0.5 / 255  # as when ensemble.py blended maps of 8 bits: 0 means less than this


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """One set of weights: `snapshot` is the place among the fold's snapshots, `folder` is in the bundle."""

    fold: int
    snapshot: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class BundledRun:
    """A run: its models are averaged over snapshots and views.

    Attributes:
        source: the folder of the run from where the bundle was written, for the rehearsal.
        output: the output of the models that answers, by name; "" the main one.
        views, mean: the TTA, see `TTA.from_names`.
        weights: of its model in the blend of each fold, by fold.
        value: what the out-of-fold score of the blend loses without the run; None where nobody knows.
        view_values, snapshot_values: the same of one view or snapshot, in the order of `views` and of the snapshots.
    """

    name: str
    source: str
    output: str
    views: Sequence[str]
    mean: str
    models: Sequence[BundledModel]
    weights: dict[int, float]
    value: float | None = None
    view_values: Sequence[float | None] = ()
    snapshot_values: Sequence[float | None] = ()

    @property
    def snapshots(self) -> int:
        return 1 + max(model.snapshot for model in self.models)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A bundle.

    Attributes:
        blend: "arithmetic", "geometric" or "rank", of the runs within a fold; the folds are then averaged.
        tiles: maps are made in tiles at the stored resolution.
        columns: the id, image and (or None) unit and group column of the test table.
        prior: (C,) the task's fallback, such as the share of each class in the training table, where an image cannot be
            used.
        decision, layout: as `parameters` reads them.
        score: out of fold, of what is bundled with its decision.
        half: whether the weights were rounded to half precision.
        needs: module names that the host must have; `versions` of them and of Python, where the bundle was made.
    """

    task: str
    classes: Sequence[str]
    runs: Sequence[BundledRun]
    blend: str
    tiles: bool
    columns: dict[str, str | None]
    prior: Sequence[float]
    decision: dict[str, Any]
    layout: dict[str, Any]
    metric: str
    score: float | None
    half: bool
    needs: Sequence[str]
    versions: dict[str, str]
    version: int = FORMAT_VERSION

    @property
    def meaning(self) -> Task:
        """The task."""
        return find_task(self.task)

    @property
    def decider(self) -> Decider:
        return decider_from_plain(self.decision)

    @property
    def format(self) -> Any:
        """The submission format, see `decisions.formats`."""
        return layout_from_plain(self.layout, self.classes)

    @property
    def members(self) -> list[tuple[int, int]]:
        """(number of the run, fold), as the columns of stored predictions."""
        return [(number, fold) for number, run in enumerate(self.runs) for fold in run.weights]

    def blend_folds(self, members: Sequence[tuple[int, int]], values: np.ndarray) -> dict[int, np.ndarray]:
        """The blend of each fold that some of the members (A,) belong to; weights are made to sum to 1 again.

        Args:
            values: (A, N, C), or (A, C, H, W) for maps.
        """
        return blend_folds(self.meaning, self.blend, [run.weights for run in self.runs], members, values)


def blend_folds(
    task: Task,
    blend: str,
    weights: Sequence[dict[int, float]],
    members: Sequence[tuple[int, int]],
    values: np.ndarray,
) -> dict[int, np.ndarray]:
    """As `Recipe.blend_folds`; `weights` are those of each run, by fold."""
    if blend == "geometric":
        maps: dict[str, Any] = {"axis": 0, "edge": MAP_EDGE} if task.kind == "maps" else {}
        mean: Any = partial(geometric, exclusive=task.exclusive, **maps)
    else:
        mean = {"arithmetic": arithmetic, "rank": rank_mean}[blend]
    blended = {}
    for fold in dict.fromkeys(fold for _, fold in members):
        own = [place for place, member in enumerate(members) if member[1] == fold]
        share = np.array([weights[members[place][0]][fold] for place in own])
        blended[fold] = mean(values[own], share / share.sum())
    return blended


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write `bundle.json`."""
    write_json(folder / RECIPE, asdict(recipe))


def read_recipe(folder: Path) -> Recipe:
    """Read `bundle.json`.

    Raises:
        Refusal: the folder is no bundle, or one of a newer version.
    """
    path = folder / RECIPE
    if not path.is_file():
        raise Refusal(f"{folder} is not a bundle: it has no {RECIPE}; python bundle.py makes one")
    values = read_json(path)
    if values["version"] > FORMAT_VERSION:
        raise Refusal(f"{path} has version {values['version']}, and this code reads up to {FORMAT_VERSION}")
    runs = [
        BundledRun(
            **{
                **run,
                "models": [BundledModel(**model) for model in run["models"]],
                "weights": {int(fold): weight for fold, weight in run["weights"].items()},
            }
        )
        for run in values["runs"]
    ]
    return Recipe(**{**values, "runs": runs})
