"""Dry run of a training: builds everything once and tries a small batch before the run folder exists."""

import copy
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from foldwise.code.build import make
from foldwise.data.batches import collate, unpack
from foldwise.data.dataset import EpochTransform, ItemDataset
from foldwise.data.holdout import Holdout
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared
from foldwise.errors import Refusal
from foldwise.inference.spec import ModelSpec
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch
from foldwise.models.normalized import set_trainable, trainable_share
from foldwise.processes.group import Rank
from foldwise.reporting.phases import PhasePreview
from foldwise.schedule.phases import Phase
from foldwise.schedule.schedulers import Plateau
from foldwise.settings import unknown_setting
from foldwise.tasks import TASKS, Task
from foldwise.tasks.outputs import Output, activate
from foldwise.training.build import build_training
from foldwise.training.devices import count_processes
from foldwise.training.image_sizes import UNFIT, fitting_options, image_sizes, in_library, nearest_sizes
from foldwise.training.loaders import local_batch_size
from foldwise.training.validation import build_metrics

FIRST = Holdout((0,))
ITEMS = 2  # batch size
STEPS = 20  # points per epoch in the learning-rate preview
ONE_VALUE = "more than 1 value per channel"  # in torch's error


def inspect_config(
    config: Mapping[str, Any], prepared: Prepared, part: Holdout = FIRST, nodes: int = 1
) -> tuple[dict[str, Any], list[PhasePreview]]:
    """Build a training once and try a batch, to catch mistakes before the run exists.

    Returns:
        The hardware, {"accelerator": gpu | mps | cpu, "devices": [names], "cpus": count}, and the phases.
    """
    known = list(inspect.signature(pl.Trainer).parameters)
    unknown = [
        unknown_setting(f"trainer.{name}", [f"trainer.{other}" for other in known])
        for name in config["trainer"]
        if name not in known
    ]
    if unknown:
        raise Refusal("\n".join(unknown))
    for callback in config["callbacks"].values():
        make(callback, prepared.alias)
    build_metrics(config, prepared)
    training = build_training({**config, "data": {**config["data"], "workers": 0}}, prepared, part, Rank())
    module, dataset = training.module, training.loader.dataset
    assert isinstance(dataset, ItemDataset)
    attach_trainer(module)
    _try_batch(config, module, dataset, prepared, training.spec)
    optimizer = module.make_optimizer(training.network)
    if config["lr_batch_size"]:
        print(
            f"optimizer.lr={config['optimizer']['lr']:g} is for {config['lr_batch_size']} images a step; "
            f"for batch_size={config['batch_size']} it is {optimizer.defaults['lr']:g}",
            flush=True,
        )
    previews = _preview_phases(config, module, [group["lr"] for group in optimizer.param_groups])
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    kind = "gpu" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    hardware = {"accelerator": kind, "devices": gpus or [kind], "cpus": os.cpu_count()}
    _check_batch_norm(config, module, dataset, count_processes(config["trainer"], hardware) * nodes)
    return hardware, previews


