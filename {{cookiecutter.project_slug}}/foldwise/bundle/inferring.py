"""Prediction of a hidden test with a bundle, as infer.py does it. It always writes a complete submission."""

import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.bundle.first_stage import BOXES, MAPS, open_first_stage
from foldwise.bundle.first_stage import SHARDS as FIRST
from foldwise.bundle.inputs import Inputs, read_inputs
from foldwise.bundle.passes import Predicted, describe_request, open_engine, predict_images
from foldwise.bundle.shards import Shards, read_rows
from foldwise.bundle.spec import BundleSpec, read_bundle, to_plain
from foldwise.data.decoding import stored_size
from foldwise.data.orientation import oriented
from foldwise.data.problems import some
from foldwise.data.samples import Rows
from foldwise.errors import Refusal
from foldwise.files import check_new, sha256_file, write_json
from foldwise.inference.items import describe_model, describe_notes, write_bad_images
from foldwise.inference.spec import read_spec
from foldwise.predictions.decisions.sample import Sample, fit_layout, locate, read_sample
from foldwise.predictions.decisions.submission import write_masks, write_table
from foldwise.predictions.ensembles.extra import Extra
from foldwise.predictions.writers import BAD
from foldwise.tasks import find_task

BAD_SHARE = 0.01  # of the images: warn if more could not be used
SHARDS, REPORT = "shards", "inference.json"


@dataclass(frozen=True)
class Inference:
    """Checked inputs and submission format, ready to predict."""

    spec: BundleSpec
    layout: Any
    inputs: Inputs
    extra: Extra | None
    sample: Sample | None
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
    """Predict, and write the submission, `bad_images.csv` and `inference.json`; return the submission's path.

    A bundle of two stages first finds the boxes, see `first_stage`, and then predicts their table.

    Args:
        time_limit: in seconds. For the others see infer.py --help.
        begun: start of the command on `time.monotonic`; default: now.

    Raises:
        Refusal: test, sample submission or options are not valid; nothing is written.
    """
    begun = time.monotonic() if begun is None else begun
    first = open_first_stage(bundle, test, images, sample, out)
    if first is not None:
        test, images = out / BOXES, first.inputs.test.source.root
        open_inference(bundle, test, images, sample, out)  # as if nothing were found: refuses what is wrong early
        first.find(batch_size, workers, device, precision, time_limit, begun)
    inference = open_inference(bundle, test, images, sample, out)
    spec, requested = inference.spec, inference.inputs.images
    engine = open_engine(bundle, spec, device, batch_size, precision)
    request = describe_request(bundle, inference.inputs, precision) | {"format": to_plain(inference.layout)}
    request |= {} if first is None else {"boxes": sha256_file(out / BOXES)}
    shards = Shards(out / SHARDS, spec, request)
    for note in inference.inputs.notes:
        print(f"note: {note}")

    def answer(number: int, predicted: Predicted) -> Any:
        return _answer(spec, inference.layout, engine.active.members, *predicted)

    pace, dropped, early = predict_images(engine, inference.inputs, shards, workers, answer, time_limit, begun)
    problems = dict.fromkeys(range(len(requested)), "no time was left") | shards.done()
    bad = [(requested[number].id, requested[number].path, problem) for number, problem in problems.items() if problem]
    _write_submission(inference, shards)
    left_out = [(note.item, note.path, f"left out: {note.left_out}") for note in engine.file_notes if note.left_out]
    write_bad_images(out / BAD, [*bad, *left_out])
    main_kb, worker_kb = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = time.monotonic() - begun
    of_files = describe_notes(engine.file_notes, engine.models)
    for note in of_files:
        print(f"note: {note}")
    report = {
        **({} if first is None else {"first_stage": first.report}),
        "images": len(requested),
        "bad_images": len(bad),
        "seconds": round(seconds, 3),
        "seconds_to_first_batch": round(pace.first - pace.start, 3),
        "seconds_per_image": pace.seconds,
        "forecast_after_a_tenth": early,
        "dropped": dropped,
        "notes": [*(first.notes if first else []), *engine.notes, *of_files],
        "device": str(engine.device),
        "memory_mb": round((main_kb + workers * worker_kb) / 1000),  # upper bound: counts shared memory per worker
        "gpu_memory_mb": engine.gpu_memory_mb,
    }
    write_json(out / REPORT, report)
    if not keep_shards:
        for name in (SHARDS, *((FIRST, MAPS) if first else ())):
            shutil.rmtree(out / name)
    share = len(bad) / len(requested)
    text = f"{len(bad)} of {len(requested)} images ({share:.1%}) could not be used and got the fallback: {out / BAD}"
    if share > BAD_SHARE:
        print(f"\n{'!' * 80}\nWARNING: {text}\n{'!' * 80}\n", file=sys.stderr, flush=True)
    elif bad:
        print(text)
    print(f"{len(requested)} images in {seconds:.0f} s\nsubmission  {inference.submission}\nlog         {out / REPORT}")
    return inference.submission


