"""Learning-rate curves over a phase, and the list of phases that a training is made of.

A curve gives a factor for the optimizer's base rates. It is called with `progress`, from 0 at the phase's first
optimizer step to exactly 1 at its last, and `epoch`, the number of epochs begun and passed in the phase
(a fraction within an epoch). Both are needed: a cosine lives on progress, a step schedule on epochs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

TRAINABLE = ("all", "head")
STARTS = ("last", "best")
ROWS = ("real", "pseudo", "both")


class Curve(Protocol):
    """A factor for the base learning rates, in [0, 1], as a function of where a phase stands."""

    def __call__(self, progress: float, epoch: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The base rate throughout."""

    def __call__(self, progress: float, epoch: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up over the share `warmup` of the phase, then half a cosine down to `floor`."""

    warmup: float = 0.0
    floor: float = 0.0

    def __call__(self, progress: float, epoch: float) -> float:
        if progress < self.warmup:
            start = max(self.floor, 0.01)  # a first step at rate 0 would be wasted
            return start + (1 - start) * progress / self.warmup
        return _anneal((progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 1.0, 1.0, self.floor)


@dataclass(frozen=True)
class OneCycle:
    """Cosine from `start` to 1 over the share `rise`, then cosine down to `floor` (Smith & Topin, arXiv:1708.07120)."""

    rise: float = 0.3
    start: float = 0.04
    floor: float = 1e-4

    def __call__(self, progress: float, epoch: float) -> float:
        if progress < self.rise:
            return _anneal(progress / self.rise, self.start, 1.0)
        return _anneal((progress - self.rise) / (1 - self.rise) if self.rise < 1 else 1.0, 1.0, self.floor)


@dataclass(frozen=True)
class Step:
    """Multiplied by `gamma` after every `every` epochs."""

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
    """gamma ** epoch, smoothly within epochs."""

    gamma: float = 0.9

    def __call__(self, progress: float, epoch: float) -> float:
        return self.gamma**epoch


@dataclass(frozen=True)
class CosineRestarts:
    """`cycles` equal cosines; cycle i begins at gamma ** i and each ends at `floor` (SGDR, arXiv:1608.03983)."""

    cycles: int = 3
    gamma: float = 1.0
    floor: float = 0.0

    def __call__(self, progress: float, epoch: float) -> float:
        # The last step of all belongs to the end of the last cycle, not to the start of a further one.
        cycle = min(int(progress * self.cycles), self.cycles - 1)
        return _anneal(progress * self.cycles - cycle, self.gamma**cycle, self.floor)


@dataclass
class Plateau:
    """Multiplied by `gamma` when the validation loss has not improved by `min_delta` for `patience` validations.

    The only curve with a memory: the validation feeds it, the checkpoint keeps its state.
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
        """Take a validation loss into account; lower is better."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.factor, self.waited = max(self.factor * self.gamma, self.floor), 0

    def state_dict(self) -> dict[str, float]:
        """Plain values, so that a checkpoint loads with weights_only=True."""
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.factor, self.best, self.waited = float(state["factor"]), float(state["best"]), int(state["waited"])


def _anneal(share: float, high: float, low: float) -> float:
    """Half a cosine from `high` at share 0 to `low` at share 1."""
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Phase:
    """A stretch of training: so many epochs, what is trainable in it, and a factor for the base rates.

    `frozen_norms`: batch norms outside the head keep their statistics, see `normalized.set_trainable`.
    `snapshot`: a model is kept at its end. `start`: "best" begins from the weights of the epoch with the best score so
    far, by the fold's own validation. `rows`: what is trained on; None: all there are.
    """

    name: str
    epochs: int
    trainable: str = "all"
    lr: float = 1.0
    frozen_norms: bool = False
    snapshot: bool = False
    start: str = "last"
    rows: str | None = None


@dataclass(frozen=True)
class Schedule:
    """The phases of a training and the curve that each of them runs through.

    Epochs and optimizer steps are counted over the whole training, from 0.
    """

    phases: tuple[Phase, ...]
    curve: Curve
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
        """Length of the whole training."""
        return sum(phase.epochs for phase in self.phases)

    def locate(self, epoch: int) -> tuple[Phase, int]:
        """The phase that `epoch` belongs to, and the epoch at which that phase began; past the end, the last phase."""
        start = 0
        for phase in self.phases:
            if epoch < start + phase.epochs:
                return phase, start
            start += phase.epochs
        return self.phases[-1], start - self.phases[-1].epochs

    def factor(self, step: int) -> float:
        """The factor for the base learning rates at optimizer step `step`."""
        phase, start = self.locate(step // self.steps_per_epoch)
        done, total = step - start * self.steps_per_epoch, phase.epochs * self.steps_per_epoch
        # Divided by the last step, not the number of steps, so that a phase ends exactly at its lowest rate.
        progress = min(done / max(total - 1, 1), 1.0)
        return phase.lr * self.curve(progress, done / self.steps_per_epoch)


def build_phases(config: Mapping[str, Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Phases from configs/phases; those of 0 epochs are left out.

    Raises:
        ValueError: an unknown key or value, or nothing to train; every problem is listed.
    """
    problems, phases = [], []
    for name, values in config.items():
        unknown = set(values) - {item.name for item in fields(Phase)}
        if unknown:
            known = ", ".join(item.name for item in fields(Phase)[1:])
            problems.append(f"phases.{name} has {sorted(unknown)}; the keys of a phase are {known}")
        elif not isinstance(values.get("epochs"), int) or values["epochs"] < 0:
            problems.append(f"phases.{name}.epochs is {values.get('epochs')!r}; it is a whole number from 0")
        elif values.get("trainable", "all") not in TRAINABLE:
            problems.append(f"phases.{name}.trainable is {values['trainable']!r}; it is one of {', '.join(TRAINABLE)}")
        elif not values.get("lr", 1.0) > 0:
            problems.append(f"phases.{name}.lr is {values['lr']}; it is a factor above 0 for the optimizer's rate")
        elif values.get("start", "last") not in STARTS:
            problems.append(f"phases.{name}.start is {values['start']!r}; it is one of {', '.join(STARTS)}")
        elif values.get("rows") not in (None, *ROWS):
            problems.append(f"phases.{name}.rows is {values['rows']!r}; it is one of {', '.join(ROWS)}")
        elif wrong := [key for key in ("frozen_norms", "snapshot") if not isinstance(values.get(key, False), bool)]:
            problems.append(f"phases.{name}.{wrong[0]} is {values[wrong[0]]!r}; it is true or false")
        elif values["epochs"] > 0:
            phases.append(Phase(name, **values))
    if not phases and not problems:
        problems.append("phases has no epochs to train; give one, for example phases.train.epochs=12")
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(phases)


def pseudo_shares(phases: Sequence[Phase], share: float | None) -> list[float]:
    """The share of pseudo rows in each epoch of the training.

    Args:
        share: in phases that mix them with real rows, between 0 and 1; None: there are no pseudo rows.

    Raises:
        ValueError: it is no share, or a phase asks for pseudo rows that are not there.
    """
    if share is None:
        asking = [phase for phase in phases if phase.rows in ("pseudo", "both")]
        if asking:
            raise ValueError(
                f"phases.{asking[0].name}.rows is {asking[0].rows}, but there are no pseudo rows: make them with "
                "pseudo_label.py and name them with data.pseudo=<table>"
            )
    elif isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"data.pseudo_share is {share!r}; it lies between 0 and 1, for example 0.5")
    shares = {None: share or 0.0, "real": 0.0, "pseudo": 1.0, "both": share or 0.0}
    return [shares[phase.rows] for phase in phases for _ in range(phase.epochs)]
