"""Keeping a time limit: the end is forecast from the speed, and where it is too late, views and models are dropped."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from foldwise.bundle.spec import BundleSpec
from foldwise.inference.views import View

RESERVE = 0.05  # of the limit: for writing, and for pictures that take longer than those before
STEADY = 0.01  # of the images: after so many, a speed can be believed


class Pace:
    """Measures seconds an image and forecasts the end.

    Speed counts from the end of the first batch, which waits for workers to start and kernels to be chosen, and anew
    from each `restart`.

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
        self.start = self.now = clock() if start is None else start
        self.done = 0
        self.first: tuple[float, int] | None = None  # end of the first batch, and its images
        self.since: tuple[float, int] | None = None  # the same of the last restart

    def advance(self, images: int) -> None:
        """So many images more are done."""
        self.done += images
        self.now = self.clock()
        if self.first is None:
            self.first = self.since = (self.now, self.done)

    def restart(self) -> None:
        """Measure anew: from here on, an image takes another time."""
        self.since = (self.now, self.done)

    @property
    def first_batch(self) -> float:
        """Seconds until the first batch was done."""
        return self.first[0] - self.start if self.first else 0.0

    @property
    def mean_seconds(self) -> float | None:
        """Seconds an image since the first batch; None where there was one batch only."""
        return self._seconds(self.first)

    @property
    def left(self) -> float | None:
        """The seconds that the other images will take; None until the speed can be believed."""
        seconds = self._seconds(self.since, STEADY * self.images)
        return None if seconds is None else seconds * (self.images - self.done)

    @property
    def forecast(self) -> float | None:
        """The seconds that everything will have taken."""
        return None if self.left is None else self.now - self.start + self.left

    @property
    def is_over(self) -> bool:
        """Whether no more can be predicted in time."""
        return self.clock() - self.start >= self.allowed

    def _seconds(self, since: tuple[float, int] | None, images: float = 1) -> float | None:
        """Seconds an image since then, if there were so many."""
        done = self.done - since[1] if since else 0
        return (self.now - since[0]) / done if since and done >= max(images, 1) else None


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
    """Drop views, snapshots and models until the forecast keeps the limit; the names of what went.

    A pass is taken to cost the same in every network: where that is wrong, the next forecast drops more.
    """
    left, spent, passes, dropped = pace.left, pace.now - pace.start, active.passes, []
    while left is not None and spent + left * active.passes / passes > pace.allowed and (name := active.drop()):
        dropped.append(name)
    if dropped:
        print(f"short of time, dropped: {', '.join(dropped)}", flush=True)
        pace.restart()
    return dropped
