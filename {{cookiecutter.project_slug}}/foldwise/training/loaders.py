"""From a configuration and the prepared data to what a training reads: augmentations, sampler and loaders."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from foldwise.config import make
from foldwise.data.augmentation import Augmentation
from foldwise.data.dataset import EpochSampler, ImageDataset, Look, Pool, balanced_weights, make_loader
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared
from foldwise.data.pseudo import join_tables
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.models.phases import Phase, build_phases, pseudo_shares
from foldwise.processes.group import Place


def build_looks(config: Mapping[str, Any], prepared: Prepared) -> list[Look]:
    """The training augmentation and the image size of each epoch, checked against the images that they will get.

    Raises:
        Refusal: names every transform that cannot take them.
    """
    data, statistics = config["data"], prepared.statistics
    unchanged = statistics["dtype"] == "uint8" and statistics["scale"] == 255
    looks, problems = [], []
    for phase in build_phases(config["phases"]):
        transforms = [make(transform) for transform in phase_augmentation(config, phase)["transforms"]]
        augmentation = Augmentation(transforms, data["ignore_index"])
        size = image_hw(phase.image_size or data["image_size"])
        try:
            augmentation.check(statistics["channels"], np.uint8 if unchanged else np.float32, size)
        except Refusal as error:
            problems.append(f"phase {phase.name}: {error}")
        looks += [Look(augmentation, size)] * phase.epochs
    if problems:
        raise Refusal("\n".join(problems))
    return looks


def phase_augmentation(config: Mapping[str, Any], phase: Phase) -> Mapping[str, Any]:
    """The augmentation of a phase, as the content of a file of configs/augmentation: its own, or that of the run."""
    return phase.augmentation or config["augmentation"]


def local_batch_size(config: Mapping[str, Any], world: int) -> int:
    """Images in one pass of one process; `batch_size` is all of an optimizer step.

    Raises:
        Refusal: it cannot be divided evenly.
    """
    accumulate = config["trainer"]["accumulate_grad_batches"]
    size, rest = divmod(config["batch_size"], world * accumulate)
    if rest or not size:
        raise Refusal(
            f"batch_size={config['batch_size']} cannot be divided over {world} processes and {accumulate} accumulated "
            f"batches: make it a multiple of {world * accumulate}"
        )
    return size


def training_loader(
    config: Mapping[str, Any], prepared: Prepared, rows: np.ndarray, place: Place, pseudo: Table | None = None
) -> tuple[DataLoader, int]:
    """This process's share of the training rows, augmented, and the optimizer steps of an epoch.

    Args:
        pseudo: the pseudo rows of the student that is trained.
    """
    data = config["data"]
    table = prepared.table if pseudo is None else join_tables(prepared.table, pseudo)
    dataset = _dataset(config, prepared, table, build_looks(config, prepared))
    real = _pool(config, table, rows)
    sampler = EpochSampler(
        real.rows,
        seed=config["seed"],
        batch_size=config["batch_size"] // place.world,
        rank=place.rank,
        world=place.world,
        weights=real.weights,
        pseudo=None if pseudo is None else _pool(config, table, np.arange(len(prepared.table), len(table))),
        pseudo_shares=epoch_shares(config),
    )
    size = local_batch_size(config, place.world)
    return make_loader(dataset, sampler, size, data["workers"]), len(sampler) * place.world // config["batch_size"]


def epoch_shares(config: Mapping[str, Any]) -> list[float]:
    """The share of pseudo rows in each epoch.

    Raises:
        Refusal: a phase wants pseudo rows and there are none, or data.pseudo_share is no share.
    """
    data = config["data"]
    return pseudo_shares(build_phases(config["phases"]), data["pseudo_share"] if data.get("pseudo") else None)


def _pool(config: Mapping[str, Any], table: Table, rows: np.ndarray) -> Pool:
    """Rows to train on, with the chances that data.sampling gives them."""
    if config["data"]["sampling"] != "balanced":
        return Pool(rows)
    if table.target is None:
        raise Refusal("data.sampling=balanced is for classification; for masks see loss.class_weights=balanced")
    return Pool(rows, balanced_weights(table.target[rows], table.weights[rows]))


def evaluation_loader(config: Mapping[str, Any], prepared: Prepared, rows: np.ndarray, place: Place) -> DataLoader:
    """These rows as they are, in their order; whole pictures, whose sizes differ, one by one."""
    whole = config["data"]["fit"] == "tiles"
    look = Look(None, None if whole else image_hw(config["data"]["image_size"]))
    dataset = _dataset(config, prepared, prepared.table, [look])
    size = 1 if whole else local_batch_size(config, place.world)
    return make_loader(dataset, [(int(row), 0) for row in rows], size, config["data"]["workers"])


def _dataset(config: Mapping[str, Any], prepared: Prepared, table: Table, looks: Sequence[Look]) -> ImageDataset:
    data = config["data"]
    return ImageDataset(
        table,
        looks,
        data["fit"],
        data["mode"],
        prepared.statistics["scale"],
        config["seed"],
        data["ignore_index"],
    )
