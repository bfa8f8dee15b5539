"""Readers and data sets over small tables, as training has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foldwise.data.batches import collate, unpack
from foldwise.data.dataset import EpochTransform, ItemDataset
from foldwise.data.reading import Reader
from foldwise.data.samples import Rows, Samples
from foldwise.data.sampling import SampleKey
from foldwise.data.table import Table


def training_reader(
    table: Table, samples: Samples | None = None, scales: Mapping[str, float | None] | None = None
) -> Reader:
    """A reader of the rows of a table with their targets; the state is what the reader fits on all of them."""
    samples = samples or Samples()
    rows = Rows(table, samples, targets=True)
    items = samples.items(rows)
    return Reader(samples, rows, items, samples.fit(rows, items), scales or {}, {"target": table})


def item_dataset(
    table: Table,
    transforms: Sequence[EpochTransform],
    *arguments: Any,
    samples: Samples | None = None,
    scales: Mapping[str, float | None] | None = None,
    **options: Any,
) -> ItemDataset:
    """A data set of such a reader."""
    return ItemDataset(training_reader(table, samples, scales), table.weights, transforms, *arguments, **options)


def read_one(dataset: ItemDataset, key: SampleKey | tuple[int, int]) -> dict[str, torch.Tensor]:
    """A sample as a batch of one gives it, without the first axis."""
    batch = unpack(collate([dataset[key]], dataset.fields))
    return {name: value[0] for name, value in batch.items()}
