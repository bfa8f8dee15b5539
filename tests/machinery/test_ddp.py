"""Two processes (DDP over gloo) against one: the same rows, pixels, weights, figures and out-of-fold predictions.

Equal is what a loss that averages over samples and a network without batch norm give; the weights within what another
order of adding up leaves. What differs by nature is listed in docs/scale.md.
"""

import json
import multiprocessing
from multiprocessing import get_context

import cv2
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from safetensors.torch import load_file
from stopping import watched
from tiny import open_tiny, prepare_tiny, tiny_config, train_folds

from foldwise.config import read_config
from foldwise.data.holdout import Holdout
from foldwise.predictions.store import iter_maps, read_predictions
from foldwise.processes.group import run_processes
from foldwise.training.ema import EMA
from foldwise.training.fold import train_fold

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
# The first backward pass of a process decides whether its forks may have any, see groups.py.
torch.ones(1, requires_grad=True).backward()


class Witness(Checkpoint):
    """Writes down what each process saw, by step and sample a number made of the pixels, and its networks by epoch.

    As a `Checkpoint` it comes after all other callbacks.
    """

    def __init__(self, folder):
        self.folder = folder
        self.lines = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.current_epoch, trainer.global_step
        for row, image in zip(batch["row"].tolist(), batch["image"], strict=True):
            self.lines.append((*step, row, int(image.long().flatten().dot(torch.arange(image.numel())))))

    def on_train_epoch_end(self, trainer, pl_module):
        networks = {"last": pl_module.network}
        for callback in trainer.callbacks:
            if isinstance(callback, EMA):
                networks["average"] = callback.network
        states = {name: network.state_dict() for name, network in networks.items()}
        torch.save((self.lines, states), f"{self.folder}/epoch{trainer.current_epoch}-rank{trainer.global_rank}")


def train(root, folder, task, world, *choices):
    """A run, and by epoch what each rank's `Witness` wrote."""
    seen = folder / "seen"
    seen.mkdir(parents=True)
    config = tiny_config(root, task, *choices, f"trainer={'cpu' if world == 1 else 'ddp_cpu'}")
    with watched(Witness(seen)):
        run = train_folds(config, folder, world)
    ranks = [[torch.load(path) for path in sorted(seen.glob(f"*-rank{rank}"))] for rank in range(world)]
    return run, list(zip(*ranks, strict=True))


def differences(first, second):
    """The largest difference of two states."""
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def history(run):
    return pd.read_csv(next(run.glob("fold*/history.csv"))).drop(columns="seconds")


def assert_equal_trainings(one, two):
    """Samples of each step, weights after each epoch, snapshots and figures."""
    (first, alone), (second, together) = one, two
    for epoch, [((lines, states),), ranks] in enumerate(zip(alone, together, strict=True)):
        shares = [share for share, _ in ranks]
        assert sorted(line for share in shares for line in share) == sorted(lines), f"epoch {epoch}"
        assert len({len(share) for share in shares}) == 1 and all(shares)
        for _, own in ranks:
            for name, state in states.items():
                assert differences(state, own[name]) < 1e-5, f"{name} after epoch {epoch}"
    pd.testing.assert_frame_equal(history(first), history(second), rtol=1e-4)
    models = [sorted(path.relative_to(run) for path in run.rglob("model.safetensors")) for run in (first, second)]
    assert models[0] == models[1]
    for name in models[0]:
        assert differences(load_file(first / name), load_file(second / name)) < 1e-5


