"""Reading items for prediction: each is read once, by a worker, and fitted to every network that wants it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foldwise.data.augmentation import Augmentation, build_transforms
from foldwise.data.batches import Packed, collate, pack_sample, start_worker
from foldwise.data.images import ImageError, remembered_images
from foldwise.data.reading import Reader, fit_sample
from foldwise.data.samples import Rows, Sample
from foldwise.data.sampling import sample_seed
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model


@dataclass(frozen=True)
class Wanted:
    """How a model wants its samples; models that agree share them."""

    reading: str
    image_size: tuple[int, ...]
    fit: str
    channels: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, model: Model) -> "Wanted":
        spec = model.spec
        return cls(spec.reading, spec.image_size, spec.fit, tuple(spec.network["channels"].items()))


class Read(NamedTuple):
    """An item's packed samples as each network wants it, and its stored (height, width); or its problem.

    A problem is a text, because a DataLoader wraps an error of its workers in their traceback.
    """

    number: int
    samples: list[Packed]
    size: tuple[int, int]
    problem: str = ""


class ReadBatch(NamedTuple):
    """The `numbers` of the items that could be read, their batch as each network wants it, and their stored sizes;
    beside them those that could not."""

    numbers: list[int]
    inputs: list[Packed]
    sizes: list[tuple[int, int]]
    bad: list[Read]


class Items(Dataset[Read]):
    """Items of a table, by their place among those that are asked for.

    Args:
        table: of the rows that the readers' items are made of.
        models: by how they want the samples, an example each.
        wanted: items, by their numbers; None: all.
        tiles: leave images at their stored size.
    """

    def __init__(
        self,
        table: Table,
        models: dict[Wanted, Model],
        tta: TTA,
        wanted: Sequence[int] | None = None,
        tiles: bool = False,
    ) -> None:
        self.wanted, self.draws, self.tiles = list(models), tta.draws, tiles
        self.readers: dict[str, Reader] = {}
        for how, model in models.items():
            if how.reading not in self.readers:
                rows = Rows(table, model.samples)
                self.readers[how.reading] = Reader(
                    model.samples, rows, model.samples.items(rows), model.spec.state, model.spec.scales
                )
        self.first = next(iter(self.readers.values()))
        if any(reader.items != self.first.items for reader in self.readers.values()):
            raise Refusal(f"the runs make other items of the rows of {table.path}: predict them in two commands")
        self.numbers = list(range(len(self.first.items))) if wanted is None else list(wanted)
        self.augmentations = {}
        if tta.draws:
            transforms = build_transforms(tta.transforms)
            self.augmentations = {key: Augmentation(transforms, reader.fields) for key, reader in self.readers.items()}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Read:
        number = self.numbers[place]
        size = (0, 0)
        samples: list[Packed] = []
        read: dict[str, list[Sample]] = {}
        with remembered_images():  # readers that differ in a state alone decode once
            for how in self.wanted:
                reader = self.readers[how.reading]
                if how.reading not in read:
                    try:
                        sample = reader.read(number)
                    except ImageError as error:
                        return Read(place, [], size, str(error))
                    size = stored_size(sample, reader) or size
                    read[how.reading] = self._draws(how.reading, sample, number)
                problem = _channel_problem(read[how.reading][0], how, reader, number)
                if problem:
                    return Read(place, [], size, problem)
                fields = reader.fields
                image_size = None if self.tiles else how.image_size
                fitted = [fit_sample(sample, fields, image_size, how.fit) for sample in read[how.reading]]
                if self.draws:  # spatial fields have one picture a draw; the first axis of ragged ones is padded
                    spatial = {
                        name: np.stack([each[name] for each in fitted], axis=int(kind.ragged))
                        for name, kind in fields.items()
                        if kind.spatial
                    }
                    fitted = [fitted[0] | spatial]
                samples.append(pack_sample(fitted[0], fields))
        return Read(place, samples, size)

    def _draws(self, key: str, sample: Sample, number: int) -> list[Sample]:
        """The sample, or so many draws of it, which depend on the name of its file alone."""
        if not self.draws:
            return [sample]
        name = self.readers[key].files(number)[0].name
        return [self.augmentations[key](sample, sample_seed(0, draw, name)) for draw in range(self.draws)]


def stored_size(sample: Sample, reader: Reader) -> tuple[int, int] | None:
    """(height, width) of a sample's first spatial field, None where it has none."""
    for name, field in reader.fields.items():
        if field.spatial:
            picture = sample[name][0] if isinstance(sample[name], list) else sample[name]
            return picture.shape[0], picture.shape[1]
    return None


def _channel_problem(sample: Sample, how: Wanted, reader: Reader, number: int) -> str:
    for name, channels in how.channels:
        pictures = sample[name] if isinstance(sample[name], list) else [sample[name]]
        for picture in pictures:
            if picture.shape[2] != channels:
                where = ", ".join(map(str, reader.files(number)[:1]))
                return f"{where} has {picture.shape[2]} channels, and the model was trained on {channels}"
    return ""


def load_batches(items: Items, batch_size: int, workers: int, device: torch.device) -> DataLoader[Any]:
    """A loader of `ReadBatch`es in order; with tiles, of one item each."""
    fields = [items.readers[how.reading].fields for how in items.wanted]
    return DataLoader(
        items,
        batch_size=1 if items.tiles else batch_size,
        num_workers=min(workers, len(items)),
        collate_fn=partial(_collate, fields=fields),
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # its own, so that predicting does not move the caller's
    )


def _collate(reads: list[Read], fields: list[dict[str, Any]]) -> ReadBatch:
    good = [read for read in reads if not read.problem]
    inputs = [collate([read.samples[place] for read in good], kinds) for place, kinds in enumerate(fields) if good]
    bad = [read for read in reads if read.problem]
    return ReadBatch([read.number for read in good], inputs, [read.size for read in good], bad)
