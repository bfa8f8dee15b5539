"""Time and memory of a training, forecast from a few of its steps."""

import math
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foldwise.data.batches import collate, to_device
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared
from foldwise.inference.tta import TTA
from foldwise.preflight import learning
from foldwise.preflight.subject import Subject, loss_of
from foldwise.schedule.phases import build_phases

ENOUGH = 0.5  # seconds of calls that are timed


class Costs(NamedTuple):
    """Seconds of the parts of a training.

    Attributes:
        size: images in a batch.
        read: a batch, by one process.
        steps: an optimizer step on a batch in each phase.
        predict: a batch, without gradients.
        memory: gigabytes in use, on the GPU if there is one.
        gpu: computed on a GPU, beside which the CPU reads.
    """

    size: int
    read: float
    steps: tuple[float, ...]
    predict: float
    memory: float
    gpu: bool


def measure(subject: Subject, size: int) -> Costs:
    """Read a batch of `size` images in each phase, and train on it."""
    dataset, rows, epochs = subject.dataset, np.resize(subject.rows, size), subject.training.module.schedule.epochs
    firsts = [dataset[int(rows[0]), epoch] for epoch in range(epochs)]  # one a phase; imports what reading needs
    begun = time.perf_counter()
    samples = [dataset[int(row), 0] for row in rows]
    read = time.perf_counter() - begun
    batches = [collate(samples if epoch == 0 else [first] * size, dataset.fields) for epoch, first in enumerate(firsts)]
    steps, predict = _time_steps(subject, [to_device(batch, subject.device) for batch in batches])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if subject.device.type == "cuda":
        used = torch.cuda.max_memory_reserved()
    return Costs(size, read, tuple(steps), predict, used / 1e9, subject.device.type != "cpu")


def _time_steps(subject: Subject, batches: Sequence[Mapping[str, Tensor]]) -> tuple[list[float], float]:
    """Seconds of a step in each phase, and of a prediction."""
    gpu = subject.device.type == "cuda"
    context = subject.trainer(1).precision_plugin.forward_context
    module = subject.module()
    optimizer = module.make_optimizer(module.network)

    def step(batch: Mapping[str, Tensor]) -> None:
        with context():
            loss = loss_of(module.training_step(dict(batch), 0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def predict(batch: Mapping[str, Tensor]) -> None:
        with torch.no_grad(), context():
            module.network(dict(batch))

    steps = []
    for phase, batch in zip(module.schedule.phases, batches, strict=True):
        learning.set_trainable(module.network, phase.trainable, phase.freeze_bn)
        steps.append(_seconds(partial(step, batch), gpu))
    module.eval()
    return steps, _seconds(partial(predict, batches[0]), gpu)


def _seconds(call: Callable[[], None], gpu: bool) -> float:
    """Mean duration of a call, the first one apart, which chooses kernels."""
    passed = list[float]()
    while len(passed) < 2 or (sum(passed[1:]) < ENOUGH and len(passed) < 10):
        begun = time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize()
        passed.append(time.perf_counter() - begun)
    return float(np.mean(passed[1:]))


def forecast(
    config: Mapping[str, Any], costs: Costs, prepared: Prepared, parts: Sequence[Holdout], world: int, at_once: int
) -> float:
    """Seconds of training and predicting `parts`, without the start of processes.

    Args:
        config: with the lengths of the phases; the other settings are those of `costs`, but for its batch size.
        world: processes per model.
        at_once: models that train at the same time.
    """
    workers, cpus, threads = config["data"]["workers"], os.cpu_count() or 1, torch.get_num_threads()
    scale = config["batch_size"] / (costs.size * world * config["trainer"]["accumulate_grad_batches"])

    def both(compute: float) -> float:
        """Seconds of a batch that is read while another one is computed."""
        if not workers:
            return compute + costs.read
        shared = 0.0 if costs.gpu else (compute * threads + costs.read) * at_once / cpus
        return max(compute, costs.read / workers, shared)

    accumulated, limit = config["trainer"]["accumulate_grad_batches"], config["trainer"]["limit_train_batches"]
    phases = build_phases(config["phases"])
    views, folds, longest = len(TTA.from_config(config["tta"]).names), prepared.fold_of_items, []
    for part in parts:
        passes = max(1, len(part.trained(folds)) // config["batch_size"]) * accumulated
        passes = min(passes, limit or passes)
        trained = sum(
            phase.epochs * passes * scale * both(step) for phase, step in zip(phases, costs.steps, strict=True)
        )
        validated = sum(phase.epochs for phase in phases) // config["validate_every"] if part.folds else 0
        held = len(prepared.predicted(part)) / (costs.size * world)
        longest.append(trained + held * (validated * both(costs.predict) + both(views * costs.predict)))
    return sum(longest) / len(longest) * math.ceil(len(parts) / at_once)


def in_words(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes > 4 else f"{seconds:.0f} s"
