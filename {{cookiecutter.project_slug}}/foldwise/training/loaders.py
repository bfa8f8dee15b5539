"""From a configuration and the prepared data to what a training reads: reader, augmentations, sampler and loaders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from foldwise.code.build import make
from foldwise.data.augmentation import Augmentation
from foldwise.data.dataset import EpochTransform, ItemDataset, make_loader
from foldwise.data.fields import Field, Item
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared
from foldwise.data.pseudo import join_tables
from foldwise.data.reading import Reader, target_fields
from foldwise.data.samples import Rows
from foldwise.data.sampling import SAMPLINGS, EpochSampler, Pool, Sampling
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.processes.group import Rank
from foldwise.schedule.phases import Phase, build_phases, pseudo_shares


@dataclass(frozen=True)
class TrainingItems:
    """What a model is trained on.

    Attributes:
        reader: of real and pseudo items, with targets.
        table: of the same items.
        real, pseudo: their numbers; pseudo is None where there are none.
        targets: (N, C) of all of them, by the target field, where targets are no files.
    """

    reader: Reader
    table: Table
    real: np.ndarray
    pseudo: np.ndarray | None
    targets: dict[str, np.ndarray]


def training_items(
    prepared: Prepared, rows: np.ndarray, state: Mapping[str, Any], pseudo: Table | None = None
) -> TrainingItems:
    """The training items with what their reader knows of them.

    Args:
        rows: the numbers of the items that are trained.
        state: what the reader's `fit` gave on them.
        pseudo: the pseudo rows of the student that is trained.
    """
    samples = prepared.samples
    source, items, table, tables = prepared.source, prepared.items, prepared.table, prepared.tables
    added = None
    if pseudo is not None:
        table = source = join_tables(table, pseudo, [*samples.columns, *samples.target_columns])
        items = [Item(id, (row,)) for row, id in enumerate(table.ids)]
        tables = {prepared.outputs[0].target: table}
        added = np.arange(len(prepared.table), len(table))
    reader = make_reader(prepared, state, source, items, tables)
    targets = {name: each.target for name, each in tables.items() if each.target is not None}
    return TrainingItems(reader, table, rows, added, targets)


def make_reader(
    prepared: Prepared,
    state: Mapping[str, Any],
    source: Table | None = None,
    items: Any = None,
    tables: Mapping[str, Table] | None = None,
) -> Reader:
    """A reader of items with their targets; by default of the training table."""
    return Reader(
        prepared.samples,
        Rows(source or prepared.source, prepared.samples, targets=True),
        prepared.items if items is None else items,
        state,
        {name: image["scale"] for name, image in prepared.statistics["images"].items()},
        prepared.tables if tables is None else tables,
    )


def sample_fields(prepared: Prepared) -> dict[str, Field]:
    """The fields of a training sample."""
    return target_fields(prepared.tables) | dict(prepared.samples.fields)


def build_transforms(config: Mapping[str, Any], prepared: Prepared, alias: str | None) -> list[EpochTransform]:
    """The training augmentation and the image size of each epoch, checked against the images that they will get.

    Raises:
        Refusal: names every transform that cannot take them.
    """
    data = config["data"]
    kinds = {
        (image["channels"], image["dtype"] == "uint8" and image["scale"] == 255)
        for image in prepared.statistics["images"].values()
    }
    fields = sample_fields(prepared)
    found, problems = [], []
    for phase in build_phases(config["phases"]):
        transforms = [make(transform, alias) for transform in phase_augmentation(config, phase)["transforms"]]
        augmentation = Augmentation(transforms, fields, data["ignore_index"])
        size = image_hw(phase.image_size or data["image_size"])
        for channels, unchanged in kinds:
            try:
                augmentation.check(channels, np.uint8 if unchanged else np.float32, size)
            except Refusal as error:
                problems.append(f"phase {phase.name}: {error}")
        found += [EpochTransform(augmentation, size)] * phase.epochs
    if problems:
        raise Refusal("\n".join(problems))
    return found


def phase_augmentation(config: Mapping[str, Any], phase: Phase) -> Mapping[str, Any]:
    """The augmentation of a phase, as the content of a file of the group: its own, or that of the run."""
    return phase.augmentation or config["augmentation"]


def local_batch_size(config: Mapping[str, Any], world: int) -> int:
    """Items in one pass of one process; `batch_size` is all of an optimizer step.

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


def build_sampling(config: Mapping[str, Any], alias: str | None) -> Sampling:
    """The sampling that `data.sampling` names, not started yet.

    Raises:
        Refusal: it is none.
    """
    chosen = config["data"]["sampling"]
    if not isinstance(chosen, Mapping):
        return SAMPLINGS[chosen]()
    sampling = make(chosen, alias, "data.sampling")
    if not isinstance(sampling, Sampling):
        raise Refusal(
            f"data.sampling._target_ is {chosen['_target_']}, which is no subclass of foldwise.data.sampling.Sampling"
        )
    return sampling


def training_loader(
    config: Mapping[str, Any], prepared: Prepared, items: TrainingItems, rank: Rank, alias: str | None = None
) -> tuple[DataLoader, int]:
    """This process's share of the training items, augmented, and the optimizer steps of an epoch."""
    transforms = build_transforms(config, prepared, alias)
    data = config["data"]
    dataset = ItemDataset(
        items.reader, items.table.weights, transforms, data["fit"], config["seed"], data["ignore_index"]
    )
    sampler = EpochSampler(
        _pool(config, items, items.real, alias),
        seed=config["seed"],
        batch_size=config["batch_size"] // rank.world_size,
        rank=rank.index,
        world=rank.world_size,
        pseudo=None if items.pseudo is None else _pool(config, items, items.pseudo, alias),
        pseudo_shares=epoch_shares(config),
    )
    size = local_batch_size(config, rank.world_size)
    return make_loader(dataset, sampler, size, data["workers"]), len(sampler) * rank.world_size // config["batch_size"]


def epoch_shares(config: Mapping[str, Any]) -> list[float]:
    """The share of pseudo rows in each epoch.

    Raises:
        Refusal: a phase wants pseudo rows and there are none, or data.pseudo_share is no share.
    """
    data = config["data"]
    return pseudo_shares(build_phases(config["phases"]), data["pseudo_share"] if data.get("pseudo") else None)


def _pool(config: Mapping[str, Any], items: TrainingItems, rows: np.ndarray, alias: str | None) -> Pool:
    """Items to train on, as data.sampling draws them."""
    sampling = build_sampling(config, alias)
    target = items.table.target
    sampling.start(None if target is None else target[rows], items.table.weights[rows])
    return Pool(rows, sampling)


def evaluation_loader(
    config: Mapping[str, Any], prepared: Prepared, reader: Reader, rows: np.ndarray, rank: Rank
) -> DataLoader:
    """These items as they are, in their order; whole pictures, whose sizes differ, one by one."""
    data = config["data"]
    whole = data["fit"] == "tiles"
    transform = EpochTransform(None, None if whole else image_hw(data["image_size"]))
    dataset = ItemDataset(reader, prepared.table.weights, [transform], data["fit"], None, data["ignore_index"])
    size = 1 if whole else local_batch_size(config, rank.world_size)
    return make_loader(dataset, [(int(row), 0) for row in rows], size, data["workers"])
