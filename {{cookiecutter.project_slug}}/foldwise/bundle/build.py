"""Writing a bundle: weights, the code that inference needs, parameters, a notebook, and a manifest of it all."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.bundle.decision import decide
from foldwise.bundle.imports import find_imports
from foldwise.bundle.manifest import MB, room_lines, write_manifest
from foldwise.bundle.models import copy_model, needed_codes, needed_libraries, targets_of
from foldwise.bundle.notebook import write_notebook
from foldwise.bundle.parameters import decider_to_plain, layout_to_plain
from foldwise.bundle.recipe import BundledModel, BundledRun, Recipe, write_recipe
from foldwise.bundle.sources import Part, Parts, open_parts
from foldwise.bundle.values import Values, measure
from foldwise.bundle.versions import WHEELS, installed_versions
from foldwise.bundle.wheels import download_wheels
from foldwise.data.holdout import fold_name
from foldwise.errors import Refusal
from foldwise.files import check_new, new_folder
from foldwise.inference.weights import read_spec
from foldwise.predictions.decisions.deciding import Chosen
from foldwise.predictions.decisions.material import choose_layout
from foldwise.predictions.decisions.submission import read_sample
from foldwise.predictions.ground_truth import GroundTruth, read_ground_truth

CODE = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("infer.py")
READERS = ("images.py",)  # import decoders as they meet a file, when it is too late to say that one is missing


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Args:
        sources: runs, further outputs of runs (`<run>/outputs/<name>`), or one ensemble.
        out: the folder to write.
        oof: the out-of-fold predictions of the runs: decision, views, their mean and tiles come from them.
        half: round weights to half precision.
        budget_mb: refuse a larger bundle.
        decision, exclusive, sample, kind, options: as in submit.py make, see `material.Request`.
        host_packages: what `pip freeze` printed on the host: bring wheels of what is missing there.
    """

    sources: Sequence[Path]
    out: Path
    oof: str = "oof"
    half: bool = False
    budget_mb: float | None = None
    decision: str | None = None
    exclusive: Sequence[Sequence[str]] | None = None
    sample: Path | None = None
    kind: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    host_packages: Path | None = None


@dataclass(frozen=True)
class Built:
    """What was written, and what the choice of its decision was made by; `sizes` are bytes by file."""

    recipe: Recipe
    decided: Chosen
    sizes: dict[str, int]
    truth: GroundTruth


def build_bundle(request: Request) -> Built:
    """Write a bundle as a new folder, whole or not at all.

    Raises:
        Refusal: sources that cannot be bundled, a choice that is not there, or more than the budget.
    """
    check_new(request.out)
    found = open_parts(request.sources, request.oof)
    truth = read_ground_truth(request.sources[0])
    layout = _layout(request, truth)
    decided = decide(found, truth, request.decision, request.exclusive)
    score = decided.outcome.overall
    models = [part.run.models[key] for part in found.parts for key in part.snapshots]
    codes = needed_codes(models)
    targets = {target for model in models for target in targets_of(read_spec(model))}
    imports = find_imports(SCRIPT, CODE, READERS, targets, codes.values())
    needs = sorted({*imports.needs, *needed_libraries(models)})
    recipe = Recipe(
        task=truth.task.name,
        classes=list(truth.table.classes),
        runs=_runs(found, measure(found, truth)),
        blend=found.blend,
        tiles=found.tiles,
        columns={name: truth.config["data"]["columns"][name] for name in ("id", "image", "unit", "group")},
        prior=truth.task.fallback(truth.table.target, len(truth.table.classes)).tolist(),
        decision=decider_to_plain(decided.decision),
        layout=layout_to_plain(layout),
        metric=type(truth.metric).__name__,
        score=float(score) if np.isfinite(score) else None,
        half=request.half,
        needs=needs,
        versions=installed_versions(needs),
    )
    with new_folder(request.out) as folder:
        for part, run in zip(found.parts, recipe.runs, strict=True):
            for (key, _), model in zip(part.snapshots.items(), run.models, strict=True):
                copy_model(part.run.models[key], folder, model.folder, request.half, codes)
        for path in imports.files:
            target = folder / path.relative_to(CODE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        shutil.copyfile(SCRIPT, folder / SCRIPT.name)
        if request.host_packages is not None:
            download_wheels(needs, request.host_packages, folder / WHEELS)
        write_recipe(folder, recipe)
        write_notebook(folder, request.out.resolve().name)
        sizes = write_manifest(folder)
        _check_budget(sizes, request.budget_mb)
    return Built(recipe, decided, sizes, truth)


def _layout(request: Request, truth: GroundTruth) -> Any:
    """The format, with the columns of the sample submission."""
    sample = None if request.sample is None else read_sample(request.sample)
    layout = choose_layout(truth, sample, request.sample, request.kind, request.options)
    if sample is not None and set(sample) != set(layout.columns):
        raise Refusal(
            f"{request.sample} has the columns {', '.join(sample)}, and this would write {', '.join(layout.columns)}"
        )
    return layout


def _runs(found: Parts, values: Sequence[Values]) -> list[BundledRun]:
    names = [part.run.folder.resolve().name for part in found.parts]
    unique = [f"{name}-{number}" if names.count(name) > 1 else name for number, name in enumerate(names)]
    return [
        BundledRun(
            name=name,
            source=os.path.relpath(part.run.folder),  # the bundle is uploaded, and this machine's folders are not
            output=part.output.name,
            views=part.oof.header.tta["views"],
            mean=part.oof.header.tta["mean"],
            models=_models(name, part),
            weights=part.weights,
            value=value.run,
            view_values=value.views,
            snapshot_values=value.snapshots,
        )
        for name, part, value in zip(unique, found.parts, values, strict=True)
    ]


def _models(name: str, part: Part) -> list[BundledModel]:
    return [
        BundledModel(fold=fold, snapshot=place, folder=f"models/{name}/{fold_name(fold)}/{snapshot}")
        for (fold, snapshot), place in part.snapshots.items()
    ]


def _check_budget(sizes: dict[str, int], budget_mb: float | None) -> None:
    total = sum(sizes.values()) / MB
    if budget_mb is not None and total > budget_mb:
        lines = "\n".join(room_lines(sizes))
        raise Refusal(
            f"the bundle has {total:.1f} MB, more than --budget-mb {budget_mb:g}:\n{lines}\n"
            "--half takes half of the models' room; fewer runs or an ensemble with --use greedy take less"
        )
