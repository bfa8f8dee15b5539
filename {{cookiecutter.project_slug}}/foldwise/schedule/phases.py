"""Phases of a training, and the learning rate over all of them.

    phases:
      head:  {share: 1, trainable: head}
      heavy: {share: 12, augmentation: hard, image_size: 96}
      light: {share: 4, augmentation: flip, lr: 0.1, start: best, snapshot: true}

`share` divides the training's `epochs` between the phases in proportion. Missing settings are those of the run. This
module needs no torch.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from foldwise.data.images import is_image_size
from foldwise.errors import Refusal
from foldwise.files import is_number
from foldwise.schedule.schedulers import Plateau, Scheduler

TRAINABLE = re.compile(r"all|head|last([1-9]\d*)")
STARTS = ("last", "best")
ROWS = ("real", "pseudo", "both")


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs with their own settings; None: as in the run.

    Attributes:
        trainable: "head", "last<n>" (the head and the n layers before it) or "all"; see `normalized.set_trainable`.
        freeze_bn: freeze BatchNorm outside the head.
        lr: factor of optimizer.lr.
        scheduler, augmentation, mixing: content of a file of that group in configs/.
        image_size: of training images, one number or [height, width]; validation and prediction use data.image_size.
        rows: "real", "pseudo" or "both"; None: all there are.
        relabel: epochs that soft targets of the unlabelled rows are kept, see training/relabelling.py; None: no such
            rows.
        start: "best" starts from the epoch with the best validation score since the trained layers last changed.
        snapshot: save a model at the end.
    """

    name: str
    epochs: int
    trainable: str = "all"
    freeze_bn: bool = False
    lr: float = 1.0
    scheduler: Mapping[str, Any] | None = None
    augmentation: Mapping[str, Any] | None = None
    mixing: Mapping[str, Any] | None = None
    image_size: int | Sequence[int] | None = None
    rows: str | None = None
    relabel: int | None = None
    start: str = "last"
    snapshot: bool = False


