"""Devices of this machine for a fold, and for the folds beside it."""

from collections.abc import Mapping
from typing import Any

from foldwise.errors import Refusal


def count_processes(trainer: Mapping[str, Any], hardware: Mapping[str, Any]) -> int:
    """Processes that train one fold on this machine, one a device; a Refusal if they are not there."""
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if accelerator in ("gpu", "cuda") and hardware["accelerator"] != "gpu":
        raise Refusal("trainer.accelerator=gpu, but torch sees no GPU here: use trainer=auto or trainer=cpu")
    available = count_gpus(trainer, hardware)
    if devices == "auto":
        return available or 1
    if not isinstance(devices, int) or devices < 1:
        raise Refusal(f"trainer.devices is {devices!r}; give a number, or auto for all GPUs")
    if available and devices > available:
        raise Refusal(f"trainer.devices={devices}, but there are {available} GPUs here")
    return devices


def count_gpus(trainer: Mapping[str, Any], hardware: Mapping[str, Any]) -> int:
    """The GPUs of this machine that may train; 0 for a training on another device."""
    return len(hardware["devices"]) if trainer["accelerator"] != "cpu" and hardware["accelerator"] == "gpu" else 0


def share_gpus(workers: int, devices: int, gpus: int, visible: str | None) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each of the `fold_workers` that train folds at once; None leaves it as it is.

    Args:
        devices: of one fold.
        gpus: of this machine; 0: a training on another device.
        visible: CUDA_VISIBLE_DEVICES of this process, numbers or UUIDs; None or empty: all.
    """
    if not isinstance(workers, int) or workers < 1:
        raise Refusal(f"fold_workers is {workers!r}; give the number of folds that train at once")
    if workers == 1 or not gpus:
        return [None] * workers
    if workers * devices > gpus:
        raise Refusal(
            f"fold_workers={workers} with {devices} GPUs a fold needs {workers * devices}, and there are {gpus} here: "
            f"give fold_workers={max(1, gpus // devices)}, or a lower trainer.devices"
        )
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    return [",".join(names[devices * worker : devices * (worker + 1)]) for worker in range(workers)]
