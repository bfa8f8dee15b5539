"""From a configuration and the prepared data to the parts of a training: network, loss, module, trainer."""

import inspect
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from foldwise.code.build import make, resolve
from foldwise.code.runs import module_target
from foldwise.data.holdout import Holdout
from foldwise.data.images import FITS, image_hw
from foldwise.data.prepare import Prepared
from foldwise.data.samples import Rows
from foldwise.errors import Refusal
from foldwise.inference.tta import TTA
from foldwise.inference.weights import ModelSpec, normalize
from foldwise.models.losses import BALANCES, balanced_class_weights
from foldwise.models.mixing import Mix
from foldwise.models.module import Setup, TrainingModule
from foldwise.models.network import Network
from foldwise.models.networks import pretrained_normalization
from foldwise.models.normalized import Normalized, enable_gradient_checkpointing
from foldwise.models.optimization import build_optimizer, scale_rate
from foldwise.predictions.metrics.building import build_metric
from foldwise.processes.group import Rank
from foldwise.reporting.phases import PhasePreview
from foldwise.schedule.phases import Schedule, build_phases
from foldwise.settings import unknown_setting
from foldwise.training.loaders import (
    TrainingItems,
    build_sampling,
    phase_augmentation,
    sample_fields,
    training_items,
    training_loader,
)
from foldwise.training.preview import preview_phases
from foldwise.training.trial import image_sizes, try_batch

# Settings of the group `model` that say how a network is trained, and not what it is.
TRAINING_ONLY = ("_target_", "pretrained", "weights", "channels_last", "compile", "gradient_checkpointing")


def fit_reader(prepared: Prepared, rows: np.ndarray) -> dict[str, Any]:
    """What the reader has to know of the items that are trained, without their targets."""
    items = [prepared.items[row] for row in rows]
    return prepared.samples.fit(Rows(prepared.source, prepared.samples), items)


def build_spec(config: Mapping[str, Any], prepared: Prepared, state: Mapping[str, Any], alias: str | None) -> ModelSpec:
    """What a saved model says of itself, which is also what is needed to build it.

    Raises:
        Refusal: a fit that the task cannot have, or a normalisation that is not known.
    """
    model, data = config["model"], config["data"]
    maps = any(output.meaning.field.spatial for output in prepared.outputs)
    if data["fit"] not in FITS or (data["fit"] == "crop" and maps) or (data["fit"] == "tiles" and not maps):
        raise Refusal(
            f"data.fit is {data['fit']!r}; it must be one of {', '.join(FITS)}: stretch or tiles for segmentation, "
            "where every pixel is predicted, and stretch or crop else"
        )
    if data["fit"] == "tiles" and TTA.from_config(config["tta"]).names != ["identity"]:
        raise Refusal("data.fit=tiles predicts in tiles, which have one view: choose tta=none")
    network = {name: value for name, value in model.items() if name not in TRAINING_ONLY and value is not None}
    images = {}
    for name, image in prepared.statistics["images"].items():
        mean, std = image["mean"], image["std"]
        if data["normalize"] == "weights":
            mean, std = pretrained_normalization(network, image["channels"])
        images[name] = {"scale": image["scale"], "mean": list(mean), "std": list(std)}
    samples = config["samples"]
    targets = model["_target_"], samples["_target_"]
    return ModelSpec(
        network={
            "_target_": module_target(model["_target_"]),
            **network,
            "channels": {name: image["channels"] for name, image in prepared.statistics["images"].items()},
            "outputs": {output.key: len(output.columns) for output in prepared.outputs},
        },
        samples={**samples, "_target_": module_target(samples["_target_"])},
        state=dict(state),
        outputs=prepared.outputs,
        image_size=image_hw(data["image_size"]),
        fit=data["fit"],
        images=images,
        code=alias.rpartition("_")[2] if alias and any(name.startswith("solution.") for name in targets) else None,
    )


def build_network(config: Mapping[str, Any], spec: ModelSpec, alias: str | None) -> Normalized:
    """The network with its normalisation and initial weights, on the CPU.

    Raises:
        Refusal: it cannot be built, or not for images of this size.
    """
    model = config["model"]
    kind = resolve(spec.network["_target_"], alias)
    if not (isinstance(kind, type) and issubclass(kind, Network)):
        raise Refusal(f"model._target_ is {model['_target_']}, which is no subclass of foldwise.models.network.Network")
    net = make(spec.network, alias, weights=model["weights"], pretrained=bool(model["pretrained"]))
    check_sizes(config, net.multiple)
    if model["gradient_checkpointing"]:
        enable_gradient_checkpointing(net)
    return normalize(net, spec)


