"""The little that a fold's processes exchange outside of Lightning."""

from typing import TypeVar

from timm.utils import distribute_bn
from torch import distributed, nn

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """The `value` of every rank, in the order of ranks, on every rank; alone, a list of one."""
    values: list[T] = [value] * _world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def share_norms(network: nn.Module, average: bool = False) -> None:
    """Give all ranks the BatchNorm statistics of rank 0, which are saved, or the mean of all ranks'.

    DDP hands them out before a forward pass; after it, each rank has those of its own rows.
    """
    if _world_size() > 1:
        distribute_bn(network, _world_size(), reduce=average)


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
