"""The little that a fold's processes say to each other outside of Lightning."""

from typing import TypeVar

from timm.utils import distribute_bn
from torch import distributed, nn

T = TypeVar("T")


def world_size() -> int:
    """Processes that train this fold together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather(value: T) -> list[T]:
    """The `value` of every rank, in the order of ranks, on every rank; alone, a list of one."""
    values: list[T] = [value] * world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def share_norms(network: nn.Module, average: bool = False) -> None:
    """Give all ranks the batch-norm statistics of rank 0, which are the ones that are saved, or the mean of all ranks'.

    DDP hands them out before a forward pass; after it, each rank has those of its own rows.
    """
    if world_size() > 1:
        distribute_bn(network, world_size(), reduce=average)
