"""Image sizes that a network cannot take, found before it trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foldwise.data.images import image_hw
from foldwise.errors import Refusal
from foldwise.models.normalized import Normalized
from foldwise.models.phases import Phase, build_phases


def check_sizes(config: Mapping[str, Any], multiple: int) -> None:
    """Compare image sizes, those of phases included, with what heights and widths must be a multiple of.

    Raises:
        Refusal: every size that is none, and the next larger one that is.
    """
    sizes = {"data.image_size": config["data"]["image_size"]} | {
        f"phases.{phase.name}.image_size": phase.image_size
        for phase in build_phases(config["phases"])
        if phase.image_size is not None
    }
    problems = []
    for key, size in sizes.items():
        height, width = image_hw(size)
        if height % multiple or width % multiple:
            problems.append(
                f"{config['model']['name']} needs sizes divisible by {multiple}, and {key} is {height} x {width}: "
                f"try {key}=[{_round_up(height, multiple)},{_round_up(width, multiple)}]"
            )
    if problems:
        raise Refusal("\n".join(problems))


def try_sizes(network: Normalized, phases: Sequence[Phase], channels: int) -> None:
    """Try the network at the image sizes of phases: transformers may be built for one size alone.

    Raises:
        Refusal: every phase whose size it cannot take.
    """
    problems = []
    for phase in phases:
        if phase.image_size is not None:
            height, width = image_hw(phase.image_size)
            try:
                with torch.no_grad():
                    network.eval()(torch.zeros(1, channels, height, width))
            except (AssertionError, RuntimeError, ValueError, Refusal) as error:
                problems.append(
                    f"phases.{phase.name}.image_size: the network cannot take {height} x {width} ({error}); "
                    "many of timm's transformers can with ++model.options.dynamic_img_size=true"
                )
    if problems:
        raise Refusal("\n".join(problems))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
