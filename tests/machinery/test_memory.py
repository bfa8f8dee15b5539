"""Freed memory is kept: what is allocated again comes without page faults."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# In a new process: once memory is kept, by any predictor of another test, it stays so. Blocks of 64 MiB; the first
# times are until they have found their places.
CODE = """
import resource
from foldwise.inference.device import keep_freed_memory
if {keep}:
    keep_freed_memory()
for times in (20, 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"x" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    """The page faults of twenty passes over a new block."""
    command = [sys.executable, "-c", CODE.format(keep=keep)]
    return int(subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_block_that_was_freed_costs_no_page_faults():
    assert faults(keep=True) < faults(keep=False) / 10
