"""A pass over the images of a test with the networks of a bundle, within the time limit."""

import hashlib
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldwise.bundle.host import MANIFEST
from foldwise.bundle.inputs import Inputs
from foldwise.bundle.shards import Shards
from foldwise.bundle.spec import BundleSpec
from foldwise.bundle.time_limit import Pace, keep_time
from foldwise.files import sha256_file

PRINT_SECONDS = 30
# By `BundleSpec.runtime`. A bundle has one of them, so that its host needs the packages of one.
ENGINES = {"torch": "foldwise.bundle.engine", "onnx": "foldwise.bundle.onnx_engine"}


class Predicted(NamedTuple):
    """Predictions of an image: of the A active members (A, C), or maps (A, C, H, W) at the stored size.

    `present` is (K,) of `BundleSpec.presence`, None without it and if its run was dropped.
    """

    values: np.ndarray
    present: np.ndarray | None


def open_engine(bundle: Path, spec: BundleSpec, device: str, batch_size: int, precision: str) -> Any:
    """Load the networks of a bundle: the `Engine` of its runtime."""
    return importlib.import_module(ENGINES[spec.runtime]).Engine(bundle, spec, device, batch_size, precision)


def describe_request(bundle: Path, inputs: Inputs, precision: str) -> dict[str, Any]:
    """What predictions depend on, for `Shards`."""
    files = json.dumps([[image.id, str(image.path)] for image in inputs.images])
    return {
        "bundle": sha256_file(bundle / MANIFEST),
        "files": hashlib.sha256(files.encode()).hexdigest(),
        "precision": precision,
    }


class Finished(NamedTuple):
    """How a pass over the images went: its speed, what was dropped to save time, and the forecast after a tenth."""

    pace: Pace
    dropped: list[str]
    early: float | None


def predict_images(
    engine: Any,
    inputs: Inputs,
    shards: Shards,
    workers: int,
    answer: Callable[[int, Predicted], Any],
    time_limit: float | None,
    begun: float,
    later: int = 0,
) -> Finished:
    """Predict the images that have no answer in the shards yet, until time is up.

    Args:
        answer: makes of an image's number and predictions what is stored.
        time_limit, begun, later: see `Pace`.
    """
    done = shards.done()
    remaining = [number for number in range(len(inputs.images)) if number not in done]
    if done:
        print(f"note: {len(done)} images were predicted before")
    print(f"{len(remaining)} images, {len(engine.model_index)} networks, on {engine.device}", flush=True)
    pace = Pace(len(remaining), time_limit, begun, later=later)
    dropped: list[str] = []
    early: float | None = None
    printed = time.monotonic()
    items = [inputs.images[number].number for number in remaining]
    for batch in engine.batches(inputs.test.source, items, workers) if remaining else []:
        results: dict[int, Any] = {}
        problems = {remaining[item.number]: item.problem for item in batch.bad}
        for index, predicted in engine.predict(batch):
            if predicted is None:
                problems[remaining[index]] = "it does not fit into memory"
            else:
                results[remaining[index]] = answer(remaining[index], predicted)
        shards.add(results, problems)
        pace.advance(len(results) + len(problems), engine.active.passes)
        forecast = pace.forecast(engine.active.passes)
        if early is None and pace.done >= len(remaining) / 10:
            early = forecast
        if pace.is_over:
            break
        dropped += keep_time(pace, engine.active)
        if time.monotonic() - printed > PRINT_SECONDS and forecast is not None:
            print(f"{pace.done} of {len(remaining)} images; estimated total {forecast / 60:.1f} min", flush=True)
            printed = time.monotonic()
    return Finished(pace, dropped, early)
