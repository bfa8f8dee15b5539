"""What a bundle is to predict: read and checked before anything is predicted."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.bundle.answers import decide_mask, decide_rows
from foldwise.bundle.inputs import Inputs, read_inputs
from foldwise.bundle.manifest import MANIFEST
from foldwise.bundle.parameters import layout_to_plain
from foldwise.bundle.recipe import Recipe, read_recipe
from foldwise.data.problems import some
from foldwise.data.samples import Rows
from foldwise.errors import Refusal
from foldwise.files import check_new, sha256_file
from foldwise.inference.weights import load_samples
from foldwise.predictions.decisions.submission import read_sample


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; see infer.py --help. `time_limit` is in seconds."""

    test: Path
    images: Path | None
    sample: Path | None
    out: Path
    time_limit: float | None = None
    batch_size: int = 32
    workers: int = 2
    device: str = "auto"
    precision: str = "32"
    keep_parts: bool = False


@dataclass(frozen=True)
class Job:
    """What is read and checked before anything is predicted: all of it about the rows that will be written."""

    recipe: Recipe
    layout: Any
    inputs: Inputs
    sample: pd.DataFrame | None
    submission: Path


def open_job(bundle: Path, request: Request) -> Job:
    """Read and check everything that can be wrong before hours of predicting.

    Raises:
        Refusal: whatever is wrong with the test, the sample submission, or the format.
    """
    recipe = read_recipe(bundle)
    layout = recipe.format
    submission = request.out / f"submission{layout.suffix}"
    check_new(submission)
    sample = None if request.sample is None else read_sample(request.sample)
    names = set() if sample is None else set(sample.iloc[:, 0])
    readers = [load_samples(bundle / run.models[0].folder) for run in recipe.runs]
    inputs = read_inputs(request.test, request.images, recipe.columns, names, readers[0])
    for reader in readers[1:]:
        Rows(inputs.table, reader)  # refuses what lacks a column
    if sample is not None:
        layout = replace(layout, id_column=sample.columns[0], value_column=sample.columns[1])
        if set(sample) != set(layout.columns):
            raise Refusal(f"{request.sample} has the columns {', '.join(sample)}, not {', '.join(layout.columns)}")
        inputs = _asked_for(inputs, layout, names, request.sample)
    _try_decision(recipe, layout)
    return Job(recipe, layout, inputs, sample, submission)


def _try_decision(recipe: Recipe, layout: Any) -> None:
    """Decide something made up: what decides last must not be what is missing, after hours."""
    shape = (len(recipe.members), len(recipe.classes))
    try:
        if recipe.meaning.kind == "maps":
            maps = np.full((*shape, 4, 4), 1 / len(recipe.classes), np.float32)
            layout.encode(decide_mask(recipe, recipe.members, maps))
        else:
            decide_rows(recipe, np.full((1, *shape), 1 / len(recipe.classes), np.float32), None)
    except ImportError as error:
        raise Refusal(f"{error.name} cannot be imported here, and the decision of this bundle needs it") from error


def _asked_for(inputs: Inputs, layout: Any, names: set[str], sample: Path | None) -> Inputs:
    """The images that the sample submission has rows for."""
    things = inputs.units or inputs.ids
    asked = [any(row in names for row in layout.row_ids([thing])) for thing in things]
    if not any(asked):
        raise Refusal(
            f"no row of {sample} is about an image of the test: its ids begin with {some(sorted(names), 3)}, "
            f"and those of the test with {some(layout.row_ids(things[:3]), 3)}"
        )
    rows = [row for row, wanted in enumerate(asked) if wanted]
    extra = len(asked) - len(rows)
    notes = [f"{extra} images are not in {sample} and are left out"] if extra else []
    missing = names - {row for thing in dict.fromkeys(things) for row in layout.row_ids([thing])}
    if missing:
        notes.append(f"{len(missing)} rows of {sample} have no image and get the fallback: {some(sorted(missing))}")
    return inputs._replace(
        ids=[inputs.ids[row] for row in rows],
        paths=[inputs.paths[row] for row in rows],
        units=inputs.units and [inputs.units[row] for row in rows],
        notes=[*inputs.notes, *notes],
        numbers=[inputs.numbers[row] for row in rows],
    )


def describe_job(bundle: Path, job: Job, request: Request) -> dict[str, Any]:
    """What parts must have in common to go on with them."""
    files = [[id, str(path)] for id, path in zip(job.inputs.ids, job.inputs.paths, strict=True)]
    return {
        "bundle": sha256_file(bundle / MANIFEST),
        "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "format": layout_to_plain(job.layout),
        "precision": request.precision,
    }
