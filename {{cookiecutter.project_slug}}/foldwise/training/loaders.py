"""Builds readers, samplers and data loaders for training and validation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from foldwise.code.build import make
from foldwise.data.augmentation import Augmentation
from foldwise.data.dataset import EpochTransform, ItemDataset, make_loader
from foldwise.data.fields import Field, Item
from foldwise.data.holdout import Holdout
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared
from foldwise.data.pseudo import join_tables, same_scene
from foldwise.data.reading import Reader, target_fields
from foldwise.data.samples import Rows, TableItems
from foldwise.data.sampling import SAMPLINGS, EpochSampler, Pool, Sampling
from foldwise.errors import Refusal
from foldwise.processes.group import Rank
from foldwise.schedule.phases import build_phases, pseudo_shares


def with_pseudo(prepared: Prepared, part: Holdout) -> tuple[Prepared, np.ndarray | None]:
    """Append a student's pseudo rows, or the unlabelled items, to the prepared data; also their indices, or None."""
    samples = prepared.samples
    if prepared.unlabelled:
        return _with_unlabelled(prepared, prepared.unlabelled, part)
    if not prepared.pseudo:
        return prepared, None
    table = join_tables(prepared.table, prepared.pseudo.of(part.fold), [*samples.columns, *samples.target_columns])
    items = [Item(id, (row,)) for row, id in enumerate(table.ids)]
    joined = replace(prepared, table=table, source=table, items=items, tables={prepared.outputs[0].target: table})
    return joined, np.arange(len(prepared.table), len(table))


def _with_unlabelled(prepared: Prepared, added: TableItems, part: Holdout) -> tuple[Prepared, np.ndarray]:
    """As `with_pseudo`; the indices leave out items that share a scene with what the model holds out."""
    columns, start = prepared.samples.columns, len(prepared.source)
    table = join_tables(prepared.table, added.table, columns)
    joined = replace(
        prepared,
        table=table,
        source=join_tables(prepared.source, added.source, columns),
        items=[*prepared.items, *(Item(item.id, tuple(row + start for row in item.rows)) for item in added.items)],
        tables={prepared.outputs[0].target: table},
    )
    trained = set(part.trained(prepared.fold_of_items).tolist())
    held = [item for index, item in enumerate(prepared.items) if index not in trained]
    shared = same_scene(added.source.frame, prepared.source.frame.iloc[[row for item in held for row in item.rows]])
    ids = {item.id for item in held}  # such as a unit that both tables have
    free = [item.id not in ids and not shared[list(item.rows)].any() for item in added.items]
    if not any(free):
        raise Refusal(f"all images of {added.source.path} share a file, group or unit with {part.title}")
    return joined, len(prepared.table) + np.flatnonzero(free)


def make_reader(prepared: Prepared, state: Mapping[str, Any]) -> Reader:
    """A reader of items with targets; `state` was fitted on the training items."""
    return Reader(
        prepared.reader,
        Rows(prepared.source, prepared.reader, targets=True),
        prepared.items,
        state,
        {name: image["scale"] for name, image in prepared.statistics["images"].items()},
        prepared.tables,
    )


def sample_fields(prepared: Prepared) -> dict[str, Field]:
    """Fields of a training sample, targets included."""
    return target_fields(prepared.tables) | dict(prepared.reader.fields)


