"""Prediction in several processes, one a device: each takes every n-th image and writes a shard of its own."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from foldwise.data.table import Table
from foldwise.errors import ProcessFailed
from foldwise.inference.predictor import Predictor
from foldwise.inference.runs import TrainedRun
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model
from foldwise.predictions.writers import Shard
from foldwise.processes.exits import describe_exit, how_to_resume
from foldwise.processes.group import Group, Rank
from foldwise.processes.server import start_server

PRELOAD = ("torch", "torchvision", "timm", "foldwise.inference.sharing")
POLL_SECONDS = 0.2

Shards = Sequence[Mapping[str, Shard]]  # of one process: of each run, a shard of each output by its name


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Options of a prediction.

    Attributes:
        tta: a file such as configs/tta/d4.yaml.
        oof: predict the training table, each row by the models that did not see it, instead of the test table.
        keep_views: keep the predictions of each view, to choose views and mean afterwards.
        tiles: segmentation: cut pictures into tiles of the network's size at their own resolution.
        overlays: segmentation: pictures to write with the prediction painted over them.
        device: "auto" or a device of torch's.
        devices: processes, one a device; None: see `device.choose_devices`.
    """

    tta: Path
    oof: bool = False
    keep_views: bool = False
    tiles: bool = False
    overlays: int = 0
    batch_size: int = 32
    workers: int = 2
    device: str = "auto"
    devices: int | None = None
    precision: str = "32"


@dataclass(frozen=True)
class PredictionJob:
    """Rows of a table, and the fold whose models predict them; None: the models of all folds."""

    rows: list[int]
    fold: int | None

    def members(self, run: TrainedRun) -> list[tuple[int, str]]:
        """The models of a run that take part."""
        return [member for member in run.models if self.fold in (None, member[0])]


@dataclass(frozen=True)
class Work:
    """Models, options and data of a prediction: `table` has a row an item, `source` the rows that items are made of."""

    runs: Sequence[TrainedRun]
    jobs: Sequence[PredictionJob]
    table: Table
    source: Table
    tta: TTA
    choices: Choices


def predict_work(
    work: Work, devices: Sequence[str], shards: Sequence[Shards], advance: Callable[[int], object]
) -> None:
    """Predict in a process for each device; where there is one device, in this process.

    Args:
        shards: of each process.
        advance: called with the number of images that were predicted since the last call.

    Raises:
        ProcessFailed: a process failed, which has printed why. What was predicted is kept.
    """
    if len(devices) == 1:
        for _ in _predict_share(work, shards[0], devices[0], Rank()):
            advance(1)
        return
    context = start_server(PRELOAD)
    counts = context.RawArray("Q", len(devices))  # one a process: no lock, which a killed one would keep
    code, seen = None, 0
    with Group(context, _predict_counting, (work, shards, devices, counts), len(devices)) as group:
        while code is None:
            wait(group.sentinels, POLL_SECONDS)
            code, total = group.poll(), sum(counts)
            advance(total - seen)
            seen = total
    if code:
        raise ProcessFailed(f"a process that predicts {describe_exit(code)}\n{how_to_resume(code)}", code)


def _predict_counting(work: Work, shards: Sequence[Shards], devices: Sequence[str], counts: Any, rank: Rank) -> None:
    """One process's share, counted in `counts`."""
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.world_size))
    if rank.index:
        warnings.simplefilter("ignore")  # those of one process are enough
    if devices[rank.index].startswith("cuda"):
        torch.cuda.set_device(devices[rank.index])  # else what names no device takes memory of the first
    for _ in _predict_share(work, shards[rank.index], devices[rank.index], rank):
        counts[rank.index] += 1


def _predict_share(work: Work, shards: Shards, device: str, rank: Rank) -> Iterator[None]:
    """Predict every n-th row of each job into the shards; yields after each image."""
    names = ("batch_size", "workers", "precision", "keep_views", "tiles")
    options = {name: getattr(work.choices, name) for name in names}
    with ExitStack() as stack:
        for of_run in shards:
            for shard in of_run.values():
                stack.enter_context(closing(shard))
        for job in work.jobs:
            rows = job.rows[rank.index :: rank.world_size]
            if not rows:
                continue
            members = [
                (own, *member) for run, own in zip(work.runs, shards, strict=True) for member in job.members(run)
            ]
            models = [load_model(run.models[member]) for run in work.runs for member in job.members(run)]
            predictor = Predictor(models, work.tta, device, **options)
            for index, found in predictor.predict(work.source, rows):
                id = work.table.ids[rows[index]]
                for name, of_models in found.items():
                    for (own, fold, snapshot), views in zip(members, of_models, strict=True):
                        for view, values in zip(predictor.views, views, strict=True):
                            own[name].add(id, fold, snapshot, view, values)
                yield
