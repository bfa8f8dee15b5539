"""Snapshots are taken where the rate is lowest, before the restart; restarts begin from the best weights."""

import json

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from stopping import Stop, watched
from tiny import tiny_config, train_folds, train_scored

from foldwise.models.module import TrainingModule
from foldwise.predictions.store import read_predictions


class Witness(pl.Callback):
    """The weights and the rate after every optimizer step, and the weights at the start of every epoch."""

    def __init__(self):
        self.steps, self.starts = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(self.weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # The scheduler has moved on already: this is the rate that the step was made with.
        rate = pl_module.schedule.factor(trainer.global_step - 1)
        self.steps.append((trainer.current_epoch, rate, self.weights(pl_module)))

    @staticmethod
    def weights(module: TrainingModule):
        return {key: value.clone() for key, value in module.network.net.state_dict().items()}


def train(config, folder, *callbacks):
    with watched(*callbacks):
        return train_folds(config, folder)


def snapshots(run):
    return {
        path.name: load_file(path / "model.safetensors") for path in sorted((run / "fold0" / "snapshots").iterdir())
    }


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def test_a_snapshot_is_the_state_after_the_step_of_the_lowest_rate(data, tmp_path):
    witness = Witness()
    curve = ["scheduler=cosine", "scheduler.warmup=0", "scheduler.floor=0"]
    config = tiny_config(data, "multiclass", "phases=cycles", "epochs=6", "fold=0", *curve)
    run = train(config, tmp_path, witness)
    assert len(witness.steps) == 18  # 3 cycles of 2 epochs of 3 steps
    found = snapshots(run)
    assert list(found) == ["cycle1", "cycle2", "cycle3"]
    for number, saved in enumerate(found.values()):
        cycle = witness.steps[6 * number : 6 * number + 6]
        lowest = min(cycle, key=lambda step: step[1])
        assert lowest is cycle[-1] and lowest[1] == pytest.approx(0, abs=1e-9)
        assert same(saved, lowest[2])
    assert witness.steps[6][1] > 0.1  # the restart


def test_snapshots_are_kept_apart_in_the_oof_and_averaged_in_the_score(data, tmp_path):
    run = train_scored(tiny_config(data, "multiclass", "phases=cycles", "epochs=3", "metric=log_loss"), tmp_path)
    oof = read_predictions(run / "oof")
    assert oof.frame.groupby("id")["snapshot"].agg(sorted).map(tuple).unique().tolist() == [
        ("cycle1", "cycle2", "cycle3")
    ]
    truth = pd.read_csv(data / "train.csv").set_index("id")["label"]
    mean = oof.frame.groupby("id")[oof.columns].mean()
    # The log loss of the mean, which is below the mean of the snapshots' log losses.
    score = -np.log([mean.loc[id, truth[id]] for id in mean.index]).mean()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["overall"] == pytest.approx(score, rel=1e-5) and metrics["chosen_on_own_fold"] is False


BEST = ["phases=best_restarts", "epochs=5", "fold=0", "phases.train.share=3"]


def test_a_restart_begins_from_the_best_weights_so_far(data, tmp_path):
    witness = Witness()
    config = tiny_config(data, "multiclass", *BEST, "metric=log_loss", "optimizer.lr=0.01")
    run = train(config, tmp_path, witness)
    history = pd.read_csv(run / "fold0" / "history.csv")["score"].tolist()
    ends = [[weights for epoch, _, weights in witness.steps if epoch == number][-1] for number in range(5)]
    for start in (3, 4):
        assert same(witness.starts[start], ends[int(np.argmin(history[:start]))])
    assert json.loads((run / "fold0" / "metrics.json").read_text())["chosen_on_own_fold"] is True


def test_a_restart_does_not_go_back_to_where_the_head_alone_was_trained(data, tmp_path):
    witness = Witness()
    again = "+phases.again={share: 1, start: best}"
    phases = ["phases=frozen_warmup", "phases.train.share=2", "phases.train.lr=30", again]
    config = tiny_config(data, "multiclass", *phases, "epochs=4", "fold=0", "metric=log_loss", "optimizer.lr=0.01")
    run = train(config, tmp_path, witness)
    history = pd.read_csv(run / "fold0" / "history.csv")["score"].tolist()
    assert history[0] < min(history[1:3])  # the head alone scored best
    ends = [[weights for epoch, _, weights in witness.steps if epoch == number][-1] for number in range(3)]
    assert same(witness.starts[3], ends[1 + int(np.argmin(history[1:3]))])


def test_the_top_epochs_are_kept(data, tmp_path):
    config = tiny_config(data, "multiclass", "epochs=5", "top_k=2", "fold=0", "metric=log_loss", "optimizer.lr=0.01")
    run = train_folds(config, tmp_path)
    history = pd.read_csv(run / "fold0" / "history.csv").sort_values("score")
    assert list(snapshots(run)) == sorted(f"epoch{epoch:03d}" for epoch in history["epoch"][:2])
    assert json.loads((run / "fold0" / "metrics.json").read_text())["chosen_on_own_fold"] is True


# Stopped before the first restart and after the last, and within a cycle and at its beginning.
STOPS = {
    "best": (BEST, [1, 4]),
    "cycles": (["phases=cycles", "epochs=6", "fold=0", "top_k=2"], [2, 5]),
}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """By name: a configuration, and a run of it that was never stopped."""
    made = {}
    for name, (choices, _) in STOPS.items():
        config = tiny_config(data, "multiclass", *choices, "metric=log_loss", "optimizer.lr=0.01")
        made[name] = config, train_folds(config, tmp_path_factory.mktemp(name))
    return made


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        pytest.param(name, epoch, marks=[pytest.mark.slow] if epoch == epochs[0] else [])
        for name, (_, epochs) in STOPS.items()
        for epoch in epochs
    ],
)
def test_a_resume_takes_the_same_snapshots(name, epoch, whole, tmp_path):
    config, run = whole[name]
    with pytest.raises(OSError, match="killed"):
        train(config, tmp_path, Stop(epoch, 1))
    resumed = train_folds(config, tmp_path)
    first, second = snapshots(run), snapshots(resumed)
    assert first.keys() == second.keys()
    assert all(same(first[name], second[name]) for name in first)
    oof = "fold0/oof-0-of-1/predictions.parquet"
    assert (run / oof).read_bytes() == (resumed / oof).read_bytes()
