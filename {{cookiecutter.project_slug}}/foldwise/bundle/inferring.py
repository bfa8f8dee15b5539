"""Predicting a hidden test with a bundle; what infer.py does. Whatever happens, a whole submission is written."""

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from foldwise.bundle.engine import Engine
from foldwise.bundle.host import MANIFEST
from foldwise.bundle.inputs import Inputs, read_inputs, stored_size
from foldwise.bundle.shards import Shards, read_rows
from foldwise.bundle.spec import BundleSpec, read_bundle, to_plain
from foldwise.bundle.time_limit import Pace, keep_time
from foldwise.data.problems import some
from foldwise.data.samples import Rows
from foldwise.errors import Refusal
from foldwise.files import check_new, sha256_file, write_atomic, write_json
from foldwise.inference.device import choose_device
from foldwise.inference.weights import load_samples
from foldwise.predictions.decisions.submission import check_columns, read_sample, write_masks, write_table

BAD_SHARE = 0.01  # of the images: if more could not be used, a warning is printed
PRINT_EVERY = 30  # seconds
SHARDS, BAD, REPORT = "shards", "bad_images.csv", "inference.json"


@dataclass(frozen=True)
class Inference:
    """What is to be predicted and written, read and checked before hours of predicting."""

    spec: BundleSpec
    layout: Any
    inputs: Inputs
    sample: pd.DataFrame | None
    sample_path: Path | None
    submission: Path


def infer(
    bundle: Path,
    test: Path,
    out: Path,
    images: Path | None = None,
    sample: Path | None = None,
    time_limit: float | None = None,
    batch_size: int = 32,
    workers: int = 2,
    device: str = "auto",
    precision: str = "32",
    keep_shards: bool = False,
    begun: float | None = None,
) -> Path:
    """Predict, and write the submission, `bad_images.csv` and `inference.json`; the path of the submission.

    Args:
        time_limit: in seconds. For the others see infer.py --help.
        begun: when the command began, on `time.monotonic`, for its time limit.

    Raises:
        Refusal: the test, the sample submission or a choice is not valid; nothing is written then.
    """
    begun = time.monotonic() if begun is None else begun
    inference = open_inference(bundle, test, images, sample, out)
    spec, asked = inference.spec, inference.inputs.images
    engine = Engine(bundle, spec, choose_device(device), batch_size, precision)
    files = json.dumps([[image.id, str(image.path)] for image in asked])
    request = {
        "bundle": sha256_file(bundle / MANIFEST),
        "files": hashlib.sha256(files.encode()).hexdigest(),
        "format": to_plain(inference.layout),
        "precision": precision,
    }
    shards = Shards(out / SHARDS, spec, request)
    done = shards.done()
    left = [number for number in range(len(asked)) if number not in done]
    for note in [*inference.inputs.notes, *([f"{len(done)} images were predicted before"] if done else [])]:
        print(f"note: {note}")
    print(f"{len(left)} images, {len(engine.places)} networks, on {engine.device}", flush=True)
    pace = Pace(len(left), time_limit, begun)
    dropped, early = _predict(inference, engine, shards, pace, left, workers)
    problems = dict.fromkeys(range(len(asked)), "no time was left") | shards.done()
    bad = [(asked[number].id, asked[number].path, problem) for number, problem in problems.items() if problem]
    _write_submission(inference, shards)
    with write_atomic(out / BAD) as temporary:
        pd.DataFrame(bad, columns=["id", "image", "problem"]).to_csv(temporary, index=False)
    own, largest = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = time.monotonic() - begun
    report = {
        "images": len(asked),
        "bad_images": len(bad),
        "seconds": round(seconds, 3),
        "seconds_to_first_batch": round(pace.first - pace.start, 3),
        "seconds_per_image": pace.seconds,
        "forecast_after_a_tenth": early,
        "dropped": dropped,
        "notes": engine.notes,
        "device": str(engine.device),
        "memory_mb": round((own + workers * largest) / 1000),  # what workers share is counted for each
        "gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if engine.device.type == "cuda" else None,
    }
    write_json(out / REPORT, report)
    if not keep_shards:
        shutil.rmtree(shards.folder)
    share = len(bad) / len(asked)
    text = f"{len(bad)} of {len(asked)} images ({share:.1%}) could not be used and got the fallback: {out / BAD}"
    if share > BAD_SHARE:
        print(f"\n{'!' * 80}\nWARNING: {text}\n{'!' * 80}\n", file=sys.stderr, flush=True)
    elif bad:
        print(text)
    print(f"{len(asked)} images in {seconds:.0f} s\nsubmission  {inference.submission}\nlog         {out / REPORT}")
    return inference.submission