def attach_trainer(module: TrainingModule) -> None:
    """Attach a single-process CPU trainer: `losses` may use `self.trainer` and `self.all_gather`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns of unused GPUs
        module.trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=module.schedule.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=LightningEnvironment(),  # whatever torchrun or srun set
        )
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # Lightning's raises outside of a training loop


@torch.no_grad()
def _try_batch(
    config: Mapping[str, Any], module: TrainingModule, dataset: ItemDataset, prepared: Prepared, spec: ModelSpec
) -> None:
    """Run a batch through mixing, the losses and, at every image size of the training, the network."""
    network = module.network.eval()
    sizes, problems = image_sizes(config), []
    for key, size in sizes.items():
        batch = _first_items(dataset, size, ITEMS)
        try:
            found = network(batch)
        except UNFIT as error:
            if not in_library(error):
                raise
            advice = [f"{key}=[{height},{width}]" for height, width in nearest_sizes(network, batch, size)]
            if len(sizes) == 1:  # an option must suit all
                advice += fitting_options(prepared, spec, batch, size)
            choices = f": try {', or '.join(advice)}" if advice else ""
            problems.append(f"{key}: the network cannot take {size[0]} x {size[1]} ({str(error).rstrip('.')}){choices}")
            continue
        if key == "data.image_size":
            _check_outputs(found, prepared.trained)
            _check_losses(module.losses(found, batch), len(batch["row"]))
    if problems:
        raise Refusal("\n".join(problems))
    for mix in module.mixes.values():
        mix(batch)


def _first_items(dataset: ItemDataset, size: tuple[int, int], count: int) -> Batch:
    """A batch of the first items, augmented as in the last epoch, at an image size."""
    tried = copy.copy(dataset)
    tried.transforms = [EpochTransform(dataset.transforms[-1].augmentation, size)]
    return unpack(collate([tried[number, 0] for number in range(min(count, len(tried)))], tried.fields))


@torch.no_grad()
def _check_batch_norm(config: Mapping[str, Any], module: TrainingModule, dataset: ItemDataset, world: int) -> None:
    """Refuse one image per forward pass if a BatchNorm in training then gets a single value per channel."""
    trainer = config["trainer"]
    if local_batch_size(config, Rank(0, world)) > 1 or (world > 1 and trainer.get("sync_batchnorm")):
        return

    def works(phase: Phase, freeze_bn: bool) -> bool:
        set_trainable(module.network, phase.trainable, freeze_bn)
        try:
            module.network.train()(batch)
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            return False
        return True

    for phase in module.schedule.phases:
        batch = _first_items(dataset, image_hw(phase.image_size or config["data"]["image_size"]), 1)
        if not works(phase, phase.freeze_bn):
            accumulate = trainer["accumulate_grad_batches"]
            least = f"batch_size={2 * world * accumulate} or more"
            frozen = f", or ++phases.{phase.name}.freeze_bn=true" if works(phase, True) else ""
            devices = f" on {world} devices" if world > 1 else ""
            batches = f" with trainer.accumulate_grad_batches={accumulate}" if accumulate > 1 else ""
            raise Refusal(
                f"batch_size={config['batch_size']}{devices}{batches} is one image per forward pass, which BatchNorm "
                f"cannot train on (phase {phase.name}): set {least}{frozen}"
            )


def _check_outputs(found: Batch, outputs: Sequence[Output]) -> None:
    if not isinstance(found, dict):
        raise Refusal("`forward` of the network must return a dict of outputs, such as {'logits': tensor}")
    values = activate(found, outputs)
    problems = [_output_problem(output, values[output.name]) for output in outputs]
    if any(problems):
        raise Refusal("\n".join(filter(None, problems)))


def _output_problem(output: Output, value: Tensor) -> str | None:
    """What is wrong with the shape of an output and how to fix it; None if it is right."""
    task, columns = output.meaning, len(output.columns)
    expected = _axes(task, columns)
    shape = f"the network gives {output.key!r} in the shape {tuple(value.shape)}"
    needs = f"the task {task.name} needs ({', '.join(map(str, expected))})"
    if value.ndim != len(expected):
        others = [other for other in TASKS.values() if len(_axes(other, columns)) == value.ndim]
        advice = "correct its `forward`"
        if others and output.name:
            advice = f"set outputs.{output.name}.task={others[0].name}"
        elif others:
            advice = f"add {others[0].describe_settings()}"
        return f"{shape}, and {needs}: {advice}, or choose another model"
    if value.shape[1] != columns and task.kind != "vectors":
        return f"{shape}, and {needs}: its constructor gets the number of columns in `outputs`"
    return None


def _axes(task: Task, columns: int) -> tuple[object, ...]:
    """Shape of the predictions for a batch."""
    if task.kind == "vectors":
        return ("B", "any width")
    return ("B", columns, "H", "W") if task.kind == "maps" else ("B", columns)


def _check_losses(losses: Any, items: int) -> None:
    if not isinstance(losses, dict) or "loss" not in losses or losses["loss"].ndim:
        raise Refusal("`losses` of the module must return a dict with a scalar 'loss', such as {'loss': value}")
    wrong = [name for name, value in losses.items() if value.ndim and value.shape != (items,)]
    if wrong:
        raise Refusal(
            f"`losses` of the module returns {', '.join(wrong)} in a wrong shape: give a scalar, which is logged, or "
            "(B,), one value per sample, for the sampling"
        )


def _preview_phases(config: Mapping[str, Any], module: TrainingModule, lrs: Sequence[float]) -> list[PhasePreview]:
    """The phases for plan.png; `lrs` are those of the parameter groups."""
    schedule = replace(module.schedule, steps_per_epoch=STEPS)
    previews, first = [], 0
    for phase in schedule.phases:
        set_trainable(module.network, phase.trainable, phase.freeze_bn)
        factors = [schedule.factor(step) for step in range(first, first + phase.epochs * STEPS)]
        first += len(factors)
        transforms = (phase.augmentation or config["augmentation"])["transforms"]
        mixing = phase.mixing or config["mixing"]
        previews.append(
            PhasePreview(
                phase,
                trainable_share(module.network),
                image_hw(phase.image_size or config["data"]["image_size"]),
                [*_names(transforms), *(name for name, alpha in mixing.items() if alpha)],
                [(factor * min(lrs), factor * max(lrs)) for factor in factors],
                isinstance(schedule.schedulers[phase.name], Plateau),
            )
        )
    return previews


def _names(transforms: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Class names of transforms; for a composition, those of its members."""
    for transform in transforms:
        if "transforms" in transform:
            yield from _names(transform["transforms"])
        else:
            yield transform["_target_"].rpartition(".")[2]
