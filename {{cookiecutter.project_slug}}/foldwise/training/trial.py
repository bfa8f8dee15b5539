"""One small batch through reader, network and losses, before a run exists."""

import copy
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldwise.data.batches import collate, unpack
from foldwise.data.dataset import EpochTransform, ItemDataset
from foldwise.data.images import image_hw
from foldwise.errors import Refusal
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch
from foldwise.schedule.phases import build_phases
from foldwise.tasks import TASKS, Task
from foldwise.tasks.outputs import Output, activate

ITEMS = 2


@torch.no_grad()
def try_batch(
    config: Mapping[str, Any], module: TrainingModule, dataset: ItemDataset, outputs: Sequence[Output]
) -> None:
    """Read a batch, and put it through the network at every image size of the training and through the losses.

    A bug of the owner's shows its traceback here, and not after the data of a run has been prepared.

    Raises:
        Refusal: a size that the network cannot take, an output that it does not give or with other columns, a loss
            that is none.
    """
    network = module.network.eval()
    problems = []
    for key, size in image_sizes(config).items():
        batch = _read(dataset, size)
        try:
            found = network(batch)
        except (AssertionError, RuntimeError, ValueError) as error:
            if not _in_library(error):
                raise
            problems.append(
                f"{key}: the network cannot take {size[0]} x {size[1]} ({error}); many of timm's transformers can with "
                "++model.options.dynamic_img_size=true"
            )
            continue
        if key == "data.image_size":
            _check_outputs(found, outputs)
            _check_losses(module.losses(found, batch), len(batch["row"]))
    if problems:
        raise Refusal("\n".join(problems))
    for mix in module.mixes.values():
        mix(batch)


def image_sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Every (height, width) that a training has, by its setting."""
    return {"data.image_size": image_hw(config["data"]["image_size"])} | {
        f"phases.{phase.name}.image_size": image_hw(phase.image_size)
        for phase in build_phases(config["phases"])
        if phase.image_size is not None
    }


def _in_library(error: BaseException) -> bool:
    """Whether a network of timm's or smp's raised it, which most often means a size that it cannot take."""
    frames = traceback.extract_tb(error.__traceback__)
    return any({"timm", "segmentation_models_pytorch"} & set(Path(frame.filename).parts) for frame in frames)


def _read(dataset: ItemDataset, size: tuple[int, int]) -> Batch:
    """A batch of the first items as training reads them, at a size."""
    tried = copy.copy(dataset)
    tried.transforms = [EpochTransform(dataset.transforms[-1].augmentation, size)]
    return unpack(collate([tried[number, 0] for number in range(min(ITEMS, len(tried)))], tried.fields))


def _check_outputs(found: Batch, outputs: Sequence[Output]) -> None:
    if not isinstance(found, dict):
        raise Refusal("`forward` of the network must return a dict of outputs, as {'logits': tensor}")
    values = activate(found, outputs)
    problems = [_output_problem(output, values[output.name]) for output in outputs]
    if any(problems):
        raise Refusal("\n".join(filter(None, problems)))


def _output_problem(output: Output, value: Tensor) -> str | None:
    """What is wrong with the shape of an output, with what to type; None: nothing."""
    task, columns = output.meaning, len(output.columns)
    wanted = _axes(task, columns)
    shape = f"the network gives {output.key!r} in the shape {tuple(value.shape)}"
    needs = f"the task {task.name} needs ({', '.join(map(str, wanted))})"
    if value.ndim != len(wanted):
        others = [other for other in TASKS.values() if len(_axes(other, columns)) == value.ndim]
        what = "correct its `forward`"
        if others and output.name:
            what = f"set outputs.{output.name}.task={others[0].name}"
        elif others:
            what = f"add {others[0].describe_settings()}"
        return f"{shape}, and {needs}: {what}, or choose another model"
    if value.shape[1] != columns:
        return f"{shape}, and {needs}: its constructor gets the number of columns in `outputs`"
    return None


def _axes(task: Task, columns: int) -> tuple[object, ...]:
    """The shape of the values of a batch."""
    return ("B", columns, "H", "W") if task.kind == "maps" else ("B", columns)


def _check_losses(losses: Any, items: int) -> None:
    if not isinstance(losses, dict) or "loss" not in losses or losses["loss"].ndim:
        raise Refusal("`losses` of the module must return a dict with a scalar 'loss', as {'loss': value}")
    wrong = [name for name, value in losses.items() if value.ndim and value.shape != (items,)]
    if wrong:
        raise Refusal(
            f"`losses` of the module gives {', '.join(wrong)} in another shape: a scalar is logged, and (B,), one "
            "number a sample, goes to the sampling"
        )
