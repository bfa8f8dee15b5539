"""Fingerprint of a data set and of the machine: all that the rules of a plan look at."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared
from foldwise.tasks.base import Task

ALIKE = 0.1  # relative difference of proportions that count as the same


@dataclass(frozen=True)
class Network:
    """A timm network to start from, also as the encoder for masks.

    Attributes:
        weights: their file; None with `pretrained`: those of the hub.
    """

    name: str
    weights: str | None = None
    pretrained: bool = True


@dataclass(frozen=True)
class Facts:
    """What is known of data and machine.

    Attributes:
        rows, held: images that a model trains on and predicts out of fold, on average.
        models: to train.
        columns: classes, labels or numbers.
        rarest: share of the rarest class in the images, or in the pixels of masks.
        height, width: medians, in pixels.
        square, alike: most images have sides, or proportions, that are the same.
        object_px: side of a square as large as the smallest class where it occurs, median; None without masks.
        groups: that folds keep together, 0 if there are none.
        rgb8: images are 8-bit RGB.
        networks: pretrained ones that can be loaded, from small to large.
        missing: why there are none.
        gpus, cpus: number. memory: gigabytes of the machine that are free.
    """

    task: Task
    metric: str
    rows: int
    held: int
    models: int
    columns: int
    rarest: float
    height: int
    width: int
    square: bool
    alike: bool
    object_px: float | None
    groups: int
    rgb8: bool
    networks: tuple[Network, ...]
    missing: str
    gpus: int
    cpus: int
    memory: float

    @property
    def masks(self) -> bool:
        return self.task.kind == "maps"

    @property
    def pretrained(self) -> bool:
        return bool(self.networks)

    def describe(self) -> str:
        """One line on the data."""
        size = f"{self.height} x {self.width} pixels" + ("" if self.alike else " of many proportions")
        groups = f", {self.groups} groups" if self.groups else ""
        what = {"regression": "numbers", "retrieval": "identities"}.get(self.task.name, "classes")
        return f"{self.rows:,} images to train a model on, {size}; {self.task.name}, {self.columns} {what}{groups}"


def look(
    config: Mapping[str, Any],
    prepared: Prepared,
    parts: Sequence[Holdout],
    networks: Sequence[Network],
    missing: str,
    gpus: int,
) -> Facts:
    """Compute the fingerprint from what `prepare.py` recorded."""
    folds, scan, task = prepared.fold_of_items, prepared.scan, prepared.outputs[0].meaning
    counts = np.sum(list(prepared.statistics["class_counts"].values()), axis=0)
    height, width = (scan[side].to_numpy(float) for side in ("height", "width"))
    ratio = np.log(height / width)
    total = counts.sum() if task.exclusive or task.kind == "maps" else len(prepared.table)
    object_px = None
    if task.kind == "maps" and "pixels" in scan:
        pixels = np.stack(scan["pixels"].tolist()).astype(float)
        sides = [float(np.sqrt(np.median(column[column > 0]))) for column in pixels.T if (column > 0).any()]
        object_px = min(sides, default=None)
    image = prepared.image
    return Facts(
        task=task,
        metric=str(config["metric"]["_target_"]).rpartition(".")[2],
        rows=int(np.mean([len(part.trained(folds)) for part in parts])),
        held=int(np.mean([len(prepared.predicted(part)) for part in parts])),
        models=len(parts),
        columns=len(prepared.table.classes),
        rarest=float(counts.min() / total) if task.probabilities and total else 1.0,
        height=int(np.median(height)),
        width=int(np.median(width)),
        square=bool(np.mean(np.abs(ratio) < ALIKE / 2) > 0.95),
        alike=bool(np.mean(np.abs(ratio - np.median(ratio)) < ALIKE) > 0.95),
        object_px=object_px,
        groups=prepared.table.frame["group"].nunique() if "group" in prepared.table.frame else 0,
        rgb8=image["channels"] == 3 and image["dtype"] == "uint8" and image["scale"] == 255,
        networks=tuple(networks),
        missing=missing,
        gpus=gpus,
        cpus=os.cpu_count() or 1,
        memory=os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9,
    )


LADDERS = {  # the hub's networks, from small to large
    False: ("tf_efficientnet_lite0.in1k",),
    True: ("tf_efficientnet_lite0.in1k", "tf_efficientnetv2_s.in21k_ft_in1k"),
}


def find_networks(
    weights: str | None, name: str | None, gpu: bool, folder: Path = Path("weights")
) -> tuple[list[Network], str]:
    """Pretrained networks from a file, else from the files in `weights/` that are named by a network, else the hub.

    Returns:
        The networks, and why there are none.
    """
    import timm
    from huggingface_hub import constants

    from foldwise.errors import Refusal
    from foldwise.reachable import connection_problem

    files = [Path(weights)] if weights else sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    found = [Network(name or path.stem, str(path)) for path in files if name or timm.is_model(path.stem.split(".")[0])]
    if weights and not found:
        raise Refusal(f"whose weights are in {weights}? Add model.name=<a network of timm>, or name the file by it")
    if found:
        return found, ""
    if name:
        return [Network(name)], ""
    problem = connection_problem(constants.ENDPOINT)
    if problem is None:
        return [Network(each) for each in LADDERS[gpu]], ""
    return (
        [],
        f"{problem}, and weights/ has no file that is named by a network of timm, as tf_efficientnet_lite0.safetensors",
    )
