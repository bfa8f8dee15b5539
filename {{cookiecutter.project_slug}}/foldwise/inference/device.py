"""Device choice, and memory reuse on the CPU."""

import ctypes
import platform

import torch

from foldwise.errors import Refusal

MAX_KEPT_BYTES = 2**30  # larger blocks go back to the kernel
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h


def choose_device(name: str) -> str:
    """Resolve "auto" to a GPU if there is one; refuse a device that cannot be used."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise Refusal(f"--device {name} cannot be used ({str(error).splitlines()[0]}): try --device cpu") from error
    return name


def choose_devices(name: str, count: int | None = None) -> list[str]:
    """List the device of each of `count` processes; default: one per GPU for "auto" and "cuda", else one."""
    device = choose_device(name)
    if device == "cpu":
        return [device] * (count or 1)
    available = torch.cuda.device_count() if device == "cuda" else 1
    if count is not None and count > available:
        raise Refusal(f"--devices is {count}, but --device {name} has only {available} on this machine")
    return [f"cuda:{index}" for index in range(count or available)] if available > 1 else [device]


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory blocks; a no-op with other C libraries.

    By default glibc returns the output of each layer (megabytes) to the kernel, which then hands out zeroed
    pages again. That took a third of the prediction time on the CPU (benchmarks/memory.py of the template).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(TRIM_THRESHOLD, MAX_KEPT_BYTES)
        libc.mallopt(MMAP_THRESHOLD, MAX_KEPT_BYTES)
