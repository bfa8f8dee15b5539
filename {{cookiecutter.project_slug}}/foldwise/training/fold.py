"""Trains the model of one fold: one Trainer, one fit, then its weights and its out-of-fold predictions.

It runs in a process of its own (under DDP in several) and leaves in `<run>/fold<k>/` (or another, see data/holdout.py):

    last.ckpt         the state after the newest epoch, for a resume
    history.csv       the figures of each epoch
    model/            weights and model.json: all that inference needs
    snapshots/<name>/ the same for each snapshot; where there are some, they predict and not model/
    oof-<r>-of-<n>/   predictions of rank r's share of the held-out rows
"""

import copy
import logging
import shutil
import sys
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
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
from foldwise.data.fields import seen_spatial
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared, prepare
from foldwise.data.sampling import EpochSampler, sample_seed
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model, find_models, load_state, save_model
from foldwise.models.normalized import Normalized
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.schema import Header
from foldwise.predictions.sources import output_folder, source_name
from foldwise.predictions.writers import PredictionWriter
from foldwise.processes.exits import leave_on_signals
from foldwise.processes.group import Rank
from foldwise.training.build import build_module, build_network, build_spec, build_trainer, fit_reader
from foldwise.training.checkpoints import LastCheckpoint, find_checkpoint, remove_leftovers
from foldwise.training.divergence import Divergence
from foldwise.training.ema import EMA, reestimate_batch_norm
from foldwise.training.loaders import evaluation_loader, make_reader, training_items, training_loader
from foldwise.training.observation import Observation
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
warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # the figures of an epoch are gathered before they are logged


