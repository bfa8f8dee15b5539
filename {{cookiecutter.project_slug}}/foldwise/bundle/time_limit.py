"""Time limit of an inference: forecasts the end and drops views and models to meet the limit."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from foldwise.bundle.spec import BundleSpec
from foldwise.tasks.views import View

RESERVE = 0.05  # of the limit, for writing and for images that take longer than earlier ones
STEADY = 0.01  # of the images, after which the speed is reliable


class Pace:
    """Measures the speed and forecasts the end, in seconds.

    The first batch does not count, because it waits for workers and kernel selection. Forecasts assume that a pass
    costs the same in every network; later ones correct the error.

    Args:
        later: passes per image that a second stage needs at least.
    """

    def __init__(
        self,
        images: int,
        limit: float | None = None,
        start: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        later: int = 0,
    ) -> None:
        self.images, self.clock, self.later = images, clock, later
        self.allowed = float("inf") if limit is None else limit * (1 - RESERVE)  # seconds
        self.start = self.now = self.first = clock() if start is None else start
        self.done = self.measured = 0  # images: all, and those after the first batch
        self.passes = 0.0  # of the measured images

    def advance(self, images: int, passes: float) -> None:
        """Record that `images` more are done, with `passes` forward passes each."""
        self.now = self.clock()
        if self.done:
            self.measured += images
            self.passes += images * passes
        else:
            self.first = self.now
        self.done += images

    @property
    def seconds(self) -> float | None:
        """Seconds per image after the first batch; None if there was only one batch."""
        return (self.now - self.first) / self.measured if self.measured else None

    def forecast(self, passes: float) -> float | None:
        """Forecast the total seconds with `passes` per remaining image; None until the speed is known."""
        if not self.passes or self.measured < STEADY * self.images:
            return None
        seconds_per_pass = (self.now - self.first) / self.passes
        left = passes * (self.images - self.done) + self.later * self.images
        return self.now - self.start + seconds_per_pass * left

    @property
    def is_over(self) -> bool:
        return self.clock() - self.start >= self.allowed


class Active:
    """Views, snapshots and folds of each run that are still in use.

    Views are dropped first, then snapshots, then folds: each time from the run that has most of them left (the last one
    if equal), its last view, earliest snapshot or last fold. Each run keeps one view and one snapshot, and one fold in
    all stays. Stacking needs all runs of a fold, so a fold is dropped from all of them.
    """

    def __init__(self, spec: BundleSpec) -> None:
        self.names = [run.name for run in spec.runs]
        self.views = [list(run.views) for run in spec.runs]
        self.snapshots = [sorted({model.snapshot for model in run.models}) for run in spec.runs]
        self.folds = [list(run.weights) for run in spec.runs]
        self.together = spec.stacks is not None

    @property
    def members(self) -> list[tuple[int, int]]:
        """(run number, fold), as `BundleSpec.members`."""
        return [(run, fold) for run, folds in enumerate(self.folds) for fold in folds]

    @property
    def passes(self) -> float:
        """Forward passes per image; a scaled view counts by its share of pixels."""
        pixels = [sum(View.from_name(name).scale ** 2 for name in views) for views in self.views]
        return sum(pixels[run] * len(self.snapshots[run]) for run, _ in self.members)

    def drop(self) -> str:
        """Drop the next view, snapshot or fold and return its name, or "" if nothing is left to drop."""
        run = _longest(self.views)
        if len(self.views[run]) > 1:
            return f"{self.names[run]} {self.views[run].pop()}"
        run = _longest(self.snapshots)
        if len(self.snapshots[run]) > 1:
            return f"{self.names[run]} snapshot {self.snapshots[run].pop(0)}"
        if self.together and len(self.folds[0]) > 1:
            fold = self.folds[0][-1]
            self.folds = [folds[:-1] for folds in self.folds]
            return f"fold {fold}"
        run = _longest(self.folds)
        if self.together:
            return ""
        return f"{self.names[run]} fold {self.folds[run].pop()}" if len(self.members) > 1 else ""


def _longest(lists: Sequence[Sequence[Any]]) -> int:
    return max(range(len(lists)), key=lambda run: (len(lists[run]), run))


def keep_time(pace: Pace, active: Active) -> list[str]:
    """Drop views, snapshots and folds until the forecast meets the limit; return their names."""
    dropped: list[str] = []
    while (pace.forecast(active.passes) or 0) > pace.allowed and (name := active.drop()):
        dropped.append(name)
    if dropped:
        print(f"short of time, dropped: {', '.join(dropped)}", flush=True)
    return dropped
