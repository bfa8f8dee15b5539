"""What a competition's own classes may do in a training: samplings that observe, buffers, frozen networks, outputs."""

import json
import multiprocessing
import shutil
from collections import Counter
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from stopping import Stop, watched
from tiny import ROOT, make_spec, prepare_tiny, random_model, tiny_config, train_folds, train_here, write_data

from foldwise.data.dataset import ItemDataset
from foldwise.errors import Refusal
from foldwise.models.module import Frozen
from foldwise.models.networks import ImageNetwork
from foldwise.predictions.store import iter_maps, read_predictions
from foldwise.training import build
from foldwise.training.dry_run import inspect_config

# The first backward pass of a process decides whether its forks may have any, see groups.py.
torch.ones(1, requires_grad=True).backward()

OWN = '''
"""Code as an owner writes it."""
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from foldwise.data.sampling import Sampling
from foldwise.models.module import Frozen, TrainingModule
from foldwise.models.network import Network


class Hard(Sampling):
    """Draws items by their last loss."""

    def __init__(self, floor=0.2):
        self.floor = floor

    def start(self, target, weight):
        self.losses = np.ones(len(weight))

    def chances(self, epoch):
        return self.floor + self.losses

    def observe(self, items, values):
        self.losses[items] = values["hardness"]

    def state_dict(self):
        return {"losses": torch.from_numpy(self.losses.copy())}

    def load_state_dict(self, state):
        self.losses = state["losses"].numpy()


class Observed(TrainingModule):
    """Says how hard each sample is, and how sure the network is of all."""

    def losses(self, outputs, batch):
        logits = outputs["logits"].float()
        hardness = cross_entropy(logits, batch["target"], reduction="none")
        return {
            "loss": self.loss(logits, batch["target"], batch["weight"]),
            "certainty": logits.softmax(1).amax(1).mean(),
            "hardness": hardness.detach(),
        }


class Vague(TrainingModule):
    """Gives one number a class, which is neither a scalar nor one number a sample."""

    def losses(self, outputs, batch):
        logits = outputs["logits"]
        return {"loss": self.loss(logits, batch["target"], batch["weight"]), "means": logits.mean(0)}


class Scheduled(TrainingModule):
    """Uses the trainer, all ranks and the logger in its losses."""

    def losses(self, outputs, batch):
        loss = self.loss(outputs["logits"], batch["target"], batch["weight"])
        progress = torch.tensor((self.current_epoch + 1) / self.trainer.max_epochs)
        gathered = torch.as_tensor(self.all_gather(loss.detach())).reshape(self.trainer.world_size)
        self.log("gathered", gathered.mean())
        return {"loss": loss, "progress": progress, "gathered": gathered.mean()}


class Corrected(TrainingModule):
    """Moves the targets of training items towards what the network says of them."""

    def __init__(self, setup):
        super().__init__(setup)
        self.register_buffer("targets", torch.from_numpy(setup.targets["target"]).float().clone())

    def losses(self, outputs, batch):
        if self.training:
            said = outputs["logits"].detach().float().softmax(1)
            self.targets[batch["row"]] = 0.7 * self.targets[batch["row"]] + 0.3 * said
        return {"loss": self.loss(outputs["logits"], self.targets[batch["row"]], batch["weight"])}


class Taught(TrainingModule):
    """Learns from a network that is not trained."""

    def __init__(self, setup, share=0.5):
        super().__init__(setup)
        from copy import deepcopy

        teacher = deepcopy(setup.network)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(1.5)
        self.teacher, self.share = Frozen(teacher), share

    def losses(self, outputs, batch):
        said = self.teacher(batch)["logits"].softmax(1)
        target = (1 - self.share) * batch["target"] + self.share * said
        return {"loss": self.loss(outputs["logits"], target, batch["weight"])}


class Both(Network):
    """A class of the picture and one of each pixel."""

    def __init__(self, channels, outputs, weights=None, pretrained=False, width=8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels["image"], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.classes = nn.Linear(width, outputs["logits"])
        self.pixels = nn.Conv2d(width, outputs["mask"], 1)

    def forward(self, batch):
        features = self.encoder(batch["image"])
        return {"logits": self.classes(features.mean((2, 3))), "mask": self.pixels(features)}


class BothModule(TrainingModule):
    """The sum of both losses."""

    def losses(self, outputs, batch):
        pixels = cross_entropy(outputs["mask"].float(), batch["target_pixels"], ignore_index=255)
        classes = self.loss(outputs["logits"], batch["target"], batch["weight"])
        return {"loss": classes + pixels, "pixels": pixels}
'''


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    """A repository whose solution/ has the code above."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "solution", folder / "solution", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "solution" / "own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "ROOT", folder)
        yield folder


def own_config(root, *overrides, **parts):
    """A tiny configuration with classes of the code above, such as module="Observed"."""
    config = tiny_config(root, "multiclass", "fold=0", *overrides)
    for name, kind in parts.items():
        target = {"_target_": f"solution.own.{kind}"}
        if name == "sampling":
            config["data"]["sampling"] = target
        elif name == "model":
            kept = {key: value for key, value in config["model"].items() if key in build.TRAINING_ONLY}
            config["model"] = kept | target
        else:
            config[name] = target
    return config


def state_of(run):
    return torch.load(run / "fold0" / "last.ckpt", weights_only=True)


def sampling_of(run):
    """The losses by which the items of a fold would be drawn next."""
    found = [state["sampling"]["losses"] for state in state_of(run)["callbacks"].values() if "sampling" in state]
    return found[0].numpy()


def history(run):
    return pd.read_csv(run / "fold0" / "history.csv").drop(columns="seconds")


def weights(run):
    return load_file(run / "fold0" / "model" / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def assert_equal_runs(first, second):
    """Bit for bit the same training."""
    assert same(weights(first), weights(second))
    pd.testing.assert_frame_equal(history(first), history(second), check_exact=True)
    oof = "fold0/oof-0-of-1/predictions.parquet"
    assert (first / oof).read_bytes() == (second / oof).read_bytes()


def stopped_and_resumed(config, folder, epoch):
    with watched(Stop(epoch, 1)), pytest.raises(OSError, match="killed"):
        train_folds(config, folder)
    return train_folds(config, folder)


# samplings that observe


HARD = {"sampling": "Hard", "module": "Observed"}


def test_a_sampling_sees_each_item_as_it_was_trained_last(data, tmp_path):
    """The state of the sampling against what a callback collects by itself."""

    class Witness(Stop):
        def __init__(self):
            self.rows = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.rows += zip(batch["row"].tolist(), outputs["hardness"].tolist(), strict=True)

    config = own_config(data, "epochs=3", "optimizer.lr=0.01", "augmentation=light", **HARD)
    prepared = prepare_tiny(config)
    witness = Witness()
    with watched(witness):
        run = train_folds(config, tmp_path)
    trained = np.flatnonzero(prepared.fold_of_items != 0)
    expected = dict.fromkeys(trained.tolist(), 1.0) | dict(witness.rows)
    np.testing.assert_allclose(sampling_of(run), [expected[row] for row in trained], rtol=1e-6)
    counts = Counter(row for row, _ in witness.rows)
    assert set(counts) <= set(trained.tolist()) and max(counts.values()) > 3  # some more often than once an epoch


def test_extra_scalars_are_columns_of_the_history(data, tmp_path):
    config = own_config(data, "trainer.accumulate_grad_batches=2", **HARD)
    found = history(train_folds(config, tmp_path))
    assert found["train_certainty"].between(1 / 3, 1).all()
    assert "train_hardness" not in found
    assert found["train_loss"].to_numpy() == pytest.approx(found["train_loss"].clip(0.2, 3).to_numpy())


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_sampling_draws_what_one_never_stopped_draws(workers, data, tmp_path):
    config = own_config(data, "epochs=3", "optimizer.lr=0.01", "augmentation=light", **HARD)
    config["data"]["workers"] = workers
    whole = train_folds(config, tmp_path / "whole")
    resumed = stopped_and_resumed(config, tmp_path / "stopped", 2)
    np.testing.assert_array_equal(sampling_of(whole), sampling_of(resumed))
    assert_equal_runs(whole, resumed)
    plain = train_folds(own_config(data, "epochs=3", "optimizer.lr=0.01", "augmentation=light"), tmp_path / "plain")
    assert not same(weights(whole), weights(plain))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_draw_as_one(data, tmp_path):
    choices = [
        "epochs=3",
        "optimizer=sgd",
        "optimizer.lr=0.05",
        "+model.options.norm_layer=groupnorm1",
        "trainer.accumulate_grad_batches=2",
        "augmentation=light",
    ]
    one, two = (
        train_folds(own_config(data, *choices, f"trainer={name}", **HARD), tmp_path / name, world)
        for name, world in (("cpu", 1), ("ddp_cpu", 2))
    )
    np.testing.assert_allclose(sampling_of(one), sampling_of(two), atol=1e-4)
    assert np.ptp(sampling_of(one)) > 0.05
    pd.testing.assert_frame_equal(history(one), history(two), rtol=1e-4)


def test_a_loss_of_another_shape_is_refused(data):
    config = own_config(data, module="Vague")
    prepared = prepare_tiny(config)
    with pytest.raises(Refusal, match=r"returns means in a wrong shape: give a scalar, which is logged, or \(B,\)"):
        inspect_config(config, prepared)


def test_losses_may_use_the_trainer(data, tmp_path, monkeypatch, capfd):
    config = own_config(data, "epochs=2", module="Scheduled")
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of a launcher, as of torchrun below; the trial has one process
    monkeypatch.setenv("SLURM_JOB_NAME", "job")
    monkeypatch.setenv("WORLD_SIZE", "4")
    inspect_config(config, prepare_tiny(config))
    assert "available" not in capfd.readouterr().err  # Lightning's greeting
    for name in ("SLURM_NTASKS", "SLURM_JOB_NAME", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    found = history(train_folds(config, tmp_path))
    assert found["train_progress"].tolist() == [0.5, 1.0]
    np.testing.assert_allclose(found["train_gathered"], found["train_loss"], rtol=1e-6)


# what is built, and how often


def test_everything_is_built_once_to_check_and_once_a_fold(data, tmp_path, monkeypatch):
    counts = Counter()

    def counted(owner, name):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            counts[owner.__name__ if name == "__init__" else name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        (ImageNetwork, "__init__"),
        (build.TrainingModule, "__init__"),
        (ItemDataset, "__init__"),
        (build, "build_optimizer"),
        (build, "build_loss"),
    ):
        counted(owner, name)
    config = tiny_config(data, "multiclass", "epochs=1", "+phases.small={share: 0, image_size: 16}")
    prepared = prepare_tiny(config)
    inspect_config(config, prepared)
    once = {"ImageNetwork": 1, "TrainingModule": 1, "build_optimizer": 1, "build_loss": 1}
    assert counts == once | {"ItemDataset": 1}
    counts.clear()
    train_folds(config, tmp_path)
    # Each fold has a dataset to train and one to validate, and predicts with the network of its files.
    assert counts == dict.fromkeys(once, 2) | {"ItemDataset": 4, "ImageNetwork": 4}


# buffers and frozen networks


def test_buffers_of_a_module_are_in_the_checkpoint_and_resume_exactly(data, tmp_path):
    config = own_config(data, "epochs=3", "optimizer.lr=0.01", module="Corrected")
    whole = train_folds(config, tmp_path / "whole")
    resumed = stopped_and_resumed(config, tmp_path / "stopped", 2)
    first, second = (state_of(run)["state_dict"]["targets"] for run in (whole, resumed))
    assert torch.equal(first, second)
    assert_equal_runs(whole, resumed)
    prepared = prepare_tiny(config)
    held = prepared.fold_of_items == 0
    moved = (first.numpy() != prepared.table.target).any(axis=1)
    assert moved[~held].all() and not moved[held].any()  # validation has not trained


def test_a_frozen_network_is_no_part_of_the_training(data, tmp_path):
    choices = ["epochs=3", "optimizer.lr=0.01", "ema=0.9"]
    config = own_config(data, *choices, module="Taught")
    whole = train_folds(config, tmp_path / "whole")
    checkpoint = state_of(whole)
    assert all(name.startswith("network.net.") for name in checkpoint["state_dict"])
    (optimizer,) = checkpoint["optimizer_states"]
    parameters = list(tiny.new_network(config).parameters())
    assert len(optimizer["state"]) == len(parameters)
    assert sum(state["exp_avg"].numel() for state in optimizer["state"].values()) == sum(p.numel() for p in parameters)
    (average,) = [state["average"] for state in checkpoint["callbacks"].values() if "average" in state]
    assert {f"network.{name}" for name in average} == set(checkpoint["state_dict"])
    assert_equal_runs(whole, stopped_and_resumed(config, tmp_path / "stopped", 2))
    plain = train_folds(own_config(data, *choices), tmp_path / "plain")
    assert not same(weights(plain), weights(whole))


def test_a_frozen_network_follows_the_device_and_has_no_gradients():
    network = random_model(make_spec("multiclass", tiny.CLASSES), 0).network
    frozen = Frozen(deepcopy(network).train())
    batch = {"image": torch.rand(2, 3, 32, 32)}
    said = frozen(batch)["logits"]
    assert torch.equal(said, network(batch)["logits"]) and not said.requires_grad
    assert not any(parameter.requires_grad for parameter in frozen.net.parameters())
    elsewhere = frozen({"image": batch["image"].to("meta")})["logits"]
    assert elsewhere.device.type == "meta" and {p.device.type for p in frozen.net.parameters()} == {"meta"}


# several outputs


@pytest.fixture(scope="module")
def both(tmp_path_factory, own):
    """A configuration of two outputs, and a whole run of it."""
    folder = tmp_path_factory.mktemp("both")
    config = both_config(write_data(folder / "data", rows=12))
    return config, train_here(config, folder / "runs")


def both_config(root):
    outputs = "+outputs={pixels: {key: mask, task: segmentation, target: mask, classes: [background,blue,green,red]}}"
    config = own_config(root, outputs, "batch_size=3", "optimizer.lr=0.01", model="Both", module="BothModule")
    return config | {"fold": "all"}


def test_two_outputs_train_and_each_is_a_source(both):
    config, run = both
    found = history(run)
    assert found["train_pixels"].gt(0).all() and found["train_pixels"].iat[-1] < found["train_pixels"].iat[0]
    classes, pixels = read_predictions(run / "oof"), read_predictions(run / "outputs/pixels/oof")
    assert (classes.header.task, pixels.header.task) == ("multiclass", "segmentation")
    assert list(pixels.columns) == ["background", *tiny.CLASSES] and list(classes.columns) == tiny.CLASSES
    assert classes.header.folds_hash == pixels.header.folds_hash
    assert pixels.header.run == f"{run.name}-pixels"
    expected = sorted(f"row{row}" for row in range(12))
    assert sorted(classes.frame["id"]) == sorted(pixels.frame["id"]) == expected
    assert {item.probability.shape for item in iter_maps(pixels)} == {(4, 32, 32)}
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (run, run / "outputs/pixels")]
    assert [each["metric"] for each in metrics] == ["Accuracy", "MeanIoU"]
    own = yaml.safe_load((run / "outputs/pixels/config.yaml").read_text())
    assert (own["task"], own["data"]["columns"]["target"], own["outputs"]) == ("segmentation", "mask", {})
    assert own["data"]["classes"] == ["background", *tiny.CLASSES]
    assert own["metric"]["_target_"].endswith("MeanIoU") and own["data"]["table"] == config["data"]["table"]


def test_evaluate_takes_an_output_as_a_source(both, command):
    _, run = both
    code, said, error = command("evaluate.py", run / "outputs" / "pixels")
    assert (code, error) == (0, "")
    overall = json.loads((run / "outputs/pixels/metrics.json").read_text())["overall"]
    assert f"{overall:.4f}" in said


def test_two_outputs_resume_exactly(both, tmp_path):
    config, run = both
    resumed = stopped_and_resumed(config | {"fold": 0}, tmp_path, 1)
    assert_equal_runs(run, resumed)
    first, second = (
        list(iter_maps(read_predictions(each / "outputs/pixels/fold0/oof-0-of-1"))) for each in (run, resumed)
    )
    assert [item.id for item in first] == [item.id for item in second] and first
    assert all(np.array_equal(a.probability, b.probability) for a, b in zip(first, second, strict=True))


def test_an_output_that_the_network_does_not_give_as_its_task_says_is_refused(both):
    config, _ = both
    labels = config["outputs"]["pixels"] | {"task": "multilabel", "target": "labels", "classes": None}
    labels |= {"metric": {"_target_": "foldwise.predictions.metrics.MacroF1"}}
    config = config | {"outputs": {"pixels": labels}}
    prepared = prepare_tiny(config)
    sentence = r"gives 'mask' in the shape \(2, 3, 32, 32\), .* needs \(B, 3\): set outputs.pixels.task=segmentation"
    with pytest.raises(Refusal, match=sentence):
        inspect_config(config, prepared)
