"""Batches of items for prediction, read by workers."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset

from foldwise.data.batches import Packed, collate, pack_sample, start_worker
from foldwise.data.decoding import FileNote
from foldwise.data.fields import Field
from foldwise.inference.items import InputSpec, Items, Read


class ReadBatch(NamedTuple):
    """A batch per `InputSpec`, with the index and stored size of each item; `bad` items could not be read."""

    numbers: list[int]
    batches: dict[InputSpec, Packed]
    sizes: list[tuple[int, int]]
    bad: list[Read]
    notes: list[FileNote]


def load_batches(items: Items, batch_size: int, workers: int, device: torch.device) -> DataLoader[Any]:
    """Make a loader of `ReadBatch`es in order; one item per batch with tiles."""
    fields = {inputs: items.readers[inputs.reading].fields for inputs in items.inputs}
    return DataLoader(
        cast(Dataset[Any], items),  # it has the methods
        batch_size=1 if items.tiles else batch_size,
        num_workers=min(workers, len(items)),
        collate_fn=partial(_collate, fields=fields),
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # keeps the global random state untouched
    )


def _collate(reads: list[Read], fields: Mapping[InputSpec, dict[str, Field]]) -> ReadBatch:
    good = [read for read in reads if not read.problem]
    batches = {
        inputs: collate([pack_sample(read.samples[index], of_input) for read in good], of_input)
        for index, (inputs, of_input) in enumerate(fields.items())
        if good
    }
    return ReadBatch(
        [read.number for read in good],
        batches,
        [read.size for read in good],
        [read for read in reads if read.problem],
        [note for read in reads for note in read.notes],
    )
