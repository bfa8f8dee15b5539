"""From a configuration and the prepared data to the parts of a training: network, loss, module, trainer."""

import inspect
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from foldwise.config import make
from foldwise.data.holdout import Holdout
from foldwise.data.images import FITS, image_hw
from foldwise.data.prepare import Prepared
from foldwise.errors import Refusal
from foldwise.inference.tta import TTA
from foldwise.inference.weights import ModelSpec
from foldwise.models.classification import ClassificationModule, MultilabelModule
from foldwise.models.losses import BALANCES, balanced_class_weights
from foldwise.models.mixing import Mix
from foldwise.models.module import TrainingModule
from foldwise.models.networks import build_network, pretrained_normalization, required_multiple
from foldwise.models.normalized import Normalized, enable_gradient_checkpointing
from foldwise.models.optimization import build_optimizer, scale_rate
from foldwise.models.phases import Schedule, build_phases
from foldwise.models.segmentation import SegmentationModule
from foldwise.predictions.metrics.building import build_metric
from foldwise.processes.group import Place
from foldwise.reporting.phases import PhasePreview
from foldwise.settings import unknown_setting
from foldwise.training.loaders import build_looks, epoch_shares, phase_augmentation
from foldwise.training.preview import preview_phases
from foldwise.training.sizes import check_sizes, try_sizes

MODULES: dict[str, type[TrainingModule]] = {
    "multiclass": ClassificationModule,
    "multilabel": MultilabelModule,
    "segmentation": SegmentationModule,
}


def build_spec(config: Mapping[str, Any], prepared: Prepared) -> ModelSpec:
    """What a saved model says of itself, which is also what is needed to build it.

    Raises:
        Refusal: an image size that the network cannot take, or a fit that the task cannot have.
    """
    model, data, statistics = config["model"], config["data"], prepared.statistics
    architecture = {key: model[key] for key in ("library", "name", "encoder", "options") if model.get(key) is not None}
    check_sizes(config, required_multiple(architecture))
    masks = config["task"] == "segmentation"
    if data["fit"] not in FITS or (data["fit"] == "crop" and masks) or (data["fit"] == "tiles" and not masks):
        raise Refusal(
            f"data.fit is {data['fit']!r}; it must be one of {', '.join(FITS)}: stretch or tiles for segmentation, "
            "where every pixel is predicted, and stretch or crop else"
        )
    if data["fit"] == "tiles" and TTA.from_config(config["tta"]).names != ["identity"]:
        raise Refusal("data.fit=tiles predicts in tiles, which have one view: choose tta=none")
    if data["normalize"] == "weights":
        mean, std = pretrained_normalization(architecture, statistics["channels"])
    else:
        mean, std = statistics["mean"], statistics["std"]
    return ModelSpec(
        task=config["task"],
        architecture=architecture,
        channels=statistics["channels"],
        classes=list(prepared.table.classes),
        image_size=image_hw(data["image_size"]),
        fit=data["fit"],
        mode=data["mode"],
        scale=statistics["scale"],
        mean=list(mean),
        std=list(std),
    )


def build_normalized(config: Mapping[str, Any], spec: ModelSpec) -> Normalized:
    """The network with its normalisation and initial weights, on the CPU."""
    model = config["model"]
    weights = Path(model["weights"]) if model["weights"] else None
    net = build_network(spec.architecture, spec.channels, len(spec.classes), weights, bool(model["pretrained"]))
    if model["gradient_checkpointing"]:
        enable_gradient_checkpointing(net)
    return Normalized(net, spec.mean, spec.std)