def assert_equal_oof(first, second, ids):
    """Each of the ids exactly once, with equal probabilities and an equal score; each process wrote its own."""
    whole, *shards = (read_predictions(path) for run in (first, second) for path in sorted(run.glob("fold*/oof-*")))
    assert len(shards) == min(2, len(ids))
    frame = pd.concat([shard.frame for shard in shards])
    assert sorted(frame["id"][~frame.duplicated(["id", "snapshot"])]) == sorted(whole.frame["id"])
    assert set(frame["id"]) == set(ids) and len(frame) == len(whole.frame)
    if whole.header.task == "segmentation":
        found = {(row.id, row.snapshot): row.probability for shard in shards for row in iter_maps(shard)}
        for row in iter_maps(whole):
            np.testing.assert_allclose(found[row.id, row.snapshot], row.probability, atol=1.01 / 255)
    else:
        key = ["id", "snapshot"]
        pair = [each.sort_values(key, ignore_index=True) for each in (whole.frame, frame)]
        pd.testing.assert_frame_equal(*pair, atol=1e-5)
    scores = [json.loads(next(run.glob("fold*/metrics.json")).read_text())["score"] for run in (first, second)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)


# Everything that has a part in a step or remembers one, with a loss that averages over samples.
AVERAGING = [
    "+model.options.norm_layer=groupnorm1",
    "trainer.accumulate_grad_batches=2",
    "trainer.gradient_clip_val=1.0",
    "optimizer=sgd",
    "optimizer.layer_decay=0.8",
    "phases=gradual",
    "phases.top.share=1",
    "phases.train.share=2",
    "epochs=4",
    "+phases.top.image_size=24",
    "+phases.top.augmentation=flip",
    "+phases.top.scheduler=constant",
    "scheduler=plateau",
    "scheduler.patience=0",
    "scheduler.min_delta=10",
    "ema=0.9",
    "data.sampling=balanced",
    "data.columns.weight=weight",
    "loss.class_weights=[1,2,3]",
    "augmentation=light",
    "metric=log_loss",
    "top_k=1",
    "+phases.train.relabel=1",
    "data.pseudo_share=0.25",
]


def test_two_processes_train_as_one(data, tmp_path):
    """11 held-out rows of 23, and 12 to train on in steps of 4, each of two passes in each process."""
    frame = pd.read_csv(data / "train.csv").assign(weight=np.linspace(1, 2, 24), part=[0, 1] * 12)[:23]
    frame.to_csv(tmp_path / "odd.csv", index=False)
    table = [f"data.table={tmp_path}/odd.csv", f"data.prepared={tmp_path}/prepared", "data.columns.fold=part", "fold=1"]
    one, two = (train(data, tmp_path / str(world), "multiclass", world, *table, *AVERAGING) for world in (1, 2))
    assert_equal_trainings(one, two)
    assert_equal_oof(one[0], two[0], frame["id"][frame["part"] == 1])


def test_two_processes_train_numbers_as_one(data, tmp_path):
    """With numbers that only some rows have."""
    frame = pd.read_csv(data / "train.csv").assign(second=[*range(16), *[np.nan] * 8], part=[0, 1] * 12)[:23]
    frame.to_csv(tmp_path / "odd.csv", index=False)
    table = [f"data.table={tmp_path}/odd.csv", f"data.prepared={tmp_path}/prepared", "data.columns.fold=part", "fold=1"]
    table += ["data.columns.target=[value,second]", "data.transform=log1p", "loss=huber", "loss.target_weights=[1,2]"]
    table += ["+model.options.norm_layer=groupnorm1", "optimizer=sgd"]
    one, two = (train(data, tmp_path / str(world), "regression", world, *table) for world in (1, 2))
    assert_equal_trainings(one, two)
    assert_equal_oof(one[0], two[0], frame["id"][frame["part"] == 1])


