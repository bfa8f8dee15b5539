"""Fallback of `predict.py --fallback`: predictions for images that cannot be read, and the list of these."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from foldwise.config import read_config
from foldwise.data.decoding import stored_size
from foldwise.data.orientation import oriented
from foldwise.data.prepare import read_items, read_outputs
from foldwise.errors import Refusal
from foldwise.inference.items import BadImage, InputSpec, Items, Read, describe_model
from foldwise.inference.predictor import Values
from foldwise.inference.runs import TrainedRun
from foldwise.inference.sharing import PredictionJob, Shards, Work
from foldwise.inference.weights import load_model


def fallback_values(run: TrainedRun) -> Values:
    """Return each output's fallback (C,), from the targets of the run's training table if these are no files."""
    outputs = run.spec.outputs
    if all(output.meaning.field.spatial for output in outputs):
        return {output.name: output.meaning.fallback(None, len(output.columns)) for output in outputs}
    config = read_config(run.folder)
    data = config["data"] | {"classes": list(run.spec.classes)}
    items = read_items(data, run.spec.task, describe_model(next(iter(run.models.values()))).samples)
    _, _, tables = read_outputs(config | {"data": data, "task": run.spec.task}, items.table, items.items)
    return {
        output.name: output.meaning.fallback(tables[output.target].trained_target, len(output.columns))
        for output in outputs
    }


def find_bad(work: Work, jobs: Sequence[PredictionJob]) -> dict[int, tuple[BadImage, tuple[int, int]]]:
    """Read the rows of `jobs` again: their problem, and the (height, width) that their maps get, by row.

    Raises:
        Refusal: no image of the table could be read.
    """
    bad: dict[int, tuple[BadImage, tuple[int, int]]] = {}
    for job in (job for job in jobs if job.rows):
        models = [load_model(run.models[member]) for run in work.runs for member in job.members(run)]
        items = Items(work.source, {InputSpec.of(model): model for model in models}, work.tta, job.rows, tiles=True)
        for index, row in enumerate(job.rows):
            read, file = items[index], items.first.files(row)[0]
            problem = read.problem or f"{file} could be read only at the second try"
            bad[row] = (work.table.ids[row], file, problem), _size(work, read, file)
    if bad and len(bad) == sum(len(job.rows) for job in work.jobs):
        raise Refusal(f"no image of {work.table.path} could be read; the first problem is: {bad[min(bad)][0][2]}")
    return bad


def add_fallback(
    work: Work, jobs: Sequence[PredictionJob], values: Values, sizes: Mapping[int, tuple[int, int]], shards: Shards
) -> None:
    """Add the fallback `values` for the rows of `jobs`, as all of their models' predictions."""
    views = work.tta.names if work.choices.keep_views else [work.tta.name]
    for run, of_run in zip(work.runs, shards, strict=True):
        for output in run.spec.outputs:
            for row, members in ((row, job.members(run)) for job in jobs for row in job.rows):
                value = values[output.name].astype(np.float32)
                if output.meaning.kind == "maps":
                    value = np.broadcast_to(value[:, None, None], (len(value), *sizes[row]))
                for (fold, snapshot), view in product(members, views):
                    of_run[output.name].add(work.table.ids[row], fold, snapshot, view, value)
            of_run[output.name].close()


def _size(work: Work, read: Read, file: Path) -> tuple[int, int]:
    """(height, width) of a bad image by its pixels or its header, else that of the first image with a known one."""
    with oriented(work.source.exif):
        others = (stored_size(work.table.image_path(row)) for row in range(len(work.table)))
        return next(filter(all, (read.size, stored_size(file))), None) or next(filter(all, others), (1, 1))