def build_loss(config: Mapping[str, Any], prepared: Prepared, part: Holdout) -> torch.nn.Module:
    """The loss, with `class_weights` that are named (see `BALANCES`) replaced by numbers from the trained rows.

    Raises:
        Refusal: a name that is not known.
    """
    loss = _plain(config["loss"])
    for term in [loss, *(term["loss"] for term in loss.get("terms", []))]:
        name = term.get("class_weights")
        if isinstance(name, str):
            if name not in BALANCES:
                raise Refusal(f"class_weights is {name!r}; give {', '.join(BALANCES)}, or one number a class")
            by_fold = prepared.statistics["class_counts"]
            counts = [values for key, values in by_fold.items() if int(key) not in part.folds]
            rows = sum(1 for id in prepared.table.ids if prepared.folds[id] not in part.folds)
            total = np.sum(counts, axis=0).tolist()
            term["class_weights"] = balanced_class_weights(
                total, rows if config["task"] == "multilabel" else None, BALANCES[name]
            )
    return make(loss)


def build_module(
    config: Mapping[str, Any], prepared: Prepared, network: Normalized, part: Holdout, steps_per_epoch: int
) -> TrainingModule:
    """The Lightning module of the task."""
    rate = scale_rate(config["optimizer"]["lr"], config["batch_size"], config.get("lr_batch_size"))
    phases = build_phases(config["phases"])
    curves = {phase.name: make(phase.scheduler or config["scheduler"]) for phase in phases}
    arguments: dict[str, Any] = {
        "network": network,
        "loss": build_loss(config, prepared, part),
        "make_optimizer": partial(build_optimizer, **config["optimizer"] | {"lr": rate}),
        "schedule": Schedule(phases, curves, steps_per_epoch),
        "seed": config["seed"],
    }
    mixes = {}
    for phase in phases:
        augmentation = phase_augmentation(config, phase)
        mixes[phase.name] = Mix(augmentation["mixup"], augmentation["cutmix"], config["task"])
    if any(mixes.values()):
        arguments["mixes"] = mixes
    return MODULES[config["task"]](**arguments)


def build_trainer(config: Mapping[str, Any], place: Place, epochs: int, **arguments: Any) -> pl.Trainer:
    """Lightning's Trainer from configs/trainer, for this process's place.

    Raises:
        Refusal: a setting that it does not take.
    """
    settings = dict(config["trainer"]) | {"devices": place.devices, "num_nodes": place.nodes}
    if settings["strategy"] == "ddp" and any(phase.trainable != "all" for phase in build_phases(config["phases"])):
        # What a phase freezes gets no gradient, and plain DDP would wait for it.
        settings["strategy"] = "ddp_find_unused_parameters_true"
    try:
        return pl.Trainer(
            **settings,
            max_epochs=epochs,
            limit_val_batches=0,  # validation is a callback of ours, see training/validation.py
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # EpochSampler divides the rows by itself
            enable_model_summary=False,
            **arguments,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise Refusal(f"Lightning does not take the settings of trainer ({error}): {settings}") from error


def inspect_config(config: Mapping[str, Any], prepared: Prepared) -> tuple[dict[str, Any], list[PhasePreview]]:
    """Build everything once, so that a mistake is found before a run exists.

    A learning rate that is scaled is said.

    Returns:
        The hardware that torch sees, {"accelerator": gpu | mps | cpu, "devices": [names], "cpus": count}, and what
        the training will do.

    Raises:
        Refusal: what in the configuration or the data cannot be used.
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
        make(callback)
    spec = build_spec(config, prepared)
    network = build_normalized(config, spec)
    build_metric(config["metric"], config["task"], spec.classes)
    build_looks(config, prepared)
    epoch_shares(config)
    module = build_module(config, prepared, network, Holdout(()), steps_per_epoch=1)
    try_sizes(network, module.schedule.phases, spec.channels)
    optimizer = module.make_optimizer(network)
    if config.get("lr_batch_size"):
        print(
            f"optimizer.lr={config['optimizer']['lr']:g} is for {config['lr_batch_size']} images a step; "
            f"for batch_size={config['batch_size']} it is {optimizer.defaults['lr']:g}",
            flush=True,
        )
    previews = preview_phases(config, module)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    kind = "gpu" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    return {"accelerator": kind, "devices": gpus or [kind], "cpus": os.cpu_count()}, previews


def _plain(value: Any) -> Any:
    """A copy of nested mappings and lists that can be changed."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