def train_fold(run: Path, part: Holdout, config: Mapping[str, Any], rank: Rank) -> None:
    """Train a model of the run in the folder `run`, or resume where there is a last.ckpt.

    The code of the owner's that it reaches is the run's copy.

    Args:
        part: what it is trained without, and scored on: as a rule a fold.
        config: resolved, plain values, which train.py has checked.
    """
    torch.set_num_threads(config["threads"] or max(1, torch.get_num_threads() // rank.sharing))
    folder = run / part.name
    folder.mkdir(exist_ok=True)
    if rank.index == 0:
        remove_leftovers(folder, rank.world_size)
    else:
        warnings.simplefilter("ignore")  # those of one rank are enough
    alias = run_code(run).alias
    prepared = prepare(config, alias, make_folds=False, progress=False)
    folds = prepared.fold_of_items

    pl.seed_everything(initial_seed(config["seed"], part), verbose=False)
    trained = part.trained(folds)
    state = fit_reader(prepared, trained)
    spec = build_spec(config, prepared, state, alias)
    network = build_network(config, spec, alias)
    pseudo = prepared.pseudo.of(part.fold) if prepared.pseudo else None
    items = training_items(prepared, trained, state, pseudo)
    loader, steps = training_loader(config, prepared, items, rank, alias)
    sampler = cast(EpochSampler, loader.sampler)
    module = build_module(config, prepared, items, network, part, steps, alias)
    rows = part.held(folds)[rank.index :: rank.world_size]  # each item in one rank, none repeated
    metric = build_metric(config["metric"], config["task"], spec.classes, prepared.table, alias)
    extra = [make(callback, alias) for callback in config["callbacks"].values()]
    ema = next((callback for callback in extra if isinstance(callback, EMA)), None)
    every = config["validate_every"] if part.folds else 0
    tile = spec.image_size if spec.fit == "tiles" else None
    held_out = evaluation_loader(config, prepared, make_reader(prepared, state), rows, rank)
    spatial = seen_spatial(prepared.samples.fields)
    validation = Validation(held_out, spec.outputs, spatial, prepared.table, metric, every, ema, tile)
    snapshots = Snapshots(folder, spec, validation, metric.greater_is_better, config["top_k"])
    progress = Progress(folder, part.title, validation, type(metric).__name__)
    # Lightning sets handlers of its own before training begins; under DDP, its one for SIGTERM waits for other ranks.
    signals = LambdaCallback(on_train_start=lambda *_: leave_on_signals())
    trainer = build_trainer(
        config,
        rank,
        epochs=module.schedule.epochs,
        default_root_dir=folder,
        logger=rank.index == 0 and make(config["logger"], alias, run=run.name, part=part.name, folder=folder),
        callbacks=[
            signals,
            Divergence(part.title),
            Observation(sampler.real),
            *extra,
            validation,
            snapshots,
            progress,
            LastCheckpoint(folder),
        ],
        enable_progress_bar=sys.stderr.isatty(),
    )
    if config["model"]["channels_last"]:
        network.to(memory_format=torch.channels_last)
    if config["model"]["compile"]:
        for part_of_it in network.net.compiled():
            part_of_it.compile()  # in place: torch.compile(net) would rename every parameter
    checkpoint, epochs = find_checkpoint(folder)
    # Lightning lets the loader's workers begin before it tells the sampler which epoch it resumes with.
    sampler.set_epoch(epochs)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt

    device = trainer.strategy.root_device
    scored = (ema.network if ema else network).to(device).eval()
    if ema:
        sampler.set_epoch(module.schedule.epochs)
        network.train()
        frozen = [name for name, inner in network.net.named_modules() if not inner.training]
        reestimate_batch_norm(scored, loader, device, frozen)
    if trainer.is_global_zero:
        save_model(folder / "model", scored, spec)
    trainer.strategy.barrier()  # the models are there for all ranks
    networks = load_snapshots(as_saved(scored), folder)
    models = {name: Model(net, prepared.samples, spec) for name, net in networks.items()}
    predict_held_out(config, prepared, models, rows, device, run, part, oof_name(rank))
    check_covered(alias)


def as_saved(network: Normalized) -> Normalized:
    """The network as its file gives it back, so that it predicts the same: without what only training needs."""
    network.net.drop_auxiliary()
    for module in network.modules():
        module._compiled_call_impl = None
    with torch.no_grad():
        for tensor in network.state_dict(keep_vars=True).values():
            # Kernels of one pixel keep the strides of channels_last under `.to`, and others kernels then compute them.
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return network


def load_snapshots(network: Normalized, fold: Path) -> dict[str, Normalized]:
    """The networks of a finished fold by the names of its snapshots, as `find_models` finds them.

    Args:
        network: one with the architecture of all, as `as_saved` gives it; where there are no snapshots, it is the one.
    """
    paths = find_models(fold)
    if list(paths) == ["last"]:
        return {"last": network}
    networks = {}
    for name, path in paths.items():
        networks[name] = copy.deepcopy(network)
        networks[name].net.load_state_dict(load_state(path))
    return networks


def initial_seed(seed: int, part: Holdout) -> int:
    """From what the initial weights are drawn: other ones for each model of a run."""
    return sample_seed(seed, part.fold, "initial weights" + "".join(f" and {fold}" for fold in part.folds[1:]))


def oof_name(rank: Rank) -> str:
    """The folder of one rank's out-of-fold predictions."""
    return f"oof-{rank.index}-of-{rank.world_size}"


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
) -> None:
    """Predict items with the networks of a fold, as predict.py would, into new prediction folders, one an output.

    Args:
        models: by the names of the snapshots.
        run: the folders are `<run>/<part>/<name>`, of further outputs in `<run>/outputs/<output>`; where they exist,
            nothing is done.
        created_by: the command.
    """
    outputs = prepared.outputs
    folders = [output_folder(run, output) / part.name / name for output in outputs]
    if folders[0].exists() or not len(rows):
        return
    data = config["data"]
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
        for output, folder in zip(outputs, folders, strict=True):  # the main output's is closed last: all is done then
            shutil.rmtree(folder, ignore_errors=True)
            header = Header(
                split="oof",
                task=output.task,
                columns=output.columns,
                run=source_name(run, output),
                folds_hash=prepared.folds_hash,
                tta=tta.describe(predictor.tiles),
                created_by=created_by,
            )
            writers.append(stack.enter_context(PredictionWriter(folder, header)))
        for index, values in predictions:
            id = ids[rows[index]]
            for output, writer in zip(outputs, writers, strict=True):
                for snapshot, views in zip(models, values[output.name], strict=True):
                    writer.add(id, prepared.folds[id], snapshot, tta.name, views[0])
