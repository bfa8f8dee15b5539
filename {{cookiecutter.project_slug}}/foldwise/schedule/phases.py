"""The phases that a training is made of, and the learning rate over all of them.

    phases:
      head:  {share: 1, trainable: head}
      heavy: {share: 12, augmentation: hard, image_size: 96}
      light: {share: 4, augmentation: flip, lr: 0.1, start: best, snapshot: true}

`share` is the phase's part of the training's `epochs`, in proportion to the other phases' shares. Settings left out are
those of the run. It needs no torch.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from foldwise.data.images import image_hw
from foldwise.errors import Refusal
from foldwise.files import is_number
from foldwise.schedule.schedulers import Plateau, Scheduler

TRAINABLE = re.compile(r"all|head|last([1-9]\d*)")
STARTS = ("last", "best")
ROWS = ("real", "pseudo", "both")


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs of a training with settings of their own; None: those of the run.

    Attributes:
        trainable: "head", "last<n>" (the head and the last n layers, see `normalized.set_trainable`) or "all".
        freeze_bn: BatchNorm outside the head is frozen.
        lr: factor of optimizer.lr.
        scheduler: of its lr, as the content of a file of configs/scheduler.
        augmentation: as the content of a file of configs/augmentation.
        image_size: of the training images, one number or [height, width]; validation and prediction keep
            data.image_size.
        rows: what is trained on; None: all there are.
        start: "best" begins from the weights of the epoch with the best score so far, by the fold's own validation,
            among the epochs since other layers were trained.
        snapshot: a model is kept at its end.
    """

    name: str
    epochs: int
    trainable: str = "all"
    freeze_bn: bool = False
    lr: float = 1.0
    scheduler: Mapping[str, Any] | None = None
    augmentation: Mapping[str, Any] | None = None
    image_size: int | Sequence[int] | None = None
    rows: str | None = None
    start: str = "last"
    snapshot: bool = False