def open_inference(bundle: Path, test: Path, images: Path | None, sample_path: Path | None, out: Path) -> Inference:
    """Read and check test, sample submission and format, before hours of predicting."""
    spec = read_bundle(bundle)
    layout = spec.layout
    submission = out / f"submission{layout.suffix}"
    check_new(submission)
    sample = None if sample_path is None else read_sample(sample_path)
    names = set() if sample is None else set(sample.frame.to_numpy().ravel())
    folders = [bundle / run.models[0].folder for run in spec.runs]
    readers = [describe_model(folder).samples for folder in folders]
    inputs = read_inputs(test, images, spec.columns, names, readers[0], read_spec(folders[0]).exif)
    for reader in readers[1:]:
        Rows(inputs.test.source, reader)  # refuses a missing column
    if sample is not None:
        sample = locate(sample, [image.unit for image in inputs.images], spec.classes)
        layout = fit_layout(layout, sample)
        inputs = _select_requested(inputs, layout, sample)
    extra = _read_extra(spec, inputs)
    values = np.full((len(spec.members), max(spec.widths), 4, 4), 1 / len(spec.classes), np.float32)
    try:  # a dry run of the post-processing, which would otherwise miss a package only after hours
        if spec.maps:
            _answer(spec, layout, spec.members, values)
        else:
            spec.decide_rows(values[None, :, :, 0, 0], [""], extra and extra.take([0]))
    except ImportError as error:
        raise Refusal(f"{error.name} cannot be imported here, but this bundle's post-processing needs it") from error
    return Inference(spec, layout, inputs, extra, sample, submission)


def _read_extra(spec: BundleSpec, inputs: Inputs) -> Extra | None:
    table = inputs.test.table
    return spec.read_extra(table.frame.iloc[[image.number for image in inputs.images]], table.path)


def _select_requested(inputs: Inputs, layout: Any, sample: Sample) -> Inputs:
    """Keep the images that the sample submission has rows for."""
    names = set(sample.ids)
    rows = {image.unit: layout.row_ids([image.unit]) for image in inputs.images}
    images = [image for image in inputs.images if names.intersection(rows[image.unit])]
    if not images:
        raise Refusal(
            f"no row of {sample.path} belongs to an image of the test: its first ids are {some(sorted(names), 3)}, "
            f"those of the test are {some(layout.row_ids(list(rows)[:3]), 3)}"
        )
    extra, missing = len(inputs.images) - len(images), sorted(names.difference(*rows.values()))
    notes = [f"{extra} images are not in {sample.path} and are left out"] if extra else []
    if missing:
        notes.append(f"{len(missing)} rows of {sample.path} have no image and get the fallback: {some(missing)}")
    return inputs._replace(images=images, notes=[*inputs.notes, *notes])


def _answer(
    spec: BundleSpec, layout: Any, members: list[tuple[int, int]], values: np.ndarray, present: np.ndarray | None = None
) -> Any:
    """Convert predictions of `members`, see `Predicted`, to what shards store."""
    if spec.maps:
        return layout.encode(spec.decide_mask(members, values, present))
    padded = np.full((len(spec.members), max(spec.widths)), np.nan, np.float32)
    padded[[spec.members.index(member) for member in members]] = values
    return padded


def _write_submission(inference: Inference, shards: Shards) -> None:
    """Write the answers from the shards, and the fallback for everything else."""
    spec, layout, sample = inference.spec, inference.layout, inference.sample
    of_images = [image.unit for image in inference.inputs.images]
    units = list(dict.fromkeys(of_images))
    known = set(layout.row_ids(units))
    missing = [] if sample is None else [row for row in sample.ids if row not in known]
    if spec.maps:
        masks = _masks(inference, shards)
        write_masks(inference.submission, layout, masks, sample, missing)
        return
    answers = spec.decide_rows(read_rows(shards.folder, spec, len(of_images)), of_images, inference.extra)
    fallback = spec.decision.rule.decide(np.asarray(spec.fallback)[None])
    table = pd.concat([layout.table(units, answers), layout.fill(missing, fallback)], ignore_index=True)
    write_table(inference.submission, table, sample)


def _size(inference: Inference, path: Path) -> tuple[int, int]:
    with oriented(inference.inputs.test.source.exif):
        return stored_size(path)


def _masks(inference: Inference, shards: Shards) -> Iterator[tuple[str, bytes]]:
    """Yield (id, encoded mask); a missing one becomes empty, of the image's size or the first known size."""
    default: tuple[int, int] | None = None
    images = inference.inputs.images
    for number, image in enumerate(images):
        mask = shards.mask(number)
        if mask is None:
            is_file = inference.layout.name == "masks"  # codes do not need the size
            size = _size(inference, image.path) if is_file else (1, 1)
            if size == (0, 0):
                default = default or next(filter(all, (_size(inference, other.path) for other in images)), (1, 1))
                size = default
            spec = inference.spec
            shape = size if find_task(spec.task).exclusive else (len(spec.classes), *size)
            mask = inference.layout.encode(np.zeros(shape, np.uint8))
        yield image.id, mask