def check_sizes(config: Mapping[str, Any], multiple: int) -> None:
    """Compare image sizes, those of phases included, with what heights and widths must be a multiple of.

    Raises:
        Refusal: every size that is none, and the next larger one that is.
    """
    problems = []
    for key, (height, width) in image_sizes(config).items():
        if height % multiple or width % multiple:
            up = [-(-side // multiple) * multiple for side in (height, width)]
            problems.append(
                f"{config['model']['name']} needs sizes divisible by {multiple}, and {key} is {height} x {width}: "
                f"try {key}=[{up[0]},{up[1]}]"
            )
    if problems:
        raise Refusal("\n".join(problems))


def build_loss(
    config: Mapping[str, Any], prepared: Prepared, part: Holdout, alias: str | None = None
) -> torch.nn.Module:
    """The loss, with `class_weights` that are named (see `BALANCES`) replaced by numbers from the trained items.

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
            exclusive = prepared.outputs[0].meaning.exclusive
            term["class_weights"] = balanced_class_weights(total, None if exclusive else rows, BALANCES[name])
    return make(loss, alias)


def build_module(
    config: Mapping[str, Any],
    prepared: Prepared,
    items: TrainingItems,
    network: Normalized,
    part: Holdout,
    steps_per_epoch: int,
    alias: str | None = None,
) -> TrainingModule:
    """The Lightning module that the configuration names."""
    rate = scale_rate(config["optimizer"]["lr"], config["batch_size"], config.get("lr_batch_size"))
    phases = build_phases(config["phases"])
    schedulers = {phase.name: make(phase.scheduler or config["scheduler"], alias) for phase in phases}
    fields = sample_fields(prepared)
    mixes = {}
    for phase in phases:
        augmentation = phase_augmentation(config, phase)
        mixes[phase.name] = Mix(augmentation["mixup"], augmentation["cutmix"], fields, list(items.targets))
    setup = Setup(
        network=network,
        loss=build_loss(config, prepared, part, alias),
        make_optimizer=partial(build_optimizer, **config["optimizer"] | {"lr": rate}),
        schedule=Schedule(phases, schedulers, steps_per_epoch),
        seed=config["seed"],
        mixes=mixes,
        targets=items.targets,
    )
    module = make(config["module"], alias, setup=setup)
    if not isinstance(module, TrainingModule):
        raise Refusal(
            f"module._target_ is {config['module']['_target_']}, which is no subclass of "
            "foldwise.models.module.TrainingModule"
        )
    return module


def build_trainer(config: Mapping[str, Any], rank: Rank, epochs: int, **arguments: Any) -> pl.Trainer:
    """Lightning's Trainer from configs/trainer, for this process.

    Raises:
        Refusal: a setting that it does not take.
    """
    settings = dict(config["trainer"]) | {"devices": rank.devices, "num_nodes": rank.nodes}
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


def inspect_config(
    config: Mapping[str, Any], prepared: Prepared, alias: str | None
) -> tuple[dict[str, Any], list[PhasePreview]]:
    """Build everything once and try a batch, so that a mistake is found before a run exists.

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
        make(callback, alias)
    part, rows = Holdout(()), np.arange(len(prepared.items))
    state = fit_reader(prepared, rows)
    spec = build_spec(config, prepared, state, alias)
    for output in prepared.outputs:
        metric = config["outputs"][output.name]["metric"] if output.name else config["metric"]
        build_metric(metric, output.task, output.columns, prepared.tables[output.target], alias)
    network = build_network(config, spec, alias)
    items = training_items(prepared, rows, state)
    build_sampling(config, alias).start(items.table.target, items.table.weights)
    plain = {"sampling": "shuffle", "workers": 0, "pseudo": None}
    loader, _ = training_loader({**config, "data": {**config["data"], **plain}}, prepared, items, Rank(), alias)
    module = build_module(config, prepared, items, network, part, steps_per_epoch=1, alias=alias)
    try_batch(config, module, loader.dataset, prepared.outputs)  # type: ignore[arg-type]  # an ItemDataset
    optimizer = module.make_optimizer(network)
    if config.get("lr_batch_size"):
        print(
            f"optimizer.lr={config['optimizer']['lr']:g} is for {config['lr_batch_size']} images a step; "
            f"for batch_size={config['batch_size']} it is {optimizer.defaults['lr']:g}",
            flush=True,
        )
    previews = preview_phases(config, module, [group["lr"] for group in optimizer.param_groups])
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    kind = "gpu" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    return {"accelerator": kind, "devices": gpus or [kind], "cpus": os.cpu_count()}, previews


def _plain(value: Any) -> Any:
    """A copy of nested mappings and lists that can be changed."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
