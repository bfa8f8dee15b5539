"""Dataset and loader of training and validation."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foldwise.data.augmentation import Augmentation, sample_seed
from foldwise.data.batches import Packed, collate, pack_sample, start_worker
from foldwise.data.crops import crop_sample
from foldwise.data.reading import Reader, fit_sample
from foldwise.data.sampling import EpochSampler, SampleKey


class EpochTransform(NamedTuple):
    """Transform of an epoch: augmentation, then a resize to (height, width); None skips a step."""

    augmentation: Augmentation | None
    image_size: tuple[int, int] | None


class ItemDataset(Dataset[Packed]):
    """Packed samples of a reader's items, not yet normalised, with "weight" and "row", the index of the item.

    Args:
        weights: loss weights of the items, (N,).
        transforms: one per epoch; later epochs use the last.
        fit: see `fit_image`; "tiles" augments random crops of the image size.
        seed: of reading, crops and augmentation; None disables all randomness, for validation.
    """

    def __init__(
        self,
        reader: Reader,
        weights: np.ndarray,
        transforms: Sequence[EpochTransform],
        fit: str = "stretch",
        seed: int | None = 0,
        ignore_index: int = 255,
    ) -> None:
        self.reader, self.fields = reader, reader.fields
        self.weights = np.ascontiguousarray(weights, dtype=np.float32)
        self.transforms, self.fit, self.seed, self.ignore_index = transforms, fit, seed, ignore_index

    def __len__(self) -> int:
        return len(self.reader.items)

    def __getitem__(self, key: SampleKey | tuple[int, int]) -> Packed:
        return pack_sample(self.read(key), self.fields)

    def read(self, key: SampleKey | tuple[int, int]) -> dict[str, Any]:
        index, epoch, repeat = SampleKey(*key)
        augmentation, size = self.transforms[min(epoch, len(self.transforms) - 1)]
        if self.seed is None:
            sample = self.reader.read(index)
        else:
            seed = sample_seed(self.seed, epoch, self.reader.items[index].id, repeat)
            # Independent of crops and augmentation, which use the same seed.
            sample = self.reader.read(index, np.random.default_rng([seed, 2]))
            if self.fit == "tiles" and size is not None:  # first, so that there are fewer pixels to augment
                sample = crop_sample(sample, self.fields, size, self.ignore_index, seed)
            if augmentation is not None:
                sample = augmentation(sample, seed)
        fitted = fit_sample(sample, self.fields, size, self.fit)
        return fitted | {"weight": self.weights[index], "row": index}


warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice


def make_loader(
    dataset: ItemDataset,
    sampler: EpochSampler | Sequence[SampleKey | tuple[int, int]],
    batch_size: int,
    workers: int,
) -> DataLoader[Packed]:
    """Make a loader with at most `workers` persistent processes; their number does not change the batches."""
    workers = min(workers, -(-len(sampler) // batch_size))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=partial(collate, fields=dataset.fields),
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # else the loader draws from torch's global generator
    )
