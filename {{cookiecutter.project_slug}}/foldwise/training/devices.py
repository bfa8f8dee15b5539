"""Divides the devices of this machine among folds."""

from collections.abc import Mapping
from typing import Any

from foldwise.errors import Refusal


def count_processes(trainer: Mapping[str, Any], hardware: Mapping[str, Any]) -> int:
    """Number of devices, and so processes, per fold on this machine; raise a Refusal if there are fewer."""
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
    """Number of GPUs that may train; 0 when training on another device."""
    return len(hardware["devices"]) if trainer["accelerator"] != "cpu" and hardware["accelerator"] == "gpu" else 0


def share_gpus(workers: int, devices: int, gpus: int, visible: str | None) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each fold worker; None leaves it unchanged.

    Args:
        devices: per fold.
        gpus: from `count_gpus`.
        visible: CUDA_VISIBLE_DEVICES of this process, numbers or UUIDs; None or empty means all.
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
