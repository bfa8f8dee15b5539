"""Runs all checks of a training before its first fold, and forecasts what it costs."""

import os
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foldwise.code.source import Code
from foldwise.data.batches import collate, to_device
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared
from foldwise.inference.tta import TTA
from foldwise.preflight import learning, reading
from foldwise.preflight.sheet import draw_sheet
from foldwise.preflight.shuffled import check_shuffled
from foldwise.preflight.subject import Subject, loss_of
from foldwise.processes.group import Rank
from foldwise.schedule.phases import build_phases
from foldwise.training.loaders import local_batch_size

Check = Callable[[Subject], Iterator[str]]
READING: tuple[Check, ...] = (
    reading.check_alike,
    reading.check_own,
    reading.check_declared,
    reading.check_channels,
    reading.check_masks,
    reading.check_augmented,
)
LEARNING: tuple[Check, ...] = (
    learning.check_losses,
    learning.check_start,
    learning.check_phases,
    learning.check_learnt,
    learning.check_saved,
)


class Flight(NamedTuple):
    """Result of the checks: sentences about failures, lines about the rest, and the PNG of the sheet, if any."""

    problems: list[str]
    lines: list[str]
    sheet: bytes | None


def fly(
    config: Mapping[str, Any], prepared: Prepared, parts: Sequence[Holdout], code: Code, world: int, at_once: int
) -> Flight:
    """Check a training in this process, whose random generators and settings it changes.

    Args:
        parts: the models that will train.
        world: processes per model.
        at_once: models that train at the same time.
    """
    torch.backends.cudnn.allow_tf32 = False  # one by one equals the batch to 1e-3
    torch.set_num_threads(config["threads"] or torch.get_num_threads())
    warnings.simplefilter("ignore")
    begun = time.perf_counter()
    subject = Subject(config, prepared, parts[0], code)
    checks = (*READING, *LEARNING, *([check_shuffled] if config.get("preflight", "new") == "full" else []))
    problems = [problem for check in checks for problem in check(subject)]
    sheet = draw_sheet(subject)
    if problems:
        return Flight(problems, [], sheet)
    start, nothing = learning.first_loss(subject)
    _, losses = subject.learnt
    chance = "" if nothing is None else f", knowing nothing {nothing:.3g}"
    lines = [
        f"first loss {start:.3g}{chance}; one batch learnt in {len(losses)} steps, to {losses[-1]:.2g}",
        *_forecast(config, subject, parts, world, at_once),
    ]
    return Flight([], [f"{len(checks)} checks passed in {time.perf_counter() - begun:.0f} s", *lines], sheet)


def _forecast(
    config: Mapping[str, Any], subject: Subject, parts: Sequence[Holdout], world: int, at_once: int
) -> list[str]:
    """Time of a batch, memory, and duration of the training."""
    size = local_batch_size(config, Rank(0, world))
    begun = time.perf_counter()
    rows = np.resize(subject.rows, size)
    batches = []
    for epoch in range(subject.training.module.schedule.epochs):  # one a phase
        samples = [subject.dataset[int(row), epoch] for row in (rows if epoch == 0 else rows[:1])]
        if epoch == 0:
            read = time.perf_counter() - begun
        batches.append(collate(samples if epoch == 0 else samples * size, subject.dataset.fields))
    steps, predict, memory = _time_steps(subject, [to_device(batch, subject.device) for batch in batches])
    workers, cpus = config["data"]["workers"], os.cpu_count() or 1
    if subject.device.type == "cpu":  # workers take the cores of the training
        times = [step + read / (cpus if workers else 1) for step in steps]
    else:
        times = [max(step, read / workers) if workers else step + read for step in steps]
    accumulated, limit = config["trainer"]["accumulate_grad_batches"], config["trainer"]["limit_train_batches"]
    folds = subject.prepared.fold_of_items
    total = 0.0
    for part in parts:
        passes = max(1, len(part.trained(folds)) // (size * world * accumulated)) * accumulated
        passes = min(passes, limit) if isinstance(limit, int) else passes
        held = len(part.held(folds)) / (size * world)
        phases = build_phases(config["phases"])
        total += sum(phase.epochs * passes * each for phase, each in zip(phases, times, strict=True))
        validated = sum(phase.epochs for phase in phases) / config["validate_every"]
        total += held * (validated + len(TTA.from_config(config["tta"]).names)) * (predict + read / max(1, workers))
    hours, minutes = divmod(round(total / at_once / 60), 60)
    duration = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{total / at_once:.0f} s"
    models = "1 model" if len(parts) == 1 else f"{len(parts)} models"
    lines = [
        f"a batch of {size}: {read:.2g} s to read in one process, {max(steps):.2g} s to train; {memory}",
        f"{models} will take about {duration}",
    ]
    if subject.device.type != "cpu" and read / max(1, workers) > max(steps):
        lines.append(f"reading is slower than training: raise data.workers (now {workers}), or store smaller images")
    return lines


def _time_steps(subject: Subject, batches: Sequence[Mapping[str, Tensor]]) -> tuple[list[float], float, str]:
    """Seconds of a step in each phase, and of a prediction, and the memory that they need."""
    gpu = subject.device.type == "cuda"
    context = subject.trainer(1).precision_plugin.forward_context
    module = subject.module()
    optimizer = module.make_optimizer(module.network)
    steps = []
    for phase, batch in zip(module.schedule.phases, batches, strict=True):
        learning.set_trainable(module.network, phase.trainable, phase.freeze_bn)
        for _ in range(3 if gpu else 1):  # the first one chooses kernels
            begun = time.perf_counter()
            with context():
                loss = loss_of(module.training_step(dict(batch), 0))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            _wait(gpu)
            last = time.perf_counter() - begun
        steps.append(last)
    module.eval()
    with torch.no_grad(), context():
        begun = time.perf_counter()
        module.network(dict(batches[0]))
        _wait(gpu)
        predict = time.perf_counter() - begun
    if gpu:
        free = torch.cuda.get_device_properties(subject.device).total_memory
        return steps, predict, f"{_gigabytes(torch.cuda.max_memory_reserved())} of {_gigabytes(free)} GPU memory"
    return steps, predict, f"{_gigabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} memory"


def _wait(gpu: bool) -> None:
    if gpu:
        torch.cuda.synchronize()


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