def test_two_processes_train_units_as_one(data, tmp_path):
    """Things of one and two pictures with metadata; a rank pads its stacks to its own longest."""
    frame = pd.read_csv(data / "train.csv").assign(row=lambda frame: frame["id"].str[3:].astype(int)).query("row < 20")
    thing = frame["row"] % 3 + 3 * (frame["row"] // 6)  # two pictures of one label, or one
    frame = frame.assign(thing=thing, part=(thing < 3).astype(int), age=frame["row"].where(frame["row"] % 4 > 0))
    frame.to_csv(tmp_path / "things.csv", index=False)
    choices = [f"data.table={tmp_path}/things.csv", f"data.prepared={tmp_path}/prepared", "data.columns.fold=part"]
    choices += ["samples._target_=foldwise.data.units.Units", "+samples.unit=thing", "+samples.numbers=[age]"]
    choices += ["model._target_=foldwise.models.pooled.PooledNetwork", "model.library=null", "+model.numbers=[age]"]
    choices += ["+model.pool=attention"]
    choices += ["+model.options.norm_layer=groupnorm1", "optimizer=sgd", "augmentation=light", "fold=1"]
    one, two = (train(data, tmp_path / str(world), "multiclass", world, *choices) for world in (1, 2))
    assert_equal_trainings(one, two)
    assert_equal_oof(one[0], two[0], ["0", "1", "2"])


@pytest.mark.slow
def test_two_processes_train_masks_as_one(data, tmp_path):
    """With void pixels, restarts from the best weights, and fewer held-out rows than processes."""
    frame = pd.read_csv(data / "train.csv").assign(part=[0, *[-1] * 12, *[1] * 11])
    for row in range(0, 24, 2):
        mask = cv2.imread(str(data / frame["mask"][row]), cv2.IMREAD_UNCHANGED)
        mask[: row + 4] = 255
        frame.loc[row, "mask"] = f"masks/void{row}.png"
        cv2.imwrite(str(data / f"masks/void{row}.png"), mask)
    frame.to_csv(tmp_path / "void.csv", index=False)
    choices = [
        f"data.table={tmp_path}/void.csv",
        f"data.prepared={tmp_path}/prepared",
        "data.columns.fold=part",
        "fold=0",
        "batch_size=8",
        "model=tiny_unet",
        "+model.options.decoder_use_norm=false",
        "+phases.train.freeze_bn=true",
        "+phases.again1.freeze_bn=true",
        "+phases.again2.freeze_bn=true",
        "loss=cross_entropy",
        "loss.class_weights=balanced",
        "optimizer=sgd",
        "phases=best_restarts",
        "phases.train.share=2",
        "epochs=4",
    ]
    one, two = (train(data, tmp_path / str(world), "segmentation", world, *choices) for world in (1, 2))
    assert_equal_trainings(one, two)
    assert_equal_oof(one[0], two[0], frame["id"][:1])


class Stop(pl.Callback):
    """Stands for a kill in the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise SystemExit(9)


@pytest.mark.slow
def test_processes_agree_and_resume_where_they_stopped(data, tmp_path):
    """With what differs from one process: batch norm, dropout, mixup. All processes have one network all the same."""
    choices = [
        "fold=0",
        "ema=0.9",
        "+model.options.drop_rate=0.3",
        "mixing.mixup=0.4",
    ]
    run, epochs = train(data, tmp_path / "whole", "multiclass", 2, *choices)
    for (_, first), (_, second) in epochs:
        assert differences(first["average"], second["average"]) == 0
        # DDP hands out the batch-norm statistics of rank 0 before the next step; until then each has its own.
        weights = [
            {key: value for key, value in each["last"].items() if "running" not in key} for each in (first, second)
        ]
        assert differences(*weights) == 0
    config = json.loads(json.dumps(read_config(run)))
    again = open_tiny(config, tmp_path / "again", world=2)
    with watched(Stop()):
        assert (
            run_processes(get_context("fork"), train_fold, (again, Holdout((0,)), config, prepare_tiny(config)), 2) == 9
        )
    assert train_folds(config, tmp_path / "again", 2) == again
    for name in ("model/model.safetensors", "oof-0-of-2/predictions.parquet", "oof-1-of-2/predictions.parquet"):
        assert (run / "fold0" / name).read_bytes() == (again / "fold0" / name).read_bytes()
    pd.testing.assert_frame_equal(history(run), history(again), check_exact=True)
