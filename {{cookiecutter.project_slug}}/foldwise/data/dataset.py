"""Samples for training: dataset, sampler and loader.

The sampler hands out (row, epoch, repeat), so what a sample looks like is a function of (seed, epoch, id) alone and
not of the worker that reads it, the device it is for, or the order; and persistent workers know the epoch.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from foldwise.data.augmentation import Augmentation
from foldwise.data.crops import random_crop
from foldwise.data.images import ImageError, fit_image, read_image, read_mask, resize_mask, to_unit
from foldwise.data.table import Table
from foldwise.errors import Refusal


class Draw(NamedTuple):
    """What a sampler asks a dataset for. `repeat` counts how often the row was already drawn in this epoch."""

    row: int
    epoch: int
    repeat: int = 0


def sample_seed(seed: int, epoch: int, id: str, repeat: int = 0) -> int:
    """A number in [0, 2**32), the same in every process and on every Python."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{repeat}:{id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


class Pool(NamedTuple):
    """Rows of a table to draw from.

    `weights` (N,), of sum 1, are their chances, as `balanced_weights` gives them; None: all are drawn equally often.
    """

    rows: np.ndarray
    weights: np.ndarray | None = None

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """So many rows: with replacement by the chances, or in passes, none drawn again before all were drawn."""
        if self.weights is not None:
            return rng.choice(self.rows, count, p=self.weights)
        passes = np.tile(self.rows, (-(-count // len(self.rows)), 1))
        return rng.permuted(passes, axis=1).ravel()[:count]


class Look(NamedTuple):
    """How images look in an epoch: `augmentation` and `image_size` (height, width); None leaves them as they are."""

    augmentation: Augmentation | None
    image_size: tuple[int, int] | None


class ImageDataset(Dataset[dict[str, Any]]):
    """The rows of a table as tensors, not yet normalised.

    Args:
        table: with targets.
        looks: of the images in each epoch; after the last one it stays.
        fit: how images get that size after the augmentation, see `fit_image`. "tiles": random crops of that size are
            augmented.
        mode: "stored", "gray" or "rgb".
        scale: stored value that means 1.0; None: by dtype.
        seed: of the augmentation.
        ignore_index: mask value that is neither trained nor scored.

    An item is {"image": uint8 or float32 in [0, 1], (C, H, W); "target": float32 (K,), or int64 (H, W) for
    segmentation; "weight": float32; "row": the row's number}.
    """

    def __init__(
        self,
        table: Table,
        looks: Sequence[Look],
        fit: str = "stretch",
        mode: str = "stored",
        scale: float | None = None,
        seed: int = 0,
        ignore_index: int = 255,
    ) -> None:
        self.table = table
        self.looks = looks
        self.fit = fit
        self.mode = mode
        self.scale = scale
        self.seed = seed
        self.ignore_index = ignore_index
        self.ids = table.ids
        self.weights = torch.from_numpy(np.ascontiguousarray(table.weights, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Draw | tuple[int, int]) -> dict[str, Any]:
        row, epoch, repeat = Draw(*index)
        augmentation, size = self.looks[min(epoch, len(self.looks) - 1)]
        try:
            image = read_image(self.table.image_path(row), self.mode)
            mask = read_mask(self.table.mask_path(row)) if self.table.target is None else None
        except ImageError as error:
            raise ImageError(f"{error} (id {self.ids[row]!r})") from error
        seed = sample_seed(self.seed, epoch, self.ids[row], repeat)
        if self.fit == "tiles" and mask is not None and size is not None:
            image, mask = random_crop(image, mask, size, self.ignore_index, seed)  # first: less is left to work on
        image = to_unit(image, self.scale)
        if augmentation is not None:
            image, mask = augmentation(image, mask, seed)
        size = size or image.shape[:2]
        image = np.ascontiguousarray(fit_image(image, size, self.fit).transpose(2, 0, 1))
        if mask is not None:
            target = torch.from_numpy(resize_mask(mask, size).astype(np.int64))
        else:
            assert self.table.target is not None
            target = torch.tensor(self.table.target[row], dtype=torch.float32)
        return {"image": torch.from_numpy(image), "target": target, "weight": self.weights[row], "row": row}


class EpochSampler(Sampler[Draw]):
    """Rows in an order that depends on (seed, epoch) alone; every rank takes its share of the same order.

    Args:
        rows: of the table.
        batch_size: of one rank.
        weights: chances of the rows, as `balanced_weights` gives them: rows are then drawn with replacement, as many
            as there are. None: each row once.
        pseudo: rows with pseudo labels, which take the place of some of the others.
        pseudo_shares: their share in each epoch, which every step of all ranks has, but for rounding; after the last
            one it stays.

    An epoch has as many rows as `rows` in whole batches of all ranks, whatever the share: ranks take equal counts, and
    epochs of all phases have equally many steps, as the learning-rate schedule has it.

    Raises:
        Refusal: there are fewer rows than the batches of all ranks hold, or a share of a batch is no whole row.
    """

    def __init__(
        self,
        rows: Sequence[int] | np.ndarray,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        weights: np.ndarray | None = None,
        pseudo: Pool | None = None,
        pseudo_shares: Sequence[float] = (0.0,),
    ) -> None:
        self.real = Pool(np.asarray(rows, dtype=np.int64), weights)
        self.pseudo, self.pseudo_shares = pseudo, pseudo_shares
        self.seed, self.rank, self.world, self.epoch = seed, rank, world, 0
        self.step = batch_size * world  # rows of all ranks
        self.steps = len(self.real.rows) // self.step
        if not self.steps:
            devices, most = f" on each of {world} devices" if world > 1 else "", len(self.real.rows) // world * world
            raise Refusal(
                f"a batch of {batch_size}{devices} is more than the {len(self.real.rows)} training rows: "
                f"set batch_size={max(world, most)} or less"
            )
        for share in pseudo_shares:
            if 0 < share < 1 and round(share * self.step) in (0, self.step):
                raise Refusal(
                    f"a share of {share:g} pseudo rows in a step of {self.step} is none or all of them: "
                    "change data.pseudo_share or batch_size"
                )

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.step // self.world

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn: dict[int, int] = {}
        for position, row in enumerate(self._order(rng).tolist()):
            repeat = drawn.get(row, 0)
            drawn[row] = repeat + 1
            if position % self.world == self.rank:
                yield Draw(row, self.epoch, repeat)

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of this epoch, for all ranks."""
        share = self.pseudo_shares[min(self.epoch, len(self.pseudo_shares) - 1)]
        if self.pseudo is None or not share:
            return self.real.draw(rng, self.steps * self.step)
        counts = self.step - round(share * self.step), round(share * self.step)
        parts = [
            pool.draw(rng, self.steps * count).reshape(self.steps, count)
            for pool, count in zip((self.real, self.pseudo), counts, strict=True)
        ]
        return rng.permuted(np.hstack(parts), axis=1).ravel()  # or one rank would get all the pseudo rows


def balanced_weights(target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Chances of rows such that each class is drawn equally often.

    Args:
        target: (N, K) in [0, 1]. The part of a row that belongs to no class counts as a class of its own.
        weight: (N,) of the samples in the loss; a class's chances then add up to the same together with them.

    Returns:
        (N,) float64, of sum 1: for each row the sum over its classes of target / total of the class.
    """
    target = np.asarray(target, np.float64)
    nothing = np.clip(1 - target.sum(axis=1, keepdims=True), 0, None)
    nothing[nothing < 1e-6] = 0  # soft rows add up to 1 only within rounding
    target = np.hstack([target, nothing])
    total = (target if weight is None else target * np.asarray(weight)[:, None]).sum(axis=0)
    chances = (target[:, total > 0] / total[total > 0]).sum(axis=1)
    return chances / chances.sum()


warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores are the user's choice


def make_loader(
    dataset: ImageDataset, sampler: EpochSampler | Sequence[Draw | tuple[int, int]], batch_size: int, workers: int
) -> DataLoader[Any]:
    """A loader of batches of `batch_size`, with at most `workers` processes, which stay alive between epochs.

    The batches are the same bytes for any number of workers. For evaluation the sampler is a list of (row, epoch).
    """
    batches = -(-len(sampler) // batch_size)
    workers = min(workers, batches)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else the loader takes numbers from torch's global stream
    )


def _start_worker(_: int) -> None:
    """One thread a worker: OpenCV and torch would otherwise each start one a core in every worker."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
