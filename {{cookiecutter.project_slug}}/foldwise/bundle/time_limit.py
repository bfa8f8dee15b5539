"""Keeping a time limit: the end is forecast from the speed, and where it is too late, views and models are dropped."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from foldwise.bundle.spec import BundleSpec
from foldwise.tasks.views import View

RESERVE = 0.05  # of the limit: for writing, and for pictures that take longer than those before
STEADY = 0.01  # of the images: after so many, a speed can be believed


class Pace:
    """Measures the speed and forecasts the end.

    It counts from the end of the first batch, which waits for workers to start and kernels to be chosen. A pass is
    taken to cost the same in every network; where that is wrong, later forecasts show it.

    Args:
        images: to predict.
        limit: seconds that everything may take; None: as long as it takes.
        start: when everything began, on the clock; None: now.
    """

    def __init__(
        self,
        images: int,
        limit: float | None = None,
        start: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.images, self.clock = images, clock
        self.allowed = float("inf") if limit is None else limit * (1 - RESERVE)  # seconds that predicting may take
        self.start = self.now = self.first = clock() if start is None else start
        self.done = self.measured = 0  # images, and those after the first batch
        self.passes = 0.0  # of the measured images

    def advance(self, images: int, passes: float) -> None:
        """So many images more are done, with so many forward passes each."""
        self.now = self.clock()
        if self.done:
            self.measured += images
            self.passes += images * passes
        else:
            self.first = self.now
        self.done += images

    @property
    def seconds(self) -> float | None:
        """Seconds an image since the first batch; None where there was one batch only."""
        return (self.now - self.first) / self.measured if self.measured else None

    def forecast(self, passes: float) -> float | None:
        """The seconds that everything will have taken, with so many passes an image; None until the speed is known."""
        if not self.passes or self.measured < STEADY * self.images:
            return None
        of_pass = (self.now - self.first) / self.passes
        return self.now - self.start + of_pass * passes * (self.images - self.done)

    @property
    def is_over(self) -> bool:
        """Whether no more can be predicted in time."""
        return self.clock() - self.start >= self.allowed


class Active:
    """What of a bundle still predicts: the views, snapshots and folds of each run.

    They are dropped in a fixed order: views, then snapshots, then models of folds; always of the run that has most of
    them left (the last of equals), its last view, its earliest snapshot, its last fold. One view and snapshot of each
    run stay, and one model.
    """

    def __init__(self, spec: BundleSpec) -> None:
        self.names = [run.name for run in spec.runs]
        self.views = [list(run.views) for run in spec.runs]
        self.snapshots = [sorted({model.snapshot for model in run.models}) for run in spec.runs]
        self.folds = [list(run.weights) for run in spec.runs]

    @property
    def members(self) -> list[tuple[int, int]]:
        """(number of the run, fold), as `BundleSpec.members`."""
        return [(run, fold) for run, folds in enumerate(self.folds) for fold in folds]

    @property
    def passes(self) -> float:
        """Forward passes an image; of a scaled view, the share of its pixels."""
        pixels = [sum(View.from_name(name).scale ** 2 for name in views) for views in self.views]
        return sum(pixels[run] * len(self.snapshots[run]) for run, _ in self.members)

    def drop(self) -> str:
        """Drop what goes next; its name, "" where nothing can go."""
        run = _longest(self.views)
        if len(self.views[run]) > 1:
            return f"{self.names[run]} {self.views[run].pop()}"
        run = _longest(self.snapshots)
        if len(self.snapshots[run]) > 1:
            return f"{self.names[run]} snapshot {self.snapshots[run].pop(0)}"
        run = _longest(self.folds)
        return f"{self.names[run]} fold {self.folds[run].pop()}" if len(self.members) > 1 else ""


def _longest(lists: Sequence[Sequence[Any]]) -> int:
    return max(range(len(lists)), key=lambda run: (len(lists[run]), run))


def keep_time(pace: Pace, active: Active) -> list[str]:
    """Drop views, snapshots and models until the forecast keeps the limit; the names of what went."""
    dropped: list[str] = []
    while (pace.forecast(active.passes) or 0) > pace.allowed and (name := active.drop()):
        dropped.append(name)
    if dropped:
        print(f"short of time, dropped: {', '.join(dropped)}", flush=True)
    return dropped
