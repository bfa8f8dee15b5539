"""Devices to compute on, and the CPU's memory between forward passes."""

import ctypes
import platform

import torch

from foldwise.errors import Refusal

MOST = 2**30  # bytes of a block; larger ones go back to the kernel
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h


def choose_device(name: str) -> str:
    """The device that `name` means here; "auto": a GPU where there is one.

    Raises:
        Refusal: it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise Refusal(f"--device {name} cannot be used ({str(error).splitlines()[0]}): try --device cpu") from error
    return name


def choose_devices(name: str, count: int | None = None) -> list[str]:
    """The device of each process that predicts.

    Args:
        count: of processes; None: one for each GPU where `name` names no certain one, else one.

    Raises:
        Refusal: the device or so many of it are not there.
    """
    device = choose_device(name)
    if device == "cpu":
        return [device] * (count or 1)
    there = torch.cuda.device_count() if device == "cuda" else 1
    if count is not None and count > there:
        raise Refusal(f"--devices {count}, but --device {name} has {there} here")
    return [f"cuda:{index}" for index in range(count or there)] if there > 1 else [device]


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
