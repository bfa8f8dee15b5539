"""Choose the items of an epoch and their order.

The sampler yields keys (item, epoch, repeat). So a sample depends on (seed, epoch, id, repeat) alone, not on worker,
rank or order, and persistent workers know the epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from foldwise.errors import Refusal


class SampleKey(NamedTuple):
    """Key of a sample; `repeat` counts earlier draws of the item in this epoch."""

    item: int
    epoch: int
    repeat: int = 0


class Sampling:
    """Decides how often each training item is drawn; this base class draws each once per epoch.

    To write your own, subclass it in solution/ and select it with `data.sampling._target_`; arguments are plain values.
    """

    def start(self, target: np.ndarray | None, weight: np.ndarray) -> None:
        """Start a training: targets (N, C), None if they are mask files, and loss weights (N,) of the items."""

    def chances(self, epoch: int) -> np.ndarray | None:
        """Return unnormalised probabilities (N,) of the training items in an epoch; None draws each item once."""
        return None

    def draw(self, rng: np.random.Generator, count: int, epoch: int) -> np.ndarray | None:
        """Return the positions (count,) of the training items of an epoch in order; None leaves it to `chances`."""
        return None

    def observe(self, items: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Receive the results of an epoch; every rank gets the same.

        `values` are the (B,) entries of the module's `losses` by name, `items` (B,) the item indices in training order.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state to checkpoint: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""


class Balanced(Sampling):
    """Draws each class equally often, with replacement; see `balanced_weights`."""

    def start(self, target: np.ndarray | None, weight: np.ndarray) -> None:
        if target is None:
            raise Refusal("data.sampling=balanced is for classification; for masks use loss.class_weights=balanced")
        if target.dtype.kind == "i":
            raise Refusal(f"data.sampling=balanced is for classification; for identities use {Identities.NAME}")
        if not ((target >= 0) & (target <= 1)).all():
            raise Refusal("data.sampling=balanced is for classes, and the targets are numbers: take shuffle")
        self._chances = balanced_weights(target, weight)

    def chances(self, epoch: int) -> np.ndarray:
        return self._chances


class Identities(Sampling):
    """Batches of P identities with `images` images each, drawn without replacement while an identity has enough.

    All identities come equally often. (P x K batches, Hermans et al. 2017, https://arxiv.org/abs/1703.07737.)
    """

    NAME: ClassVar[str] = "data.sampling={_target_:foldwise.data.sampling.Identities,images:4}"

    def __init__(self, images: int = 4) -> None:
        if type(images) is not int or images < 1:
            raise Refusal(f"data.sampling.images is {images!r}; it must be a whole number from 1")
        self.images = images

    def start(self, target: np.ndarray | None, weight: np.ndarray) -> None:
        if target is None or target.dtype.kind != "i":
            raise Refusal("data.sampling draws identities, so it is for task=retrieval: set data.sampling=balanced")
        order = np.argsort(target[:, 0], kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(target[order, 0])) + 1)

    def draw(self, rng: np.random.Generator, count: int, epoch: int) -> np.ndarray:
        drawn: list[np.ndarray] = []
        while len(drawn) * self.images < count:
            for number in rng.permutation(len(self.members)):
                passes = -(-self.images // len(self.members[number]))
                drawn.append(np.hstack([rng.permutation(self.members[number]) for _ in range(passes)])[: self.images])
        return np.hstack(drawn)[:count]


SAMPLINGS = {"shuffle": Sampling, "balanced": Balanced}


class Pool:
    def __init__(self, rows: Sequence[int] | np.ndarray, sampling: Sampling | None = None) -> None:
        self.rows, self.sampling = np.asarray(rows, dtype=np.int64), sampling or Sampling()

    def draw(self, rng: np.random.Generator, count: int, epoch: int) -> np.ndarray:
        """Draw as the sampling does: by itself, with replacement by its chances, or in passes over all items."""
        drawn = self.sampling.draw(rng, count, epoch)
        if drawn is not None:
            return self.rows[drawn]
        chances = self.sampling.chances(epoch)
        if chances is not None:
            return rng.choice(self.rows, count, p=chances / chances.sum())
        passes = np.tile(self.rows, (-(-count // len(self.rows)), 1))
        return rng.permuted(passes, axis=1).ravel()[:count]


class EpochSampler(Sampler[SampleKey]):
    """Yields items in an order that depends on (seed, epoch) alone; ranks take turns.

    The number of steps is that of the real items in full batches, whatever the share of pseudo rows: the learning-rate
    schedule needs the same number in every epoch.

    Args:
        batch_size: per rank.
        pseudo: items with pseudo labels; they replace some of the real ones.
        pseudo_shares: their share of each step, one per epoch, rounded to whole items; later epochs use the last.
        most: steps of an epoch, which then draws others of the items each time; None: all items.
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
        most: int | None = None,
    ) -> None:
        self.real, self.pseudo, self.pseudo_shares = real, pseudo, pseudo_shares
        self.seed, self.rank, self.world, self.epoch = seed, rank, world, 0
        self.step = batch_size * world  # items of all ranks
        self.steps = len(self.real.rows) // self.step
        if not self.steps:
            devices, most = f" on each of {world} devices" if world > 1 else "", len(self.real.rows) // world * world
            raise Refusal(
                f"a batch of {batch_size}{devices} needs more than the {len(self.real.rows)} training rows: "
                f"set batch_size={max(world, most)} or less"
            )
        self.steps = min(self.steps, most or self.steps)
        for share in pseudo_shares:
            if 0 < share < 1 and round(share * self.step) in (0, self.step):
                raise Refusal(
                    f"a share of {share:g} pseudo rows in a step of {self.step} rounds to none or all of them: "
                    "change data.pseudo_share or batch_size"
                )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.step // self.world

    def __iter__(self) -> Iterator[SampleKey]:
        drawn: dict[int, int] = {}
        for position, row in enumerate(self.order().tolist()):
            repeat = drawn.get(row, 0)
            drawn[row] = repeat + 1
            if position % self.world == self.rank:
                yield SampleKey(row, self.epoch, repeat)

    def order(self) -> np.ndarray:
        """The items of the epoch, of all ranks."""
        rng = np.random.default_rng([self.seed, self.epoch])
        share = self.pseudo_shares[min(self.epoch, len(self.pseudo_shares) - 1)]
        if self.pseudo is None or not share:
            return self.real.draw(rng, self.steps * self.step, self.epoch)
        counts = self.step - round(share * self.step), round(share * self.step)
        parts = [
            pool.draw(rng, self.steps * count, self.epoch).reshape(self.steps, count)
            for pool, count in zip((self.real, self.pseudo), counts, strict=True)
        ]
        return rng.permuted(np.hstack(parts), axis=1).ravel()  # else one rank would get all pseudo rows


def balanced_weights(target: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Compute row probabilities that draw each class equally often: (N,) float64, summing to 1.

    A row's probability is proportional to its target / class total, summed over classes. If a row of `target` (N, K)
    sums to less than 1, the rest counts as one more class. With loss weights (N,), the sum of probability times weight
    is the same for each class.
    """
    none = np.clip(1 - np.asarray(target, np.float64).sum(axis=1, keepdims=True), 0, None)
    none[none < 1e-6] = 0  # soft rows sum to 1 only up to rounding
    target = np.hstack([target, none])
    total = (target if weight is None else target * np.asarray(weight)[:, None]).sum(axis=0)
    chances = (target[:, total > 0] / total[total > 0]).sum(axis=1)
    return chances / chances.sum()
