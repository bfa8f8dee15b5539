"""Freed memory is kept: what is allocated again comes without page faults."""

import multiprocessing
import platform
import resource

import pytest
import torch

from competition.inference.memory import keep_freed_memory

BLOCK, TIMES = 2**26, 20  # bytes


def faults(keep: bool, connection) -> None:
    """Send how many page faults so many passes over a new block take."""
    if keep:
        keep_freed_memory()
    for _ in range(TIMES):  # until the blocks have found their places
        torch.ones(BLOCK, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        torch.ones(BLOCK, dtype=torch.uint8)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_block_that_was_freed_costs_no_page_faults():
    counts = []
    for keep in (False, True):
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=faults, args=(keep, theirs))
        process.start()
        counts.append(ours.recv())
        process.join()
    assert counts[1] < counts[0] / 10, counts
