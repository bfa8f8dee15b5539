"""Predicting a hidden test with a bundle; what infer.py does. Whatever happens, a whole submission is written."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from foldwise.bundle.answers import decide_mask, decide_rows
from foldwise.bundle.engine import Engine
from foldwise.bundle.images import stored_size
from foldwise.bundle.inputs import Inputs
from foldwise.bundle.job import Job, Request, describe_job, open_job
from foldwise.bundle.pace import Pace
from foldwise.bundle.parts import Parts, read_rows
from foldwise.files import write_atomic, write_json
from foldwise.inference.device import choose_device
from foldwise.inference.reading import ReadBatch
from foldwise.predictions.decisions.deciding import Decision
from foldwise.predictions.decisions.submission import write_masks, write_table

BAD_SHARE = 0.01  # of the images: if more could not be used, it is said loudly
SAID_EVERY = 30  # seconds
NO_TIME = "no time was left"
PARTS, BAD, REPORT = "parts", "bad_images.csv", "inference.json"


def infer(bundle: Path, request: Request, begun: float | None = None) -> Path:
    """Predict, and write the submission, `bad_images.csv` and `inference.json`; the path of the submission.

    Args:
        begun: when the command began, on `time.monotonic`, for its time limit.

    Raises:
        Refusal: the test, the sample submission or a choice is not valid; nothing is written then.
    """
    begun = time.monotonic() if begun is None else begun
    job = open_job(bundle, request)
    for note in job.inputs.notes:
        print(f"note: {note}")
    engine = Engine(bundle, job.recipe, choose_device(request.device), request.batch_size, request.precision)
    parts = Parts(request.out / PARTS, job.recipe, describe_job(bundle, job, request))
    pace, dropped, forecast = _predict(job, engine, parts, request, begun)
    problems = parts.done()
    left = [number for number in range(len(job.inputs.ids)) if number not in problems]
    problems |= dict.fromkeys(left, NO_TIME)
    write_submission(job, parts, request.sample)
    bad = {number: problem for number, problem in sorted(problems.items()) if problem}
    _write_bad(request.out / BAD, job.inputs, bad)
    seconds = time.monotonic() - begun
    report = {
        "images": len(job.inputs.ids),
        "bad_images": len(bad),
        "seconds": round(seconds, 3),
        "seconds_to_first_batch": round(pace.first_batch, 3),
        "seconds_per_image": pace.mean_seconds,
        "forecast_after_a_tenth": forecast,
        "dropped": dropped,
        "notes": engine.notes,
        "device": str(engine.device),
        "memory_mb": round(_memory(request.workers)),
        "gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if engine.device.type == "cuda" else None,
    }
    write_json(request.out / REPORT, report)
    if not request.keep_parts:
        parts.remove()
    _say_bad(bad, job.inputs, request.out / BAD)
    print(f"{len(job.inputs.ids)} images in {seconds:.0f} s")
    print(f"submission  {job.submission}\nlog         {request.out / REPORT}")
    return job.submission


def _memory(workers: int) -> float:
    """MB of this process and its workers at their largest; what they share is counted for each."""
    own, largest = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + workers * largest) / 1000


def _predict(
    job: Job, engine: Engine, parts: Parts, request: Request, begun: float
) -> tuple[Pace, list[str], float | None]:
    """Predict what is not done yet into the parts.

    Returns:
        The pace, what was dropped, and the forecast of all seconds after the first tenth.
    """
    done = parts.done()
    left = [number for number in range(len(job.inputs.ids)) if number not in done]
    if done:
        print(f"{len(done)} images were predicted before the last command was stopped")
    pace = Pace(len(left), request.time_limit, begun)
    dropped: list[str] = []
    forecast: float | None = None
    said = time.monotonic()
    print(f"{len(left)} images, {len(engine.active.networks)} networks, on {engine.device}", flush=True)
    for batch in (
        engine.batches(job.inputs.table, [job.inputs.numbers[number] for number in left], request.workers)
        if left
        else []
    ):
        results, problems = _predict_batch(job, engine, batch)
        parts.add(
            {left[place]: result for place, result in results.items()},
            {left[place]: problem for place, problem in problems.items()},
        )
        pace.advance(len(batch.numbers) + len(batch.bad))
        if forecast is None and pace.done >= len(left) / 10:
            forecast = pace.forecast
        if pace.is_over:
            break
        dropped += _keep_time(pace, engine)
        if time.monotonic() - said > SAID_EVERY and pace.forecast is not None:
            print(f"{pace.done} of {len(left)}; everything will have taken {pace.forecast / 60:.1f} min", flush=True)
            said = time.monotonic()
    return pace, dropped, forecast


def _predict_batch(job: Job, engine: Engine, batch: ReadBatch) -> tuple[dict[int, Any], dict[int, str]]:
    """Results, and what is wrong with the other images, by their place among those that are left."""
    recipe, members = job.recipe, engine.active.members

    def finish(values: np.ndarray) -> Any:
        if recipe.meaning.kind == "maps":
            return job.layout.encode(decide_mask(recipe, members, values))
        every = np.full((len(recipe.members), len(recipe.classes)), np.nan, np.float32)
        every[[recipe.members.index(member) for member in members]] = values
        return every

    problems = {item.number: item.problem for item in batch.bad}
    results = dict(engine.predict(batch, finish)) if batch.numbers else {}
    problems |= {number: "it does not fit into memory" for number, result in results.items() if result is None}
    return {number: result for number, result in results.items() if number not in problems}, problems


def _keep_time(pace: Pace, engine: Engine) -> list[str]:
    """Drop what is worth least for its time until the forecast keeps the limit; the names of what went."""
    forecast = pace.forecast
    if forecast is None or forecast <= pace.allowed:
        return []
    active, seconds, names = engine.active, engine.seconds, []
    while forecast > pace.allowed and (unit := active.next_unit(seconds)):
        forecast -= (pace.images - pace.done) * active.cost(unit, seconds)
        names.append(active.name(unit))
        seconds = active.drop(unit, seconds)
    if names:
        print(f"short of time, dropped: {', '.join(names)}", flush=True)
        pace.restart()
        engine.reset_clock()
    return names


def write_submission(job: Job, parts: Parts, sample_path: Path | None) -> None:
    """Write what the parts have, and the fallback for all else."""
    recipe, inputs, layout = job.recipe, job.inputs, job.layout
    things = list(dict.fromkeys(inputs.units or inputs.ids))
    known = set(layout.row_ids(things))
    missing = [] if job.sample is None else [row for row in job.sample.iloc[:, 0] if row not in known]
    if recipe.meaning.kind == "maps":
        write_masks(job.submission, layout, _masks(job, parts), job.sample, sample_path, missing)
        return
    answers = decide_rows(recipe, read_rows(parts.folder, recipe, len(inputs.ids)), inputs.units)
    assert isinstance(recipe.decider, Decision)
    prior = recipe.decider.rule.decide(np.tile(recipe.prior, (len(missing), 1)))
    table = layout.table([*things, *missing], np.concatenate([answers, prior]))
    write_table(job.submission, table, job.sample, sample_path)


def _masks(job: Job, parts: Parts) -> Iterator[tuple[str, bytes]]:
    """The encoded mask of each image; an empty one of its size, or that of the first image, where there is none."""
    sizes = filter(all, map(stored_size, job.inputs.paths))
    usual: tuple[int, int] | None = None
    for number, (id, path) in enumerate(zip(job.inputs.ids, job.inputs.paths, strict=True)):
        answer = parts.answer(number)
        if answer is None:
            size = (1, 1)  # an empty code has no size
            if job.layout.name == "masks":
                usual = usual or next(sizes, size)
                own = stored_size(path)
                size = own if all(own) else usual
            answer = job.layout.encode(np.zeros(size, np.uint8))
        yield id, answer


def _write_bad(path: Path, inputs: Inputs, bad: Mapping[int, str]) -> None:
    rows = [{"id": inputs.ids[number], "image": inputs.paths[number], "problem": bad[number]} for number in bad]
    with write_atomic(path) as temporary:
        pd.DataFrame(rows, columns=["id", "image", "problem"]).to_csv(temporary, index=False)


def _say_bad(bad: Mapping[int, str], inputs: Inputs, path: Path) -> None:
    if not bad:
        return
    share = len(bad) / len(inputs.ids)
    text = f"{len(bad)} of {len(inputs.ids)} images ({share:.1%}) could not be used and got the fallback: {path}"
    if share > BAD_SHARE:
        print(f"\n{'!' * 80}\nWARNING: {text}\n{'!' * 80}\n", file=sys.stderr, flush=True)
    else:
        print(text)
