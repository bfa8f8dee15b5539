"""Sampling: which items are trained in an epoch, and in which order.

The sampler hands out keys (item, epoch, repeat), so that a sample is a function of (seed, epoch, id) alone, whatever
worker reads it, on whatever rank, in whatever order; and persistent workers know the epoch.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from foldwise.errors import Refusal


class SampleKey(NamedTuple):
    """Key of a sample of a dataset; `repeat` counts how often the item was already drawn in this epoch."""

    item: int
    epoch: int
    repeat: int = 0


def sample_seed(seed: int, epoch: int, id: str, repeat: int = 0) -> int:
    """A number in [0, 2**32), the same in every process and on every Python."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{repeat}:{id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


class Sampling:
    """Decides how often each training item is drawn: here, once an epoch.

    Subclass it in solution/, and name the class by `data.sampling._target_`; its arguments are plain values.
    """

    def start(self, target: np.ndarray | None, weight: np.ndarray) -> None:
        """Begin a training of items with these targets (N, C), None where they are files, and loss weights (N,)."""

    def chances(self, epoch: int) -> np.ndarray | None:
        """(N,) unnormalised chances of the training items in an epoch; None: each is drawn once."""
        return None

    def observe(self, items: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Take what an epoch has shown, the same on every rank.

        Args:
            items: (B,) numbers of training items, in the order in which they were trained.
            values: the (B,) entries that the module's `losses` gave for them, by name.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state for a resume: tensors and plain values, saved with the checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""


class Balanced(Sampling):
    """Each class is drawn equally often, with replacement; see `balanced_weights`."""

    def start(self, target: np.ndarray | None, weight: np.ndarray) -> None:
        if target is None:
            raise Refusal("data.sampling=balanced is for classification; for masks see loss.class_weights=balanced")
        self._chances = balanced_weights(target, weight)

    def chances(self, epoch: int) -> np.ndarray:
        return self._chances


SAMPLINGS = {"shuffle": Sampling, "balanced": Balanced}


class Pool:
    """Items to draw from, by their numbers."""

    def __init__(self, rows: Sequence[int] | np.ndarray, sampling: Sampling | None = None) -> None:
        self.rows, self.sampling = np.asarray(rows, dtype=np.int64), sampling or Sampling()

    def draw(self, rng: np.random.Generator, count: int, epoch: int) -> np.ndarray:
        """Draw items: with replacement by their chances, or in passes, none drawn again before all were drawn."""
        chances = self.sampling.chances(epoch)
        if chances is not None:
            return rng.choice(self.rows, count, p=chances / chances.sum())
        passes = np.tile(self.rows, (-(-count // len(self.rows)), 1))
        return rng.permuted(passes, axis=1).ravel()[:count]


class EpochSampler(Sampler[SampleKey]):
    """Items in an order that depends on (seed, epoch) alone; every rank takes its share of the same order.

    An epoch has as many items as `real` in whole batches of all ranks, whatever the share of pseudo rows: ranks take
    equal counts, and all epochs have equally many steps, as the learning-rate schedule expects.

    Args:
        real: the training items.
        batch_size: of one rank.
        pseudo: items with pseudo labels, which take the place of some of the others.
        pseudo_shares: their share in each step of each epoch, rounded; after the last epoch given it stays.

    Raises:
        Refusal: fewer items than the batches of all ranks hold, or a share of a batch that is no whole item.
    """

    def __init__(
        self,
        real: Pool,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        pseudo: Pool | None = None,
        pseudo_shares: Sequence[float] = (0.0,),
    ) -> None:
        self.real, self.pseudo, self.pseudo_shares = real, pseudo, pseudo_shares
        self.seed, self.rank, self.world, self.epoch = seed, rank, world, 0
        self.step = batch_size * world  # items of all ranks
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
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.step // self.world

    def __iter__(self) -> Iterator[SampleKey]:
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn: dict[int, int] = {}
        for position, row in enumerate(self._order(rng).tolist()):
            repeat = drawn.get(row, 0)
            drawn[row] = repeat + 1
            if position % self.world == self.rank:
                yield SampleKey(row, self.epoch, repeat)

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """The items of this epoch, for all ranks."""
        share = self.pseudo_shares[min(self.epoch, len(self.pseudo_shares) - 1)]
        if self.pseudo is None or not share:
            return self.real.draw(rng, self.steps * self.step, self.epoch)
        counts = self.step - round(share * self.step), round(share * self.step)
        parts = [
            pool.draw(rng, self.steps * count, self.epoch).reshape(self.steps, count)
            for pool, count in zip((self.real, self.pseudo), counts, strict=True)
        ]
        return rng.permuted(np.hstack(parts), axis=1).ravel()  # or one rank would get all the pseudo rows


def balanced_weights(target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Chances of rows such that each class is drawn equally often: (N,) float64, of sum 1.

    Each is the sum over the row's classes of target / total of the class.

    Args:
        target: (N, K) in [0, 1]. The part of a row that belongs to no class counts as a class of its own.
        weight: (N,) of the samples in the loss; then chance times weight adds up to the same for each class.
    """
    none = np.clip(1 - np.asarray(target, np.float64).sum(axis=1, keepdims=True), 0, None)
    none[none < 1e-6] = 0  # soft rows add up to 1 only within rounding
    target = np.hstack([target, none])
    total = (target if weight is None else target * np.asarray(weight)[:, None]).sum(axis=0)
    chances = (target[:, total > 0] / total[total > 0]).sum(axis=1)
    return chances / chances.sum()