@dataclass(frozen=True)
class Schedule:
    """Phases of a training and their lr schedulers by name; epochs and optimizer steps count from 0 over all phases."""

    phases: tuple[Phase, ...]
    schedulers: Mapping[str, Scheduler]
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def locate(self, epoch: int) -> tuple[Phase, int]:
        """Find the phase of `epoch` (past the end, the last one), and that phase's first epoch."""
        start = 0
        for phase in self.phases:
            if epoch < start + phase.epochs:
                return phase, start
            start += phase.epochs
        return self.phases[-1], start - self.phases[-1].epochs

    def factor(self, step: int) -> float:
        """Factor of the base lr at an optimizer step."""
        phase, start = self.locate(step // self.steps_per_epoch)
        done, total = step - start * self.steps_per_epoch, phase.epochs * self.steps_per_epoch
        # Divide by the last step, not the number of steps, so that a phase ends exactly at its lowest lr.
        progress = min(done / max(total - 1, 1), 1.0)
        return phase.lr * self.schedulers[phase.name](progress, done / self.steps_per_epoch)

    def observe(self, epoch: int, loss: float) -> None:
        """Report the validation loss of an epoch to its phase's scheduler, if that is a `Plateau`."""
        scheduler = self.schedulers[self.locate(epoch)[0].name]
        if isinstance(scheduler, Plateau):
            scheduler.observe(loss)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """State of the `Plateau` schedulers by phase, as plain values for weights_only=True."""
        return {name: each.state_dict() for name, each in self.schedulers.items() if isinstance(each, Plateau)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        for name, scheduler in self.schedulers.items():
            if isinstance(scheduler, Plateau):
                scheduler.load_state_dict(state[name])


def share_epochs(epochs: int, shares: Mapping[str, Any]) -> dict[str, int]:
    """Divide `epochs` between the phases in proportion to their shares, by largest remainder.

    A phase gets at least one epoch, or none if its share is 0.
    """
    problems = [
        f"phases.{name}.share is {share!r}; it must be 0 or more: epochs are divided in proportion to the shares"
        for name, share in shares.items()
        if not is_number(share) or not 0 <= share < math.inf
    ]
    if problems:
        raise Refusal("\n".join(problems))
    used = {name: share for name, share in shares.items() if share > 0}
    if not used:
        raise Refusal("no phase has a share above 0; set phases.train.share=1, for example")
    if epochs < len(used):
        raise Refusal(
            f"epochs={epochs} is too few for {len(used)} phases ({', '.join(used)}): each needs at least one epoch; "
            f"set epochs={len(used)} or more, or the share of a phase to 0"
        )
    exact = {name: epochs * share / sum(used.values()) for name, share in used.items()}
    whole = {name: max(1, int(value)) for name, value in exact.items()}
    while missing := epochs - sum(whole.values()):
        step = 1 if missing > 0 else -1
        candidates = [name for name in whole if whole[name] + step >= 1]
        whole[max(candidates, key=lambda name: step * (exact[name] - whole[name]))] += step
    return dict.fromkeys(shares, 0) | whole


def build_phases(config: Mapping[str, Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Build the phases from a resolved configuration, which has epochs instead of shares; skip those of 0 epochs."""
    problems = [problem for name, values in config.items() for problem in _find_problems(name, values)]
    phases = () if problems else tuple(Phase(name, **values) for name, values in config.items() if values["epochs"])
    if not phases and not problems:
        problems.append("phases has no epochs to train; set epochs=12, for example, and the share of a phase above 0")
    if problems:
        raise Refusal("\n".join(problems))
    return phases


def _find_problems(name: str, values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [f"phases.{name} is {values!r}; it must be a mapping with at least the key share"]
    known = [item.name for item in fields(Phase)[2:]]
    problems = [
        f"phases.{name} has {key!r}; the keys of a phase are share, {', '.join(known)}"
        for key in values
        if key not in ("epochs", *known)
    ]
    given = {"epochs": None} | {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        allows, description = ALLOWED.get(key, (lambda _: True, ""))
        if not allows(value):
            problems.append(f"phases.{name}.{key} is {value!r}; it must be {description}")
    if given.get("relabel") and given.get("rows") == "real":
        problems.append(f"phases.{name}.relabel labels further rows, and phases.{name}.rows is real: leave one out")
    return problems


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


# For each key of a phase: the check of its value, and the description for messages.
ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda value: type(value) is int and value >= 0, "a whole number from 0"),
    "trainable": (
        lambda value: isinstance(value, str) and TRAINABLE.fullmatch(value) is not None,
        "all, head, or last1, last2, ... for the head and that many layers before it",
    ),
    "freeze_bn": (_is_flag, "true or false"),
    "lr": (lambda value: is_number(value) and value > 0, "a factor of optimizer.lr above 0"),
    "scheduler": (lambda value: isinstance(value, Mapping) and "_target_" in value, "a choice of configs/scheduler"),
    "augmentation": (
        lambda value: isinstance(value, Mapping) and set(value) == {"transforms"},
        "a choice of configs/augmentation, or a mapping with the key transforms",
    ),
    "mixing": (
        lambda value: isinstance(value, Mapping) and set(value) == {"mixup", "cutmix"},
        "a choice of configs/mixing, or a mapping with the keys mixup and cutmix",
    ),
    "image_size": (is_image_size, "a whole number or [height, width]"),
    "rows": (lambda value: value in ROWS, f"one of {', '.join(ROWS)}"),
    "relabel": (lambda value: type(value) is int and value >= 1, "a whole number of epochs from 1, or null"),
    "start": (lambda value: value in STARTS, f"one of {', '.join(STARTS)}"),
    "snapshot": (_is_flag, "true or false"),
}


def pseudo_shares(phases: Sequence[Phase], share: float | None) -> list[float]:
    """Compute the share of pseudo-labelled rows in each epoch.

    If a phase has `relabel`, these are the rows that it labels, and the other phases have none.

    Args:
        share: in phases that mix pseudo and real rows, between 0 and 1; None: there are no pseudo rows.
    """
    relabelled = any(phase.relabel for phase in phases)
    without = [phase for phase in phases if share is None or (relabelled and not phase.relabel)]
    for phase in without:
        if phase.rows in ("pseudo", "both"):
            raise Refusal(
                f"phases.{phase.name}.rows is {phase.rows}, but there are no pseudo rows: make them with "
                f"tools/pseudo_label.py and set data.pseudo=<table>, or set ++phases.{phase.name}.relabel=1"
            )
    if share is not None and not (is_number(share) and 0 < share < 1):
        raise Refusal(f"data.pseudo_share is {share!r}; it must be between 0 and 1, for example 0.5")
    shares = {None: share or 0.0, "real": 0.0, "pseudo": 1.0, "both": share or 0.0}
    return [0.0 if phase in without else shares[phase.rows] for phase in phases for _ in range(phase.epochs)]
