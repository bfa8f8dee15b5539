"""How long it will take, from how long it took."""

import time
from collections.abc import Callable

RESERVE = 0.05  # of the time limit: for writing, and for pictures that take longer than those before
STEADY = 0.01  # of the images: after so many, a speed can be believed


class Pace:
    """Measures the images a second and forecasts the end.

    Speed counts from the end of the first batch on, which waits for workers to start and kernels to be chosen, and
    anew from each `restart`.

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
        self.images, self.limit, self.clock = images, limit, clock
        self.start = clock() if start is None else start
        self.done = 0
        self.now = self.start
        self.first: tuple[float, int] | None = None  # the end of the first batch, and its images
        self.since: tuple[float, int] | None = None

    def advance(self, images: int) -> None:
        """So many images more are done."""
        self.done += images
        self.now = self.clock()
        if self.first is None:
            self.first = (self.now, self.done)
            self.restart()

    def restart(self) -> None:
        """Measure anew: from here on, an image takes another time."""
        self.since = (self.now, self.done)

    @property
    def elapsed(self) -> float:
        """Seconds until the last images were done."""
        return self.now - self.start

    @property
    def seconds_per_image(self) -> float | None:
        """The speed; None until it can be believed."""
        return self._rate(self.since) if self.since and self.done - self.since[1] >= STEADY * self.images else None

    @property
    def mean_seconds(self) -> float | None:
        """Seconds an image over all the time; None where there was one batch only."""
        return self._rate(self.first) if self.first else None

    @property
    def first_batch(self) -> float:
        """Seconds until the first batch was done."""
        return self.first[0] - self.start if self.first else 0.0

    def _rate(self, since: tuple[float, int]) -> float | None:
        images = self.done - since[1]
        return (self.now - since[0]) / images if images else None

    @property
    def forecast(self) -> float | None:
        """The seconds that everything will have taken."""
        rate = self.seconds_per_image
        return None if rate is None else self.elapsed + rate * (self.images - self.done)

    @property
    def allowed(self) -> float:
        """The seconds that predicting may take."""
        return float("inf") if self.limit is None else self.limit * (1 - RESERVE)

    @property
    def is_over(self) -> bool:
        """Whether no more can be predicted in time."""
        return self.clock() - self.start >= self.allowed
