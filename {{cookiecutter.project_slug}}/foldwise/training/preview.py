"""What the phases of a training will do, for a picture before it begins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from foldwise.data.images import image_hw
from foldwise.models.module import TrainingModule
from foldwise.models.normalized import set_trainable, trainable_share
from foldwise.reporting.phases import PhasePreview
from foldwise.schedule.schedulers import Plateau
from foldwise.training.loaders import phase_augmentation

STEPS = 20  # points of the rate in an epoch


def preview_phases(config: Mapping[str, Any], module: TrainingModule, base: Sequence[float]) -> list[PhasePreview]:
    """The phases of a module that has not begun to train; what it trains is left as in the last phase.

    Args:
        base: the learning rates of the optimizer's groups.
    """
    schedule = replace(module.schedule, steps_per_epoch=STEPS)
    previews, first = [], 0
    for phase in schedule.phases:
        set_trainable(module.network, phase.trainable, phase.freeze_bn)
        factors = [schedule.factor(step) for step in range(first, first + phase.epochs * STEPS)]
        first += len(factors)
        augmentation = phase_augmentation(config, phase)
        previews.append(
            PhasePreview(
                phase,
                trainable_share(module.network),
                image_hw(phase.image_size or config["data"]["image_size"]),
                [*_names(augmentation["transforms"]), *(key for key in ("mixup", "cutmix") if augmentation[key])],
                [(factor * min(base), factor * max(base)) for factor in factors],
                isinstance(schedule.schedulers[phase.name], Plateau),
            )
        )
    return previews


def _names(transforms: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The last part of each `_target_`; of compositions, what is inside."""
    for transform in transforms:
        if "transforms" in transform:
            yield from _names(transform["transforms"])
        else:
            yield transform["_target_"].rpartition(".")[2]