def training_loader(
    config: Mapping[str, Any],
    prepared: Prepared,
    state: Mapping[str, Any],
    rows: np.ndarray,
    pseudo: np.ndarray | None,
    rank: Rank,
) -> tuple[DataLoader, int]:
    """A loader of this rank's augmented training items, and the optimizer steps per epoch.

    Args:
        rows, pseudo: indices of real and pseudo items; pseudo as from `with_pseudo`.
    """
    data, weights = config["data"], prepared.table.weights
    added = None
    if pseudo is not None:
        added = Pool(pseudo) if prepared.unlabelled else _pool(config, prepared, pseudo)
    transforms = _build_transforms(config, prepared)
    reader = make_reader(prepared, state)
    dataset = ItemDataset(reader, weights, transforms, data["fit"], config["seed"], data["ignore_index"])
    limit = config["trainer"]["limit_train_batches"]
    sampler = EpochSampler(
        _pool(config, prepared, rows),
        seed=config["seed"],
        batch_size=config["batch_size"] // rank.world_size,
        rank=rank.index,
        world=rank.world_size,
        pseudo=added,
        pseudo_shares=pseudo_shares(build_phases(config["phases"]), data["pseudo_share"] if added else None),
        most=limit and max(1, limit // config["trainer"]["accumulate_grad_batches"]),
    )
    loader = make_loader(dataset, sampler, local_batch_size(config, rank), data["workers"])
    return loader, len(sampler) * rank.world_size // config["batch_size"]


def evaluation_loader(
    config: Mapping[str, Any], prepared: Prepared, state: Mapping[str, Any], rows: np.ndarray, rank: Rank
) -> DataLoader:
    """A loader of items without augmentation, in order; uncropped images (fit=tiles) one by one."""
    data = config["data"]
    whole = data["fit"] == "tiles"
    transform = EpochTransform(None, None if whole else image_hw(data["image_size"]))
    reader = make_reader(prepared, state)
    dataset = ItemDataset(reader, prepared.table.weights, [transform], data["fit"], None, data["ignore_index"])
    size = 1 if whole else local_batch_size(config, rank)
    return make_loader(dataset, [(int(row), 0) for row in rows], size, data["workers"])


def _build_transforms(config: Mapping[str, Any], prepared: Prepared) -> list[EpochTransform]:
    """Augmentation and image size of each epoch; raise a Refusal for transforms that cannot take the images."""
    data = config["data"]
    kinds = {
        (image["channels"], np.uint8 if image["dtype"] == "uint8" and image["scale"] == 255 else np.float32)
        for image in prepared.statistics["images"].values()
    }
    fields = sample_fields(prepared)
    found, problems = [], []
    for phase in build_phases(config["phases"]):
        transforms = (phase.augmentation or config["augmentation"])["transforms"]
        made = [make(transform, prepared.alias) for transform in transforms]
        augmentation = Augmentation(made, fields, data["ignore_index"])
        size = image_hw(phase.image_size or data["image_size"])
        for channels, dtype in kinds:
            try:
                augmentation.check(channels, dtype, size)
            except Refusal as error:
                problems.append(f"phase {phase.name}: {error}")
        found += [EpochTransform(augmentation, size)] * phase.epochs
    if problems:
        raise Refusal("\n".join(problems))
    return found


def _pool(config: Mapping[str, Any], prepared: Prepared, rows: np.ndarray) -> Pool:
    """Training items with the sampling of `data.sampling`."""
    chosen = config["data"]["sampling"]
    sampling = make(chosen, prepared.alias, "data.sampling") if isinstance(chosen, Mapping) else SAMPLINGS[chosen]()
    if not isinstance(sampling, Sampling):
        raise Refusal(
            f"data.sampling._target_={chosen['_target_']} is not a subclass of foldwise.data.sampling.Sampling"
        )
    target = prepared.table.target
    sampling.start(None if target is None else target[rows], prepared.table.weights[rows])
    return Pool(rows, sampling)


def local_batch_size(config: Mapping[str, Any], rank: Rank) -> int:
    """Items per forward pass of one rank; `batch_size` counts a whole optimizer step."""
    accumulate = config["trainer"]["accumulate_grad_batches"]
    size, rest = divmod(config["batch_size"], rank.world_size * accumulate)
    if rest or not size:
        raise Refusal(
            f"batch_size={config['batch_size']} cannot be divided over {rank.world_size} processes and {accumulate} "
            f"accumulated batches: make it a multiple of {rank.world_size * accumulate}"
        )
    return size
