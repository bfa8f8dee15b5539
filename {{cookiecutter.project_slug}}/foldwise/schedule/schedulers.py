"""Learning-rate schedulers of a phase.

A scheduler returns a factor of the base lr. Its arguments are `progress`, from 0 at the phase's first optimizer step to
exactly 1 at its last, and `epoch`, the epochs since the phase began, with fractions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Scheduler(Protocol):
    """Factor of the base lr, in [0, 1]."""

    def __call__(self, progress: float, epoch: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """Base lr throughout."""

    def __call__(self, progress: float, epoch: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up during the share `warmup` of the phase, then half a cosine down to `floor`."""

    warmup: float = 0.0
    floor: float = 0.0

    def __call__(self, progress: float, epoch: float) -> float:
        if progress < self.warmup:
            start = max(self.floor, 0.01)  # a first step at lr 0 would be wasted
            return start + (1 - start) * progress / self.warmup
        return _anneal(progress, self.warmup, self.floor)


@dataclass(frozen=True)
class OneCycle:
    """Cosine from `start` up to 1 during the share `rise`, then down to `floor` (Smith & Topin, arXiv:1708.07120)."""

    rise: float = 0.3
    start: float = 0.04
    floor: float = 1e-4

    def __call__(self, progress: float, epoch: float) -> float:
        if progress < self.rise:
            return _cosine(progress / self.rise, self.start, 1.0)
        return _anneal(progress, self.rise, self.floor)


@dataclass(frozen=True)
class Step:
    """Multiplies the lr by `gamma` every `every` epochs."""

    every: int
    gamma: float = 0.1

    def __call__(self, progress: float, epoch: float) -> float:
        return self.gamma ** int(epoch / self.every)


@dataclass(frozen=True)
class Poly:
    """(1 - progress) ** power, down to `floor` (DeepLab, arXiv:1606.00915)."""

    power: float = 0.9
    floor: float = 0.0

    def __call__(self, progress: float, epoch: float) -> float:
        return self.floor + (1 - self.floor) * (1 - progress) ** self.power


@dataclass(frozen=True)
class Exponential:
    """gamma ** (epoch / every), also within epochs."""

    gamma: float = 0.9
    every: float = 1.0

    def __call__(self, progress: float, epoch: float) -> float:
        return self.gamma ** (epoch / self.every)


@dataclass(frozen=True)
class CosineRestarts:
    """`cycles` equal cosines; cycle i starts at gamma ** i, all end at `floor` (SGDR, arXiv:1608.03983)."""

    cycles: int = 3
    gamma: float = 1.0
    floor: float = 0.0

    def __call__(self, progress: float, epoch: float) -> float:
        # The very last step ends the last cycle; it does not start another one.
        cycle = min(int(progress * self.cycles), self.cycles - 1)
        return _cosine(progress * self.cycles - cycle, self.gamma**cycle, self.floor)


@dataclass
class Plateau:
    """Multiplies the lr by `gamma` when the validation loss has not improved by `min_delta` for `patience` validations.

    The only scheduler with state, which is saved in the checkpoint.
    """

    patience: int = 3
    gamma: float = 0.1
    min_delta: float = 1e-4
    floor: float = 1e-4
    factor: float = field(default=1.0, init=False)
    best: float = field(default=math.inf, init=False)
    waited: int = field(default=0, init=False)

    def __call__(self, progress: float, epoch: float) -> float:
        return self.factor

    def observe(self, loss: float) -> None:
        """Report a validation loss; lower is better."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.factor, self.waited = max(self.factor * self.gamma, self.floor), 0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.factor, self.best, self.waited = float(state["factor"]), float(state["best"]), int(state["waited"])


def _anneal(progress: float, begin: float, floor: float) -> float:
    """Half a cosine from 1 at progress `begin` to `floor` at progress 1."""
    return _cosine((progress - begin) / (1 - begin) if begin < 1 else 1.0, 1.0, floor)


def _cosine(share: float, first: float, last: float) -> float:
    """Half a cosine from `first` at share 0 to `last` at share 1."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))
