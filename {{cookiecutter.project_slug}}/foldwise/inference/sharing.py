"""Prediction on several devices, one process each: rank r of n predicts every n-th image into its own shard."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from foldwise.data.features import FeatureSet
from foldwise.data.images import ImageError
from foldwise.data.table import Table
from foldwise.errors import Note, ProcessFailed, show_notes
from foldwise.inference.items import describe_notes
from foldwise.inference.predictor import Predictor, Values
from foldwise.inference.runs import TrainedRun
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model, on_features
from foldwise.predictions.writers import BAD, Shard
from foldwise.processes.exits import describe_exit, how_to_resume
from foldwise.processes.group import Group, Rank
from foldwise.processes.server import start_server

PRELOAD = ("torch", "torchvision", "timm", "foldwise.inference.sharing")
POLL_SECONDS = 0.2

Shards = Sequence[Mapping[str, Shard]]  # of one process: output name -> shard, for each run


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Options of predict.py, see --help; `tta` is a file such as configs/tta/d4.yaml."""

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
    fallback: bool = False
    features: bool = False


@dataclass(frozen=True)
class PredictionJob:
    """Rows of a table, and the fold whose models predict them; None: all models."""

    rows: list[int]
    fold: int | None

    def members(self, run: TrainedRun) -> list[tuple[int, str]]:
        return [member for member in run.models if self.fold in (None, member[0])]


@dataclass(frozen=True)
class Work:
    """Models, options and data of a prediction.

    Attributes:
        table: has one row per item.
        source: has the rows behind the items.
        features: of each run, read in place of the images; empty: images are read.
    """

    runs: Sequence[TrainedRun]
    jobs: Sequence[PredictionJob]
    table: Table
    source: Table
    tta: TTA
    choices: Choices
    features: Sequence[Sequence[FeatureSet]] = ()


def predict_work(
    work: Work, devices: Sequence[str], shards: Sequence[Shards], advance: Callable[[int], object]
) -> None:
    """Predict in one process per device; with one device, in this process.

    Reports images predicted since the last call to `advance`. If a process fails, finished predictions are kept.
    """
    if len(devices) == 1:
        for _ in _predict_share(work, shards[0], devices[0], Rank()):
            advance(1)
        return
    context = start_server(PRELOAD)
    counts = context.RawArray("Q", len(devices))  # one slot per process: a killed process would never release a lock
    code, reported = None, 0
    with Group(context, _predict_counting, (work, shards, devices, counts), len(devices)) as group:
        while code is None:
            wait(group.sentinels, POLL_SECONDS)
            code, total = group.poll(), sum(counts)
            advance(total - reported)
            reported = total
    if code:
        raise ProcessFailed(f"a prediction process {describe_exit(code)}\n{how_to_resume(code)}", code)


def _predict_counting(work: Work, shards: Sequence[Shards], devices: Sequence[str], counts: Any, rank: Rank) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.world_size))
    if rank.index:
        warnings.simplefilter("ignore")  # rank 0 shows them
    if devices[rank.index].startswith("cuda"):
        torch.cuda.set_device(devices[rank.index])  # otherwise a plain "cuda" takes memory on the first GPU
    with show_notes():  # of this rank's images
        for _ in _predict_share(work, shards[rank.index], devices[rank.index], rank):
            counts[rank.index] += 1


def _predict_share(work: Work, shards: Shards, device: str, rank: Rank) -> Iterator[None]:
    """Predict this rank's rows of each job into the shards; yield after each image."""
    names = ("batch_size", "workers", "precision", "keep_views", "tiles")
    options = {name: getattr(work.choices, name) for name in names}
    noted: dict[str, None] = {}
    with ExitStack() as stack:
        for of_run in shards:
            for shard in of_run.values():
                stack.enter_context(closing(shard))
        for job in work.jobs:
            rows = job.rows[rank.index :: rank.world_size]
            if not rows:
                continue
            members = [
                (of_run, *member) for run, of_run in zip(work.runs, shards, strict=True) for member in job.members(run)
            ]
            models = [load_model(run.models[member]) for run in work.runs for member in job.members(run)]
            if work.features:
                sets = [of_run for run, of_run in zip(work.runs, work.features, strict=True) for _ in job.members(run)]
                models = [on_features(*each, work.source) for each in zip(models, sets, strict=True)]
            predictor = Predictor(models, work.tta, device, **options, skip_bad=work.choices.fallback)
            for index, predicted in _predict_readable(predictor, work.source, rows):
                id = work.table.ids[rows[index]]
                for name, of_models in predicted.items():
                    for (of_run, fold, snapshot), views in zip(members, of_models, strict=True):
                        for view, values in zip(predictor.views, views, strict=True):
                            of_run[name].add(id, fold, snapshot, view, values)
                yield
            noted |= dict.fromkeys(describe_notes(predictor.notes, models))
    for text in noted:
        warnings.warn(text, Note, stacklevel=2)


def _predict_readable(predictor: Predictor, source: Table, rows: list[int]) -> Iterator[tuple[int, Values]]:
    try:
        yield from predictor.predict(source, rows)
    except ImageError as error:
        raise ImageError(f"{error}\nPredict all others: add --fallback, which lists such images in {BAD}") from error
