"""Runs all checks of a training before its first fold, and forecasts what it costs."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from foldwise.code.source import Code
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared
from foldwise.preflight import learning, reading
from foldwise.preflight.forecast import forecast, in_words, measure
from foldwise.preflight.sheet import draw_sheet
from foldwise.preflight.shuffled import check_shuffled
from foldwise.preflight.subject import Subject
from foldwise.processes.group import Rank
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
    sharing = 1 if torch.cuda.is_available() else at_once
    torch.set_num_threads(config["threads"] or max(1, torch.get_num_threads() // sharing))
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
    costs, workers = measure(subject, local_batch_size(config, Rank(0, world))), config["data"]["workers"]
    memory = f"{costs.memory:.1f} GB"
    if subject.device.type == "cuda":
        memory += f" of {torch.cuda.get_device_properties(subject.device).total_memory / 1e9:.1f} GB GPU"
    models = "1 model" if len(parts) == 1 else f"{len(parts)} models"
    lines = [
        f"a batch of {costs.size}: {costs.read:.2g} s to read in one process, {max(costs.steps):.2g} s to train; "
        f"{memory} memory",
        f"{models} will take about {in_words(forecast(config, costs, subject.prepared, parts, world, at_once))}",
    ]
    if costs.gpu and costs.read / max(1, workers) > max(costs.steps):
        lines.append(f"reading is slower than training: raise data.workers (now {workers}), or store smaller images")
    return lines
