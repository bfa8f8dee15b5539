"""Which devices to compute on."""

import torch

from foldwise.errors import Refusal


def choose_device(name: str) -> str:
    """A device that is there.

    Raises:
        Refusal: it is not.
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
        name: as for `choose_device`.
        count: of processes; None: one for each GPU where `name` chooses no certain one, else one.

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
