"""Communication between the ranks of a fold, outside of Lightning."""

from typing import TypeVar

from timm.utils import distribute_bn
from torch import distributed, nn

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """The values of all ranks in rank order; a list of one without DDP."""
    values: list[T] = [value] * _world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def share_norms(network: nn.Module, average: bool = False) -> None:
    """Copy the BatchNorm statistics of rank 0, or the mean over ranks, to all ranks.

    DDP synchronises them before a forward pass; after it, each rank has statistics of its own rows.
    """
    if _world_size() > 1:
        distribute_bn(network, _world_size(), reduce=average)


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
