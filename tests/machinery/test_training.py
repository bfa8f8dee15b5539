"""Training for real, on tiny pictures: what a run leaves, and that a resume and the workers change nothing."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from stopping import Stop, watched
from tiny import new_network, open_tiny, prepare_tiny, tiny_config, train_folds, train_here, train_scored

from foldwise.config import followers
from foldwise.errors import Refusal
from foldwise.predictions.store import read_predictions
from foldwise.processes.group import Rank
from foldwise.training.build import build_spec, build_trainer
from foldwise.training.dry_run import inspect_config
from foldwise.training.plan import choose_parts


def weights(run, fold=0):
    return load_file(run / f"fold{fold}" / "model" / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_leaves_everything_and_a_second_one_changes_nothing(task, data, tmp_path):
    config = tiny_config(data, task)
    run = train_here(config, tmp_path)
    for name in ("config.yaml", "identity.json", "environment.json", "metrics.json", "report.html", "oof"):
        assert (run / name).exists(), name
    oof = read_predictions(run / "oof")
    assert sorted(oof.frame["id"]) == sorted(f"row{row}" for row in range(24))  # each exactly once
    prepared = prepare_tiny(config)
    assert all(prepared.folds[id] == fold for id, fold in zip(oof.frame["id"], oof.frame["fold"], strict=True))
    assert oof.header.folds_hash == prepared.folds_hash
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert train_here(config, tmp_path) == run
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


RESUMED = [
    "epochs=3",
    "fold=0",
    "phases=frozen_warmup",
    "phases.train.share=2",
    "ema=0.9",
    "+model.options.drop_rate=0.3",
    "augmentation=light",
    "mixing.mixup=0.4",
    "data.sampling=balanced",
]
SCHEDULERS = {
    "cosine": ["scheduler=cosine"],
    "plateau": ["scheduler=plateau", "scheduler.patience=0", "scheduler.min_delta=10"],
}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """By scheduler: a configuration, and a run of it that was never stopped."""
    configs = {name: tiny_config(data, "multiclass", *RESUMED, *scheduler) for name, scheduler in SCHEDULERS.items()}
    return {name: (config, train_folds(config, tmp_path_factory.mktemp(name))) for name, config in configs.items()}


# Before there is a checkpoint, right after the phase changed, and in the last step of all.
@pytest.mark.parametrize(
    ("scheduler", "stop"), [("cosine", (0, 1)), ("cosine", (1, 0)), ("cosine", (2, 2)), ("plateau", (2, 2))]
)
def test_a_resumed_run_equals_one_never_stopped(scheduler, stop, whole, tmp_path):
    config, run = whole[scheduler]
    with watched(Stop(*stop)), pytest.raises(OSError, match="killed"):
        train_folds(config, tmp_path)
    torch.manual_seed(123)  # whatever the state of the world is at a resume
    resumed = train_folds(config, tmp_path)
    assert resumed.name == run.name
    assert same(weights(run), weights(resumed))
    histories = [pd.read_csv(each / "fold0" / "history.csv").drop(columns="seconds") for each in (run, resumed)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    shards = [read_predictions(each / "fold0" / "oof-0-of-1").frame for each in (run, resumed)]
    pd.testing.assert_frame_equal(*shards, check_exact=True)


def test_workers_do_not_change_the_oof(data, tmp_path):
    files = []
    for workers in (0, 4):
        config = tiny_config(data, "multiclass", f"data.workers={workers}", "augmentation=light", "fold=0", "epochs=1")
        run = train_folds(config, tmp_path / str(workers))
        files.append((run / "fold0/oof-0-of-1/predictions.parquet").read_bytes())
    assert files[0] == files[1]


def test_runs_differ_by_what_matters(data, tmp_path):
    names = [
        open_tiny(tiny_config(data, "multiclass", *extra), tmp_path).name
        for extra in ([], ["logger=csv"], ["data.workers=1"], ["fold=1"], ["optimizer.lr=0.002"])
    ]
    assert len(set(names[:4])) == 1
    assert names[4] != names[0]


def test_a_chosen_run_resumes_with_its_own_config(data, tmp_path):
    """`run=` with another command line, whose data and metric must take no part."""
    run = train_folds(tiny_config(data, "multiclass", "fold=0", "metric=macro_f1", "epochs=1"), tmp_path)
    other = tiny_config(data, "multilabel", f"run={run}", "epochs=3", "data.root=/nowhere")
    assert train_here(other, tmp_path) == run
    assert {json.loads((run / f"fold{fold}/metrics.json").read_text())["epochs"] for fold in (0, 1)} == {1}
    assert json.loads((run / "metrics.json").read_text())["metric"] == "MacroF1"
    assert read_predictions(run / "oof").header.task == "multiclass"


def test_what_is_frozen_stays(data, tmp_path):
    """In a phase that trains the head, no other weight moves and no batch norm thaws."""
    config = tiny_config(data, "multiclass", "fold=0", "epochs=1", "phases=frozen_warmup", "phases.train.share=0")
    trained = weights(train_folds(config, tmp_path))
    initial = new_network(config).net
    head = {"net.fc.weight", "net.fc.bias"}
    moved = {key for key, value in initial.state_dict().items() if not torch.equal(value, trained[key])}
    assert moved == head


def test_everything_trains_in_the_last_phase(data, tmp_path):
    config = tiny_config(data, "multiclass", "fold=0", "epochs=2", "phases=frozen_warmup")
    run = train_folds(config, tmp_path)
    initial = new_network(config).net.state_dict()
    still = [key for key, value in weights(run).items() if torch.equal(initial[key], value)]
    assert still == []


def test_ema_is_scored_and_differs_from_the_last_weights(data, tmp_path):
    config = tiny_config(data, "multiclass", "fold=0", "ema=0.9")
    run = train_folds(config, tmp_path)
    checkpoint = torch.load(run / "fold0" / "last.ckpt", weights_only=True)  # tensors and plain values, nothing else
    assert checkpoint["epoch"] == 1
    last = checkpoint["state_dict"]
    averaged = weights(run)
    differs = [key for key in averaged if not torch.equal(averaged[key], last[f"network.net.{key}"])]
    assert any(key.endswith("weight") for key in differs)
    assert any("running_mean" in key for key in differs)  # estimated for the averaged weights


def test_ema_keeps_frozen_batch_norms(data, tmp_path):
    choices = ["ema=0.999", "phases.train.freeze_bn=true"]
    run = train_folds(tiny_config(data, "multiclass", "fold=0", "epochs=2", "phases=frozen_warmup", *choices), tmp_path)
    means = [value for key, value in weights(run).items() if "running_mean" in key]
    assert means and not any(value.any() for value in means)  # as they were at first


def test_labels_decide_the_score(data, tmp_path):
    """A pipeline that mixes rows up cannot learn; this one reaches a score that chance does not."""
    config = tiny_config(data, "multiclass", "fold=0", "epochs=15", "optimizer.lr=0.003", "augmentation=none")
    run = train_folds(config, tmp_path)
    assert json.loads((run / "fold0" / "metrics.json").read_text())["score"] > 0.8


def number(frame):
    """Of each row, as its id has it."""
    return frame["id"].str.removeprefix("row").astype(int)


def test_always_train_rows_are_trained_and_never_scored(data, tmp_path):
    frame = pd.read_csv(data / "train.csv").assign(part=lambda frame: np.where(number(frame) < 12, -1, 0))
    frame.to_csv(tmp_path / "given.csv", index=False)
    config = tiny_config(
        data,
        "multiclass",
        f"data.table={tmp_path}/given.csv",
        f"data.prepared={tmp_path}/prepared",
        "data.columns.fold=part",
        "data.folds=1",
        "epochs=1",
    )
    run = train_scored(config, tmp_path / "runs")
    assert set(read_predictions(run / "oof").frame["id"]) == {f"row{row}" for row in range(12, 24)}


def test_units_are_scored_once(data, tmp_path):
    frame = pd.read_csv(data / "train.csv")
    frame["thing"] = [f"t{row % 3}{row // 6}" for row in number(frame)]  # two pictures of one class each
    frame.to_csv(tmp_path / "units.csv", index=False)
    config = tiny_config(
        data,
        "multiclass",
        f"data.table={tmp_path}/units.csv",
        f"data.prepared={tmp_path}/prepared",
        "data.columns.unit=thing",
        "epochs=1",
    )
    run = train_scored(config, tmp_path / "runs")
    oof = read_predictions(run / "oof")
    merged = oof.frame.merge(frame[["id", "thing", "label"]], on="id")
    by_thing = merged.groupby("thing").agg({**dict.fromkeys(oof.columns, "mean"), "label": "first"})
    correct = by_thing[oof.columns].idxmax(axis=1) == by_thing["label"]
    assert json.loads((run / "metrics.json").read_text())["overall"] == pytest.approx(correct.mean())


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_state(data, tmp_path):
    config = tiny_config(data, "multiclass", "fold=0", "optimizer.opt=sgd", "optimizer.lr=1e30", "scheduler=constant")
    with pytest.raises(FloatingPointError, match="optimizer.lr"):
        train_folds(config, tmp_path)
    run = next(tmp_path.iterdir())
    assert not (run / "fold0" / "metrics.json").exists() and not (run / "fold0" / "model").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=resnet81", "resnet18"),
        ("optimizer.opt=adamv", "adamw"),
        ("metric=mean_iou", "accuracy"),
        ("batch_size=100", "batch_size"),
        ("data.fit=pad", "stretch, crop"),
        ("fold=7", "the folds are"),
        ("phases.train.trainable=tail", "all, head"),
    ],
)
def test_mistakes_say_what_to_do(override, message, data, tmp_path):
    with pytest.raises(Refusal, match=message):
        config = tiny_config(data, "multiclass", override)
        prepared = prepare_tiny(config)
        inspect_config(config, prepared)
        choose_parts(config["fold"], followers(config), prepared)


@pytest.mark.parametrize("setting", ["precision=abc", "accelerator=abc", "gradient_clip_val=abc"])
def test_a_setting_that_lightning_refuses_is_named(setting, data):
    config = tiny_config(data, "multiclass", f"trainer.{setting}")
    with pytest.raises(Refusal, match="does not take the settings of trainer.*abc"):
        build_trainer(config, Rank(), 1)


def test_a_scaled_learning_rate_is_printed(data, capsys):
    config = tiny_config(data, "multiclass", "optimizer.lr=0.001", "lr_batch_size=16")
    prepared = prepare_tiny(config)
    inspect_config(config, prepared)
    assert "optimizer.lr=0.001 is for 16 images a step; for batch_size=4 it is 0.00025" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("multiclass", "tiny_unet", "the network gives 'logits' in the shape (2, 3, 32, 32), and the task multiclass "
         "needs (B, 3): add task=segmentation metric=mean_iou, or choose another model"),
        ("segmentation", "tiny", "the network gives 'logits' in the shape (2, 4), and the task segmentation needs "
         "(B, 4, H, W): add task=multiclass metric=accuracy, or choose another model"),
    ],
)  # fmt: skip
def test_a_network_of_another_task_is_refused_before_there_is_a_run(task, model, message, data):
    config = tiny_config(data, task, f"model={model}")
    prepared = prepare_tiny(config)
    with pytest.raises(Refusal) as error:
        inspect_config(config, prepared)
    assert str(error.value) == message


def test_a_sampling_that_does_not_fit_is_refused_before_there_is_a_run(data):
    for sampling, message in (
        ("balanced", "data.sampling=balanced is for classification"),
        ({"_target_": "foldwise.data.sampling.Pool", "rows": [0]}, "Pool is not a subclass of"),
        (
            {"_target_": "foldwise.data.sampling.Balanced", "floor": 1},
            "data.sampling._target_: .* no argument floor",
        ),
    ):
        config = tiny_config(data, "segmentation")
        config["data"]["sampling"] = sampling
        prepared = prepare_tiny(config)
        with pytest.raises(Refusal, match=message):
            inspect_config(config, prepared)


def test_a_setting_that_the_network_does_not_take_is_refused(data):
    config = tiny_config(data, "multiclass", "+model.nmae=resnet18")
    prepared = prepare_tiny(config)
    with pytest.raises(Refusal, match=r"has no argument nmae; did you mean name\?"):
        inspect_config(config, prepared)


def test_masks_trained_on_crops_are_validated_and_predicted_as_whole_images(data, tmp_path):
    """Tiles of 16 pixels on pictures of 32: the last validation is measured on the maps that are written."""
    config = tiny_config(data, "segmentation", "data.fit=tiles", "data.image_size=16", "fold=0", "optimizer.lr=0.01")
    run = train_folds(config, tmp_path)
    oof = read_predictions(run / "fold0" / "oof-0-of-1")
    assert set(zip(oof.frame["height"], oof.frame["width"], strict=True)) == {(32, 32)}
    history = pd.read_csv(run / "fold0" / "history.csv")
    score = json.loads((run / "fold0" / "metrics.json").read_text())["score"]
    assert history["score"].iat[-1] == pytest.approx(score, abs=0.01)  # maps are kept in 8 bits
    with pytest.raises(Refusal, match="tiles predicts without TTA: choose tta=none"):
        build_spec(tiny_config(data, "segmentation", "data.fit=tiles", "tta=flips"), prepare_tiny(config), {})
