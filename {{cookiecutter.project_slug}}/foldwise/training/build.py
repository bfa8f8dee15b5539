"""Builds network, module, loader and trainer from a configuration and the prepared data."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from foldwise.code.build import make, resolve
from foldwise.code.runs import module_target
from foldwise.data.holdout import Holdout
from foldwise.data.images import FITS, image_hw
from foldwise.data.orientation import oriented
from foldwise.data.prepare import Prepared
from foldwise.data.samples import Rows
from foldwise.errors import Refusal
from foldwise.inference.spec import ModelSpec
from foldwise.inference.tta import TTA
from foldwise.inference.weights import check_frames, check_margins, normalize
from foldwise.models.features import EncodersNetwork
from foldwise.models.mixing import Mix
from foldwise.models.module import Setup, TrainingModule
from foldwise.models.network import Network
from foldwise.models.networks import ImageNetwork, choose_normalization
from foldwise.models.normalized import Normalized, enable_gradient_checkpointing
from foldwise.models.optimization import build_optimizer, scale_lr
from foldwise.models.pooled import PooledNetwork
from foldwise.processes.group import Rank
from foldwise.schedule.phases import Schedule, build_phases
from foldwise.tasks.outputs import Output
from foldwise.training.build_losses import build_heads, build_loss
from foldwise.training.ema import EMA
from foldwise.training.image_sizes import image_sizes
from foldwise.training.initial import find_initial, load_initial
from foldwise.training.loaders import sample_fields, training_loader, with_pseudo
from foldwise.training.targets import fit_outputs, transform_targets

# Lightning logs the hardware and advertisements in every process.
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)

# Settings of the group `model` that are not arguments of the network.
TRAINING_ONLY = ("_target_", "pretrained", "weights", "channels_last", "compile", "gradient_checkpointing")


class Training(NamedTuple):
    """What trains one model.

    Attributes:
        ema: None: the last weights are scored.
        outputs: all that are trained.
        joined: the data that `loader` reads, pseudo rows included.
    """

    spec: ModelSpec
    network: Normalized
    module: TrainingModule
    loader: DataLoader
    ema: EMA | None
    outputs: tuple[Output, ...]
    joined: Prepared


def build_training(config: Mapping[str, Any], prepared: Prepared, part: Holdout, rank: Rank) -> Training:
    """Build one rank's share of a model's training; raise a Refusal for unusable settings."""
    alias, rows = prepared.alias, part.trained(prepared.fold_of_items)
    with oriented(prepared.source.exif):
        state = prepared.samples.fit(Rows(prepared.source, prepared.samples), [prepared.items[row] for row in rows])
    outputs = fit_outputs(config["data"], prepared, rows)
    spec = replace(build_spec(config, prepared, state), outputs=outputs[: len(prepared.outputs)])
    network = build_network(config, prepared, spec)
    if config["init"]:
        load_initial(network.net, find_initial(Path(config["init"]), prepared.folds_hash, part))
    joined, pseudo = with_pseudo(prepared, part)
    joined = transform_targets(joined, outputs)
    loader, steps_per_epoch = training_loader(config, joined, state, rows, pseudo, rank)
    targets = {name: table.target for name, table in joined.tables.items() if table.target is not None}
    phases = build_phases(config["phases"])
    schedulers = {phase.name: make(phase.scheduler or config["scheduler"], alias) for phase in phases}
    lr = scale_lr(config["optimizer"]["lr"], config["batch_size"], config["lr_batch_size"])
    fields = sample_fields(prepared)
    mixes = {
        phase.name: Mix(**(phase.mixing or config["mixing"]), fields=fields, targets=list(targets)) for phase in phases
    }
    setup = Setup(
        network=network,
        loss=build_loss(config["loss"], prepared, prepared.outputs[0], part),
        make_optimizer=partial(build_optimizer, **config["optimizer"] | {"lr": lr}),
        schedule=Schedule(phases, schedulers, steps_per_epoch),
        seed=config["seed"],
        mixes=mixes,
        targets=targets,
        heads=build_heads(config, prepared, part),
    )
    module = make(config["module"], alias, setup=setup)
    if not isinstance(module, TrainingModule):
        raise Refusal(
            f"module._target_={config['module']['_target_']} is not a subclass of foldwise.models.module.TrainingModule"
        )
    if config["model"]["channels_last"]:
        network.to(memory_format=torch.channels_last)
    ema = None if config["ema"] is None else EMA(network, config["ema"])
    return Training(spec, network, module, loader, ema, outputs, joined)


def build_spec(config: Mapping[str, Any], prepared: Prepared, state: Mapping[str, Any]) -> ModelSpec:
    """The description saved with the model; inference rebuilds the network from it."""
    model, data = config["model"], config["data"]
    maps = [output.meaning.field.spatial for output in prepared.trained]
    if data["fit"] not in FITS or (data["fit"] == "crop" and any(maps)) or (data["fit"] == "tiles" and not all(maps)):
        raise Refusal(
            f"data.fit is {data['fit']!r}; it must be one of {', '.join(FITS)}: stretch or tiles for segmentation, "
            "where every pixel is predicted, otherwise stretch or crop; stretch with outputs of both kinds"
        )
    without_tta = "data.fit=tiles predicts" if data["fit"] == "tiles" else ""
    without_tta = "data.features are predicted out of fold" if prepared.features else without_tta
    tta = TTA.from_config(config["tta"])
    if without_tta and tta.names != ["identity"]:
        raise Refusal(f"{without_tta} without TTA: choose tta=none")
    if tta.frames > 1:
        check_frames(prepared.samples)
    if tta.margins != [None]:
        check_margins(prepared.samples)
    network = {name: value for name, value in model.items() if name not in TRAINING_ONLY and value is not None}
    if prepared.features:
        network["encoders"] = [features.encoder for features in prepared.features]
    images = {}
    for name, image in prepared.statistics["images"].items():
        if prepared.features:  # each encoder normalises
            mean, std = [0.0] * image["channels"], [1.0] * image["channels"]
        else:
            mean, std = choose_normalization(data["normalize"], image, network)
        images[name] = {"scale": image["scale"], "mean": list(mean), "std": list(std)}
    samples = config["samples"]
    owned = any(target.startswith("solution.") for target in (model["_target_"], samples["_target_"]))
    return ModelSpec(
        network={
            "_target_": module_target(model["_target_"]),
            **network,
            "channels": {name: image["channels"] for name, image in prepared.statistics["images"].items()},
            **_network_outputs(config, prepared.outputs),
        },
        samples={**samples, "_target_": module_target(samples["_target_"])},
        state=dict(state),
        outputs=prepared.outputs,
        image_size=image_hw(data["image_size"]),
        fit=data["fit"],
        images=images,
        exif=data.get("exif"),
        code=prepared.alias.rpartition("_")[2] if prepared.alias and owned else None,
    )


def build_network(config: Mapping[str, Any], prepared: Prepared, spec: ModelSpec) -> Normalized:
    """The network on the CPU, with normalisation and initial weights."""
    model = config["model"]
    kind = resolve(spec.network["_target_"], prepared.alias)
    if not (isinstance(kind, type) and issubclass(kind, Network)):
        raise Refusal(f"model._target_={model['_target_']} is not a subclass of foldwise.models.network.Network")
    described = spec.network | _network_outputs(config, prepared.trained)
    if "heads" in described and not issubclass(kind, ImageNetwork | PooledNetwork):
        raise Refusal(
            f"model._target_={model['_target_']} has no built-in heads, which ImageNetwork and PooledNetwork of "
            f"foldwise have: return {', '.join(described['heads'])} in its `forward` and set outputs.<name>.key"
        )
    weights = model["weights"]
    if prepared.features:
        if not issubclass(kind, EncodersNetwork):
            raise Refusal(
                "data.features is for experiment=probe, PooledNetwork, or your own subclass of FeatureNetwork"
            )
        weights = [features.weights for features in prepared.features]
    pretrained = bool(model["pretrained"]) and not config["init"]
    net = make(described, prepared.alias, "model", weights=weights, pretrained=pretrained)
    problems = []
    for key, size in image_sizes(config).items():
        if any(side % net.multiple for side in size):
            up = [-(-side // net.multiple) * net.multiple for side in size]
            problems.append(
                f"{model['name']} needs sizes divisible by {net.multiple}, and {key} is {size[0]} x {size[1]}: "
                f"try {key}=[{up[0]},{up[1]}]"
            )
    if problems:
        raise Refusal("\n".join(problems))
    if model["gradient_checkpointing"]:
        enable_gradient_checkpointing(net)
    return normalize(net, spec)


def _network_outputs(config: Mapping[str, Any], outputs: Sequence[Output]) -> dict[str, Any]:
    """The network's arguments `outputs`, columns by key, and, if there are built-in heads, `heads`."""
    entries = [(output, config["outputs"][output.name]) for output in outputs if output.name]
    heads = {
        output.key: {
            "kind": output.meaning.kind,
            "at": entry["at"],
            "keep": entry["keep"],
            "detach": entry["weight"] == 0,
        }
        for output, entry in entries
        if not entry["key"]
    }
    return {
        "outputs": {output.key: len(output.columns) for output in outputs},
        **({"heads": heads} if heads else {}),
    }


def build_trainer(config: Mapping[str, Any], rank: Rank, epochs: int, **arguments: Any) -> pl.Trainer:
    """Lightning's Trainer for this rank, from the group `trainer`."""
    settings = dict(config["trainer"]) | {"devices": rank.devices, "num_nodes": rank.nodes}
    if settings["strategy"] == "ddp" and any(phase.trainable != "all" for phase in build_phases(config["phases"])):
        # Plain DDP would wait for the gradients of frozen parameters.
        settings["strategy"] = "ddp_find_unused_parameters_true"
    try:
        return pl.Trainer(
            **settings,
            max_epochs=epochs,
            limit_val_batches=0,  # validation is a callback, see training/validation.py
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # EpochSampler splits the rows among the ranks
            enable_model_summary=False,
            **arguments,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise Refusal(f"Lightning does not take the settings of trainer ({error}): {settings}") from error
