"""The little that a fold's processes say to each other outside of Lightning."""

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """The `value` of every rank, in the order of ranks, on every rank; alone, a list of one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[T] = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
