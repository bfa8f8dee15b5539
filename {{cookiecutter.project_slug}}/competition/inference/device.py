"""Which device to compute on."""

import torch


def choose_device(name: str) -> str:
    """A device that is there.

    Raises:
        ValueError: it is not.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used ({str(error).splitlines()[0]}): try --device cpu") from error
    return name