def open_inference(bundle: Path, test: Path, images: Path | None, sample_path: Path | None, out: Path) -> Inference:
    """Read and check everything that can be wrong.

    Raises:
        Refusal: whatever is wrong with the test, the sample submission or the format.
    """
    spec = read_bundle(bundle)
    layout = spec.layout
    submission = out / f"submission{layout.suffix}"
    check_new(submission)
    sample = None if sample_path is None else read_sample(sample_path)
    names = set() if sample is None else set(sample.iloc[:, 0])
    readers = [load_samples(bundle / run.models[0].folder) for run in spec.runs]
    inputs = read_inputs(test, images, spec.columns, names, readers[0])
    for reader in readers[1:]:
        Rows(inputs.found.source, reader)  # refuses what lacks a column
    if sample is not None:
        layout = replace(layout, id_column=sample.columns[0], value_column=sample.columns[1])
        check_columns(layout, sample, sample_path)
        inputs = _asked_for(inputs, layout, names, sample_path)
    values = np.full((len(spec.members), len(spec.classes), 4, 4), 1 / len(spec.classes), np.float32)
    try:  # what decides last must not turn out to be missing after hours
        _answer(spec, layout, spec.members, values) if spec.maps else spec.decide_rows(values[None, :, :, 0, 0], [""])
    except ImportError as error:
        raise Refusal(f"{error.name} cannot be imported here, and the decision of this bundle needs it") from error
    return Inference(spec, layout, inputs, sample, sample_path, submission)


def _asked_for(inputs: Inputs, layout: Any, names: set[str], sample_path: Path | None) -> Inputs:
    """The images that the sample submission has rows for."""
    rows = {image.unit: layout.row_ids([image.unit]) for image in inputs.images}
    images = [image for image in inputs.images if names.intersection(rows[image.unit])]
    if not images:
        raise Refusal(
            f"no row of {sample_path} is about an image of the test: its ids begin with {some(sorted(names), 3)}, "
            f"and those of the test with {some(layout.row_ids(list(rows)[:3]), 3)}"
        )
    extra, missing = len(inputs.images) - len(images), sorted(names.difference(*rows.values()))
    notes = [f"{extra} images are not in {sample_path} and are left out"] if extra else []
    if missing:
        notes.append(f"{len(missing)} rows of {sample_path} have no image and get the fallback: {some(missing)}")
    return inputs._replace(images=images, notes=[*inputs.notes, *notes])


def _predict(
    inference: Inference, engine: Engine, shards: Shards, pace: Pace, left: list[int], workers: int
) -> tuple[list[str], float | None]:
    """Predict the images that are left into shards, while there is time.

    Returns:
        What was dropped, and the forecast of all seconds after the first tenth.
    """
    dropped: list[str] = []
    early: float | None = None
    printed = time.monotonic()
    items = [inference.inputs.images[number].number for number in left]
    for batch in engine.batches(inference.inputs.found.source, items, workers) if left else []:
        results: dict[int, Any] = {}
        problems = {left[item.number]: item.problem for item in batch.bad}
        for place, values in engine.predict(batch):
            if values is None:
                problems[left[place]] = "it does not fit into memory"
            else:
                results[left[place]] = _answer(inference.spec, inference.layout, engine.active.members, values)
        shards.add(results, problems)
        pace.advance(len(results) + len(problems), engine.active.passes)
        forecast = pace.forecast(engine.active.passes)
        if early is None and pace.done >= len(left) / 10:
            early = forecast
        if pace.is_over:
            break
        dropped += keep_time(pace, engine.active)
        if time.monotonic() - printed > PRINT_EVERY and forecast is not None:
            print(f"{pace.done} of {len(left)}; everything will have taken {forecast / 60:.1f} min", flush=True)
            printed = time.monotonic()
    return dropped, early


def _answer(spec: BundleSpec, layout: Any, members: list[tuple[int, int]], values: np.ndarray) -> Any:
    """What shards keep of an image's predictions (A, C), or maps (A, C, H, W), by these members."""
    if spec.maps:
        return layout.encode(spec.decide_mask(members, values))
    every = np.full((len(spec.members), len(spec.classes)), np.nan, np.float32)
    every[[spec.members.index(member) for member in members]] = values
    return every


def _write_submission(inference: Inference, shards: Shards) -> None:
    """Write what the shards have, and the fallback for all else."""
    spec, layout, sample = inference.spec, inference.layout, inference.sample
    of_images = [image.unit for image in inference.inputs.images]
    units = list(dict.fromkeys(of_images))
    known = set(layout.row_ids(units))
    absent = [] if sample is None else [row for row in sample.iloc[:, 0] if row not in known]
    if spec.maps:
        masks = _masks(inference, shards)
        write_masks(inference.submission, layout, masks, sample, inference.sample_path, absent)
        return
    answers = spec.decide_rows(read_rows(shards.folder, spec, len(of_images)), of_images)
    fallback = spec.decision.rule.decide(np.tile(spec.fallback, (len(absent), 1)))
    table = layout.table([*units, *absent], np.concatenate([answers, fallback]))
    write_table(inference.submission, table, sample, inference.sample_path)


def _masks(inference: Inference, shards: Shards) -> Iterator[tuple[str, bytes]]:
    """The encoded mask of each image; where there is none, an empty one of its size, or of the first known size."""
    usual: tuple[int, int] | None = None
    images = inference.inputs.images
    for number, image in enumerate(images):
        mask = shards.mask(number)
        if mask is None:
            size = stored_size(image.path) if inference.layout.name == "masks" else (1, 1)  # an empty code has no size
            if size == (0, 0):
                usual = usual or next(filter(all, (stored_size(other.path) for other in images)), (1, 1))
                size = usual
            mask = inference.layout.encode(np.zeros(size, np.uint8))
        yield image.id, mask
