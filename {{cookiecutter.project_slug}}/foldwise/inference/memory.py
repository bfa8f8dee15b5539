"""Memory that stays with the process between forward passes on the CPU."""

import ctypes
import platform

MOST = 2**30  # bytes of a block; larger ones go back to the kernel
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep freed blocks for the next ones, where the C library is glibc; elsewhere nothing is done.

    Each layer's output is a block of megabytes. By default it goes back to the kernel as soon as it is freed, and the
    next one comes page by page and filled with zeros, which was a third of the time of a prediction on the CPU
    (benchmarks/memory.py of the template).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(TRIM_THRESHOLD, MOST)
        libc.mallopt(MMAP_THRESHOLD, MOST)
