"""Trains the model of one fold: one Trainer, one fit, then its weights and its out-of-fold predictions.

It runs in a process of its own (under DDP in several) and leaves in `<run>/fold<k>/` (or another, see data/holdout.py):

    last.ckpt         the state after the newest epoch, for a resume
    history.csv       the figures of each epoch
    model/            weights and model.json: all that inference needs
    snapshots/<name>/ the same for each snapshot; where there are some, they predict and not model/
    oof-<r>-of-<n>/   predictions of rank r's share of the held-out rows
"""

import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from tqdm import tqdm

from foldwise.config import make
from foldwise.data.dataset import sample_seed
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared, prepare
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA
from foldwise.inference.weights import ModelSpec, find_models, load_model, save_model
from foldwise.models.normalized import Normalized
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.schema import Header
from foldwise.predictions.writers import MapWriter, RowWriter
from foldwise.processes.group import Place
from foldwise.processes.signals import leave_on_signals
from foldwise.training.build import (
    build_module,
    build_normalized,
    build_spec,
    build_trainer,
)
from foldwise.training.checkpoints import LastCheckpoint, find_checkpoint, remove_leftovers
from foldwise.training.divergence import Divergence
from foldwise.training.ema import EMA, reestimate_batch_norm
from foldwise.training.loaders import evaluation_loader, training_loader
from foldwise.training.progress import Progress
from foldwise.training.snapshots import Snapshots
from foldwise.training.validation import Validation

# Lightning greets every process with the hardware and advertisements; one fold after another, that is noise.
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")  # a deprecation of torch inside it
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # data.workers is the user's choice
warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # train.py starts the processes of a fold itself
warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # it is not needed for one machine
warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # the figures of an epoch are gathered before they are logged


def train_fold(run: Path, part: Holdout, config: Mapping[str, Any], place: Place) -> None:
    """Train a model of the run in the folder `run`, or go on with it where there is a last.ckpt.

    Args:
        part: what it is trained without, and scored on: as a rule a fold.
        config: resolved, plain values, which train.py has checked.
    """
    torch.set_num_threads(config["threads"] or max(1, torch.get_num_threads() // place.sharing))
    folder = run / part.name
    folder.mkdir(exist_ok=True)
    if place.rank == 0:
        remove_leftovers(folder, place.world)
    else:
        warnings.simplefilter("ignore")  # those of one rank are enough
    prepared = prepare(config["data"], config["task"], config["seed"], make_folds=False, progress=False)
    folds = np.array([prepared.folds[id] for id in prepared.table.ids])

    pl.seed_everything(initial_seed(config["seed"], part), verbose=False)
    spec = build_spec(config, prepared)
    network = build_normalized(config, spec)
    pseudo = prepared.pseudo.of(part.fold) if prepared.pseudo else None
    loader, steps = training_loader(config, prepared, part.trained(folds), place, pseudo)
    module = build_module(config, prepared, network, part, steps)
    rows = part.held(folds)[place.rank :: place.world]  # each row in one rank, none repeated
    metric = build_metric(config["metric"], config["task"], spec.classes)
    extra = [make(callback) for callback in config["callbacks"].values()]
    ema = next((callback for callback in extra if isinstance(callback, EMA)), None)
    every = config["validate_every"] if part.folds else 0
    tile = spec.image_size if spec.fit == "tiles" else None
    held_out = evaluation_loader(config, prepared, rows, place)
    validation = Validation(held_out, prepared.table, metric, every, ema, tile)
    snapshots = Snapshots(folder, spec, validation, metric.greater_is_better, config["top_k"])
    progress = Progress(folder, part.title, validation, type(metric).__name__)
    # Lightning sets handlers of its own before training begins; under DDP, its one for SIGTERM waits for other ranks.
    signals = LambdaCallback(on_train_start=lambda *_: leave_on_signals())
    trainer = build_trainer(
        config,
        place,
        epochs=module.schedule.epochs,
        default_root_dir=folder,
        logger=place.rank == 0 and make(config["logger"], run=run.name, part=part.name, folder=folder),
        callbacks=[signals, Divergence(part.title), *extra, validation, snapshots, progress, LastCheckpoint(folder)],
        enable_progress_bar=sys.stderr.isatty(),
    )
    if config["model"]["channels_last"]:
        network.to(memory_format=torch.channels_last)
    if config["model"]["compile"]:
        network.net.compile()  # in place: torch.compile(net) would rename every parameter
    checkpoint, epochs = find_checkpoint(folder)
    # Lightning lets the loader's workers begin before it tells the sampler which epoch it goes on with.
    loader.sampler.set_epoch(epochs)  # type: ignore[attr-defined]  # an EpochSampler
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt

    device = trainer.strategy.root_device
    scored = (ema.network if ema else network).to(device).eval()
    if ema:
        loader.sampler.set_epoch(module.schedule.epochs)  # type: ignore[attr-defined]  # an EpochSampler
        network.train()
        frozen = [name for name, part in network.net.named_modules() if not part.training]
        reestimate_batch_norm(scored, loader, device, frozen)
    if trainer.is_global_zero:
        save_model(folder / "model", scored.net, spec)
    trainer.strategy.barrier()  # the models are there for all ranks
    networks = {name: load_model(path)[0] for name, path in find_models(folder).items()}
    predict_held_out(config, prepared, networks, spec, rows, device, folder / oof_name(place))


def initial_seed(seed: int, part: Holdout) -> int:
    """From what the initial weights are drawn: other ones for each model of a run."""
    return sample_seed(seed, part.fold, "initial weights" + "".join(f" and {fold}" for fold in part.folds[1:]))


def oof_name(place: Place) -> str:
    """The folder of one rank's out-of-fold predictions."""
    return f"oof-{place.rank}-of-{place.world}"


def predict_held_out(
    config: Mapping[str, Any],
    prepared: Prepared,
    networks: Mapping[str, Normalized],
    spec: ModelSpec,
    rows: np.ndarray,
    device: torch.device,
    folder: Path,
    created_by: str = "train.py",
) -> None:
    """Predict the rows with the networks of a fold, as predict.py would, into a new prediction folder.

    Args:
        networks: by the names of the snapshots.
        folder: `<run>/fold<k>/<any name>`; where it exists, nothing is done.
        created_by: the command.
    """
    if folder.exists() or not len(rows):
        return
    table, data = prepared.table, config["data"]
    tta = TTA.from_config(config["tta"])
    models = [(network, spec) for network in networks.values()]
    predictor = Predictor(models, tta, device, batch_size=config["batch_size"], workers=data["workers"])
    header = Header(
        split="oof",
        task=config["task"],
        columns=spec.classes,
        run=folder.parents[1].name,
        folds_hash=prepared.folds_hash,
        tta={"views": tta.names, "mean": tta.mean, **({"tiles": True} if predictor.tiles else {})},
        created_by=created_by,
    )
    predictions = tqdm(
        predictor.predict([table.image_path(row) for row in rows]),
        desc=f"{folder.parent.name}  out-of-fold",
        total=len(rows),
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    with (MapWriter if config["task"] == "segmentation" else RowWriter)(folder, header) as writer:
        for index, probability in predictions:
            id = table.ids[rows[index]]
            for name, views in zip(networks, probability, strict=True):
                writer.add(id, prepared.folds[id], name, tta.name, views[0])
