"""Trains the model of one fold: one Trainer, one fit, then its weights and its out-of-fold predictions.

Runs in one process per device, which write to `<run>/fold<k>/` (other names: data/holdout.py):

    last.ckpt         state after the newest epoch, to resume from
    history.csv       losses, score and learning rate of each epoch
    model/            weights and model.json: all that inference needs
    snapshots/<name>/ the same for each snapshot; if there are any, they predict instead of model/
    oof-<r>-of-<n>/   rank r's predictions of its held-out rows
    gold-<r>-of-<n>/  the same of gold rows
"""

import shutil
import sys
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from tqdm import tqdm

from foldwise.code.alias import check_covered
from foldwise.code.build import make
from foldwise.code.runs import run_code
from foldwise.data.augmentation import sample_seed
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared
from foldwise.data.sampling import EpochSampler
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model, find_models, load_model, save_model
from foldwise.predictions.schema import Header
from foldwise.predictions.sources import output_folder, source_name
from foldwise.predictions.writers import PredictionWriter
from foldwise.processes.exits import leave_on_signals
from foldwise.processes.group import Rank
from foldwise.training.build import build_trainer, build_training
from foldwise.training.checkpoints import LastCheckpoint, find_checkpoint, remove_leftovers
from foldwise.training.ema import reestimate_batch_norm
from foldwise.training.epoch_losses import EpochLosses
from foldwise.training.loaders import evaluation_loader
from foldwise.training.progress import Progress
from foldwise.training.relabelling import Relabelling
from foldwise.training.snapshots import Snapshots
from foldwise.training.targets import transform_targets
from foldwise.training.validation import Validation, build_metrics

warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")  # a deprecation of torch inside it
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # data.workers is up to the user
warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # train.py starts the ranks itself
warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # values are gathered before they are logged


