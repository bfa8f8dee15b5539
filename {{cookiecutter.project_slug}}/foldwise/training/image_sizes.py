"""Image sizes of a training, and those near them that a network can take."""

import copy
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from foldwise.code.build import make
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared
from foldwise.errors import Refusal
from foldwise.inference.spec import ModelSpec
from foldwise.inference.weights import normalize
from foldwise.models.network import Batch
from foldwise.models.normalized import Normalized
from foldwise.schedule.phases import build_phases

LARGEST = 1024  # image size to try for networks that cannot take the given one
UNFIT = (AssertionError, RuntimeError, ValueError)  # what networks raise for such an image size


def image_sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Every (height, width) of the training images, by the setting that gives it."""
    return {"data.image_size": image_hw(config["data"]["image_size"])} | {
        f"phases.{phase.name}.image_size": image_hw(phase.image_size)
        for phase in build_phases(config["phases"])
        if phase.image_size is not None
    }


def in_library(error: BaseException) -> bool:
    """True if timm or smp raised the error: most often the network cannot take the image size."""
    frames = traceback.extract_tb(error.__traceback__)
    return any({"timm", "segmentation_models_pytorch"} & set(Path(frame.filename).parts) for frame in frames)


def nearest_sizes(network: Normalized, batch: Batch, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The next smaller and the next larger image size that the network takes."""
    shapes = copy.deepcopy(network).to("meta")  # computes shapes only
    meta = {name: value.to("meta") for name, value in batch.items()}

    @cache
    def fits(height: int, width: int) -> bool:
        resized = {
            name: value.new_empty((*value.shape[:-2], height, width)) if value.shape[-2:] == size else value
            for name, value in meta.items()
        }
        return _takes(shapes, resized)

    def nearest(sides: range) -> int:
        return next((side for side in sides if fits(side, side)), 0)

    # The sides that networks take are even.
    down = [nearest(range(side - side % 2, 0, -2)) for side in size]
    up = [nearest(range(side + side % 2, max(LARGEST, 2 * side), 2)) for side in size]
    return [(height, width) for height, width in (down, up) if height and width and fits(height, width)]


def fitting_options(prepared: Prepared, spec: ModelSpec, batch: Batch, size: tuple[int, int]) -> list[str]:
    """Options of timm's networks with which this one takes the batch."""
    found = []
    for name, value in (("dynamic_img_size", True), ("img_size", list(size))):
        options = {**(spec.network.get("options") or {}), name: value}
        try:
            net = make({**spec.network, "options": options}, prepared.alias)
        except (Refusal, *UNFIT):  # the network has no such option
            continue
        if _takes(normalize(net, spec).eval(), batch):
            found.append(f"++model.options.{name}={str(value).replace(' ', '').lower()}")
    return found


def _takes(network: Normalized, batch: Batch) -> bool:
    try:
        network(batch)
    except Exception:  # of a probe, such as a division by 0 for few pixels
        return False
    return True
