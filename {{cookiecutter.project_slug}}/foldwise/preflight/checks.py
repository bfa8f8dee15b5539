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


class Result(NamedTuple):
    """Result of the checks: sentences about failures, lines about the rest, and the PNG of the sheet, if any."""

    problems: list[str]
    lines: list[str]
    sheet: bytes | None


def run_checks(
    config: Mapping[str, Any], prepared: Prepared, parts: Sequence[Holdout], code: Code, world: int, at_once: int
) -> Result:
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
        return Result(problems, [], sheet)
    start, constant = learning.first_loss(subject)
    _, losses = subject.learnt
    compared = "" if constant is None else f", of a constant prediction {constant:.3g}"
    lines = [
        f"first loss {start:.3g}{compared}; one batch learnt in {len(losses)} steps, to {losses[-1]:.2g}",
        *_forecast(config, subject, parts, world, at_once),
    ]
    return Result([], [f"{len(checks)} checks passed in {time.perf_counter() - begun:.0f} s", *lines], sheet)


def _forecast(
    config: Mapping[str, Any], subject: Subject, parts: Sequence[Holdout], world: int, at_once: int
) -> list[str]:
    """Time of a batch, memory, and duration of the training."""
    size = local_batch_size(config, Rank(0, world))
    begun, rows = time.perf_counter(), [int(row) for row in np.resize(subject.rows, size)]
    samples = [subject.dataset[row, 0] for row in rows]
    read = time.perf_counter() - begun
    further = range(1, subject.training.module.schedule.epochs)  # one a phase
    packed = [samples, *([subject.dataset[rows[0], epoch]] * size for epoch in further)]
    batches = [to_device(collate(each, subject.dataset.fields), subject.device) for each in packed]
    steps, predict, memory = _time_steps(subject, batches)
    workers, cpus = config["data"]["workers"], os.cpu_count() or 1
    if subject.device.type == "cpu":  # workers take the cores of the training
        times = [step + read / (cpus if workers else 1) for step in steps]
    else:
        times = [max(step, read / workers) if workers else step + read for step in steps]
    accumulated, limit = config["trainer"]["accumulate_grad_batches"], config["trainer"]["limit_train_batches"]
    folds, phases, total = subject.prepared.fold_of_items, build_phases(config["phases"]), 0.0
    for part in parts:
        passes = max(1, len(part.trained(folds)) // (size * world * accumulated)) * accumulated
        passes = min(passes, limit) if isinstance(limit, int) else passes
        held = len(part.held(folds)) / (size * world)
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
    wait = torch.cuda.synchronize if gpu else lambda: None
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
            wait()
            last = time.perf_counter() - begun
        steps.append(last)
    module.eval()
    with torch.no_grad(), context():
        begun = time.perf_counter()
        module.network(dict(batches[0]))
        wait()
        predict = time.perf_counter() - begun
    if not gpu:
        return steps, predict, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.1f} GB memory"
    used, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(subject.device).total_memory
    return steps, predict, f"{used / 1e9:.1f} of {total / 1e9:.1f} GB GPU memory"