def train_fold(run: Path, part: Holdout, config: Mapping[str, Any], prepared: Prepared, rank: Rank) -> None:
    """Train one model with the run's copy of the code, resuming from last.ckpt if it exists."""
    torch.set_num_threads(config["threads"] or max(1, torch.get_num_threads() // rank.sharing))
    folder = run / part.name
    folder.mkdir(exist_ok=True)
    if rank.index == 0:
        remove_leftovers(folder, rank.world_size)
    else:
        warnings.simplefilter("ignore")  # one rank's warnings are enough
    alias = run_code(run).alias
    pl.seed_everything(initial_seed(config["seed"], part), verbose=False)
    spec, network, module, loader, ema, outputs, joined = build_training(config, prepared, part, rank)
    sampler = cast(EpochSampler, loader.sampler)
    rows, predicted = (
        each[rank.index :: rank.world_size]  # each item on exactly one rank
        for each in (part.held(prepared.fold_of_items), prepared.predicted(part))
    )
    held_out = evaluation_loader(config, transform_targets(prepared, outputs), spec.state, rows, rank)
    every = config["validate_every"] if part.folds else 0
    validation = Validation(held_out, spec, outputs, prepared, build_metrics(config, prepared), every, ema)
    losses = EpochLosses(part.title, sampler.real)
    relabelling = []
    if prepared.unlabelled:
        load = partial(evaluation_loader, config, joined, spec.state, rank=rank)
        relabelling = [Relabelling(len(prepared.table), len(joined.table), outputs[0], sampler, load, ema)]
    trainer = build_trainer(
        config,
        rank,
        epochs=module.schedule.epochs,
        default_root_dir=folder,
        logger=rank.index == 0 and make(config["logger"], alias, run=run.name, part=part.name, folder=folder),
        callbacks=[
            # Replaces Lightning's handlers: under DDP, its SIGTERM handler waits for the other ranks.
            LambdaCallback(on_train_start=lambda *_: leave_on_signals()),
            losses,
            *([ema] if ema else []),
            *(make(callback, alias) for callback in config["callbacks"].values()),
            validation,
            Snapshots(folder, spec, validation, config["top_k"]),
            *relabelling,  # after Snapshots, which restarts a phase from the best weights
            Progress(folder, part.title, losses, validation),
            LastCheckpoint(folder),
        ],
        enable_progress_bar=sys.stderr.isatty(),
    )
    if config["model"]["compile"]:
        for inner in network.net.compiled():
            inner.compile()  # in place: torch.compile(net) would rename every parameter
    checkpoint, epochs = find_checkpoint(folder)
    # Lightning starts the loader's workers before it sets the sampler's epoch.
    sampler.set_epoch(epochs)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt

    device, scored = trainer.strategy.root_device, network
    if ema:
        scored = ema.network.to(device)
        sampler.set_epoch(module.schedule.epochs)
        network.train()
        frozen = [name for name, inner in network.net.named_modules() if not inner.training]
        reestimate_batch_norm(scored.eval(), loader, device, frozen)
    if trainer.is_global_zero:
        save_model(folder / "model", scored, spec)
    trainer.strategy.barrier()  # every rank loads the saved model
    models = {name: load_model(path) for name, path in find_models(folder).items()}
    shard = f"{rank.index}-of-{rank.world_size}"
    if prepared.gold and len(part.folds) < 2:
        gold = prepared.gold.predicted(Holdout((0,)))[rank.index :: rank.world_size]
        predict_held_out(config, prepared, models, gold, device, run, part, f"gold-{shard}", split="test")
    predict_held_out(config, prepared, models, predicted, device, run, part, f"oof-{shard}")
    check_covered(alias)


def initial_seed(seed: int, part: Holdout) -> int:
    """Seed of the initial weights, different for each model of a run."""
    return sample_seed(seed, part.fold, "initial weights" + "".join(f" and {fold}" for fold in part.folds[1:]))


def predict_held_out(
    config: Mapping[str, Any],
    prepared: Prepared,
    models: Mapping[str, Model],
    rows: np.ndarray,
    device: torch.device,
    run: Path,
    part: Holdout,
    name: str,
    created_by: str = "train.py",
    split: str = "oof",
) -> None:
    """Predict items with a fold's networks as predict.py would, and write one prediction folder per output.

    The folders are `<run>/<part>/<name>`, for further outputs in `<run>/outputs/<output>`. Does nothing if the first
    exists.

    Args:
        models: by snapshot name.
        split: "test" for gold rows, which are in no fold and get that of the model.
    """
    outputs = prepared.outputs
    folders = [output_folder(run, output) / part.name / name for output in outputs]
    if folders[0].exists() or not len(rows):
        return
    data = config["data"]
    if prepared.features:
        models = {name: replace(model, samples=prepared.reader) for name, model in models.items()}
    tta = TTA.from_config(config["tta"])
    predictor = Predictor(list(models.values()), tta, device, batch_size=config["batch_size"], workers=data["workers"])
    ids = prepared.table.ids
    predictions = tqdm(
        predictor.predict(prepared.source, rows.tolist()),
        desc=f"{part.name}  out-of-fold",
        total=len(rows),
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    with ExitStack() as stack:
        writers = []
        for output, folder in zip(outputs, folders, strict=True):  # main output closes last: done
            shutil.rmtree(folder, ignore_errors=True)
            header = Header(
                split=split,
                task=output.task,
                columns=output.stored,
                run=source_name(run, output),
                folds_hash=prepared.folds_hash,
                tta=tta.describe(predictor.tiles),
                created_by=created_by,
            )
            writers.append(stack.enter_context(PredictionWriter(folder, header)))
        for index, values in predictions:
            id = ids[rows[index]]
            fold = part.fold if split == "test" or outputs[0].meaning.kind == "vectors" else prepared.folds[id]
            for output, writer in zip(outputs, writers, strict=True):
                for snapshot, views in zip(models, values[output.name], strict=True):
                    writer.add(id, fold, snapshot, tta.name, views[0])