@dataclass(frozen=True)
class Schedule:
    """The phases of a training and the lr scheduler of each, by its name.

    Epochs and optimizer steps are counted over the whole training, from 0.
    """

    phases: tuple[Phase, ...]
    schedulers: Mapping[str, Scheduler]
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
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
        """The factor of the base lr at optimizer step `step`."""
        phase, start = self.locate(step // self.steps_per_epoch)
        done, total = step - start * self.steps_per_epoch, phase.epochs * self.steps_per_epoch
        # Divided by the last step, not the number of steps, so that a phase ends exactly at its lowest lr.
        progress = min(done / max(total - 1, 1), 1.0)
        return phase.lr * self.schedulers[phase.name](progress, done / self.steps_per_epoch)

    def observe(self, epoch: int, loss: float) -> None:
        """Hand the validation loss of an epoch to its phase's scheduler, where that is a `Plateau`."""
        scheduler = self.schedulers[self.locate(epoch)[0].name]
        if isinstance(scheduler, Plateau):
            scheduler.observe(loss)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """State of the `Plateau` schedulers by phase, as plain values: a checkpoint loads with weights_only=True."""
        return {name: each.state_dict() for name, each in self.schedulers.items() if isinstance(each, Plateau)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore the state of `state_dict`."""
        for name, scheduler in self.schedulers.items():
            if isinstance(scheduler, Plateau):
                scheduler.load_state_dict(state[name])


def share_epochs(epochs: int, shares: Mapping[str, Any]) -> dict[str, int]:
    """The whole epochs of each phase: in proportion to its share, by the largest remainders, at least 1.

    Args:
        epochs: of the whole training.
        shares: by the name of the phase; a phase of share 0 gets no epoch.

    Raises:
        Refusal: a share that is no number from 0, none above 0, or fewer epochs than phases.
    """
    problems = [
        f"phases.{name}.share is {share!r}; it is a number from 0, in proportion to the other phases' shares of epochs"
        for name, share in shares.items()
        if not is_number(share) or not 0 <= share < math.inf
    ]
    if problems:
        raise Refusal("\n".join(problems))
    taking = {name: share for name, share in shares.items() if share > 0}
    if not taking:
        raise Refusal("no phase has a share of the epochs above 0; set phases.train.share=1, for example")
    if epochs < len(taking):
        raise Refusal(
            f"epochs={epochs} is shared out over {len(taking)} phases ({', '.join(taking)}): each needs one epoch or "
            f"more; set epochs={len(taking)} or more, or the share of a phase to 0"
        )
    exact = {name: epochs * share / sum(taking.values()) for name, share in taking.items()}
    given = {name: max(1, int(value)) for name, value in exact.items()}
    while missing := epochs - sum(given.values()):
        step = 1 if missing > 0 else -1
        able = [name for name in given if given[name] + step >= 1]
        given[max(able, key=lambda name: step * (exact[name] - given[name]))] += step
    return dict.fromkeys(shares, 0) | given


def build_phases(config: Mapping[str, Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Phases as `config.resolve_config` gives them, with epochs in place of shares; those of 0 epochs are left out.

    Raises:
        Refusal: an unknown key or value, or nothing to train; every problem is listed.
    """
    problems = [problem for name, values in config.items() for problem in _find_problems(name, values)]
    phases = () if problems else tuple(Phase(name, **values) for name, values in config.items() if values["epochs"])
    if not phases and not problems:
        problems.append("phases has no epochs to train; set epochs=12, for example, and a share of a phase above 0")
    if problems:
        raise Refusal("\n".join(problems))
    return phases


def _find_problems(name: str, values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [f"phases.{name} is {values!r}; it has keys, of which share is needed"]
    known = [item.name for item in fields(Phase)[2:]]
    problems = [
        f"phases.{name} has {key!r}; the keys of a phase are share, {', '.join(known)}"
        for key in values
        if key not in ("epochs", *known)
    ]
    given = {"epochs": None} | {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        allows, what = ALLOWED.get(key, (lambda _: True, ""))
        if not allows(value):
            problems.append(f"phases.{name}.{key} is {value!r}; it is {what}")
    return problems


def _is_size(value: Any) -> bool:
    try:
        image_hw(value)
    except (Refusal, TypeError):
        return False
    return True


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


# Of each key of a phase: whether a value is allowed, and what it is.
ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda value: type(value) is int and value >= 0, "a whole number from 0"),
    "trainable": (
        lambda value: isinstance(value, str) and TRAINABLE.fullmatch(value) is not None,
        "all, head, or last1, last2, ... for the head and so many layers before it",
    ),
    "freeze_bn": (_is_flag, "true or false"),
    "lr": (lambda value: is_number(value) and value > 0, "a factor above 0 for optimizer.lr"),
    "scheduler": (lambda value: isinstance(value, Mapping) and "_target_" in value, "a choice of configs/scheduler"),
    "augmentation": (
        lambda value: isinstance(value, Mapping) and set(value) == {"transforms", "mixup", "cutmix"},
        "a choice of configs/augmentation, or has its keys: transforms, mixup, cutmix",
    ),
    "image_size": (_is_size, "a whole number or [height, width]"),
    "rows": (lambda value: value in ROWS, f"one of {', '.join(ROWS)}"),
    "start": (lambda value: value in STARTS, f"one of {', '.join(STARTS)}"),
    "snapshot": (_is_flag, "true or false"),
}


def pseudo_shares(phases: Sequence[Phase], share: float | None) -> list[float]:
    """The share of pseudo rows in each epoch of the training.

    Args:
        share: in phases that mix them with real rows, between 0 and 1; None: there are no pseudo rows.

    Raises:
        Refusal: it is no share, or a phase asks for pseudo rows that are not there.
    """
    if share is None:
        for phase in phases:
            if phase.rows in ("pseudo", "both"):
                raise Refusal(
                    f"phases.{phase.name}.rows is {phase.rows}, but there are no pseudo rows: make them with "
                    "tools/pseudo_label.py and name them with data.pseudo=<table>"
                )
    elif not is_number(share) or not 0 < share < 1:
        raise Refusal(f"data.pseudo_share is {share!r}; it lies between 0 and 1, for example 0.5")
    shares = {None: share or 0.0, "real": 0.0, "pseudo": 1.0, "both": share or 0.0}
    return [shares[phase.rows] for phase in phases for _ in range(phase.epochs)]
