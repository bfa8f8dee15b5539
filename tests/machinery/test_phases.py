"""Phases: what they train, on which images, at which rates; and that a resume in any of them changes nothing."""

import itertools
import re
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from stopping import Stop, watched
from tiny import new_network, prepare_tiny, tiny_config, train_folds

from foldwise.errors import Refusal
from foldwise.reporting.figures import to_png
from foldwise.reporting.phases import phases_figure
from foldwise.schedule.phases import Phase, Schedule, build_phases, share_epochs
from foldwise.schedule.schedulers import Constant, Cosine, Plateau
from foldwise.training.dry_run import inspect_config

STEPS = 7


def test_phases_follow_each_other():
    schedule = Schedule(
        (Phase("head", 2, "head", lr=3.0), Phase("train", 3, "all")),
        dict.fromkeys(("head", "train"), Cosine(floor=0.1)),
        STEPS,
    )
    assert schedule.epochs == 5
    assert [schedule.locate(epoch)[0].name for epoch in range(5)] == ["head"] * 2 + ["train"] * 3
    assert [schedule.locate(epoch)[1] for epoch in range(5)] == [0, 0, 2, 2, 2]
    values = [schedule.factor(step) for step in range(5 * STEPS)]
    assert values[0] == pytest.approx(3.0)
    assert values[2 * STEPS - 1] == pytest.approx(0.3)
    assert values[2 * STEPS] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.1)
    # Lightning asks once more after the last step; that must not fail or jump
    assert schedule.factor(5 * STEPS) == pytest.approx(0.1)


def test_bad_phases_are_listed_together():
    with pytest.raises(Refusal) as error:
        build_phases(
            {
                "a": {"epochs": -1, "lr": "fast", "image_size": [32], "snapshot": 1},
                "b": {"epochs": 1, "trainable": "last0", "rows": "all", "start": "first", "augmentation": "flip"},
                "c": {"epoch": 3},
                "d": None,
            }
        )
    for part in ("a.epochs", "a.lr", "a.image_size", "a.snapshot", "b.trainable", "b.rows", "b.start"):
        assert f"phases.{part} is" in str(error.value)
    for part in ("b.augmentation", "c has 'epoch'", "c.epochs is None", "d is None"):
        assert f"phases.{part}" in str(error.value)
    with pytest.raises(Refusal, match="no epochs"):
        build_phases({"a": {"epochs": 0}})


def spread(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `total` as a sum of whole numbers from 1."""
    if parts == 1:
        yield (total,)
    for first in range(1, total - parts + 2) if parts > 1 else ():
        yield from ((first, *rest) for rest in spread(total - first, parts - 1))


SHARES = st.one_of(st.integers(0, 20), st.floats(0, 1000, allow_subnormal=False), st.just(0))


@given(st.lists(SHARES, min_size=1, max_size=4), st.integers(0, 12))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_epochs_are_shared_out_as_nearly_in_proportion_as_whole_ones_can_be(values, spare):
    """No other whole numbers of the same sum, from 1 each, are nearer to the exact parts (least squares)."""
    shares = dict(zip("abcd", values, strict=False))
    taking = {name: share for name, share in shares.items() if share > 0}
    assume(taking)
    epochs = len(taking) + spare
    found = share_epochs(epochs, shares)
    assert list(found) == list(shares) and sum(found.values()) == epochs
    assert all(found[name] >= 1 if name in taking else found[name] == 0 for name in shares)
    exact = [epochs * share / sum(taking.values()) for share in taking.values()]
    parts = [found[name] for name in taking]

    def distance(whole: Sequence[int]) -> float:
        return sum((one - other) ** 2 for one, other in zip(whole, exact, strict=True))

    assert distance(parts) == pytest.approx(min(map(distance, spread(epochs, len(taking)))), abs=1e-6)
    if min(exact) >= 1:
        assert all(abs(one - other) < 1 for one, other in zip(parts, exact, strict=True))
    order = sorted(taking, key=lambda name: taking[name])
    assert all(
        found[low] <= found[high] for low, high in itertools.pairwise(order) if taking[low] < taking[high] * (1 - 1e-9)
    )
    assert share_epochs(epochs, {name: 2 * share for name, share in shares.items()}) == found


def test_what_a_phase_gets_of_the_epochs():
    assert share_epochs(12, {"head": 1, "train": 11}) == {"head": 1, "train": 11}
    assert share_epochs(2, {"head": 1, "train": 11}) == {"head": 1, "train": 1}
    assert share_epochs(7, {"a": 1, "b": 1, "c": 1}) == {"a": 3, "b": 2, "c": 2}
    assert share_epochs(10, {"a": 0.5, "b": 0, "c": 1.5}) == {"a": 3, "b": 0, "c": 7}


@pytest.mark.parametrize(
    ("epochs", "shares", "message"),
    [
        (2, {"a": 1, "b": 1, "c": 1}, r"epochs=2 is too few for 3 phases \(a, b, c\): .* set epochs=3 or more"),
        (0, {"a": 1}, "epochs=0 is too few for 1 phases"),
        (5, {"a": 0, "b": 0}, "no phase has a share above 0"),
        (5, {"a": -1, "b": "much"}, r"phases.a.share is -1; .*\nphases.b.share is 'much'; it must be 0 or more"),
        (5, {"a": None, "b": True}, r"phases.a.share is None; .*\nphases.b.share is True; "),
        (5, {"a": float("nan"), "b": float("inf")}, r"phases.a.share is nan; .*\nphases.b.share is inf; "),
    ],
)
def test_epochs_that_cannot_be_shared_out_are_refused(epochs, shares, message):
    with pytest.raises(Refusal, match=message):
        share_epochs(epochs, shares)


def test_epochs_are_those_of_the_whole_training(data):
    config = tiny_config(data, "multiclass", "phases=frozen_warmup", "epochs=6", "phases.train.share=2")
    assert {name: phase["epochs"] for name, phase in config["phases"].items()} == {"head": 2, "train": 4}
    assert not any("share" in phase for phase in config["phases"].values())
    with pytest.raises(Refusal, match=r"phases.train.epochs: set epochs= for the whole run, and phases.train.share"):
        tiny_config(data, "multiclass", "+phases.train.epochs=2")
    with pytest.raises(Refusal, match=r"epochs is 1.5; it must be a whole number"):
        tiny_config(data, "multiclass", "epochs=1.5")
    with pytest.raises(Refusal, match=r"phases.train has 'epoch'; the keys of a phase are share, trainable, "):
        build_phases(tiny_config(data, "multiclass", "+phases.train.epoch=2")["phases"])


def test_a_phase_of_no_epochs_is_left_out():
    assert [phase.name for phase in build_phases({"head": {"epochs": 0}, "train": {"epochs": 1}})] == ["train"]


def test_each_phase_runs_through_its_own_curve_and_a_checkpoint_keeps_what_it_remembers():
    def schedule():
        phases = Phase("drop", 2), Phase("again", 2), Phase("light", 1)
        return Schedule(phases, {"drop": Plateau(0, 0.1), "again": Plateau(0, 0.5), "light": Constant()}, STEPS)

    first, second = schedule(), schedule()
    for epoch, loss in enumerate([1.0, 2.0, 1.0, 2.0]):
        first.observe(epoch, loss)
    assert [first.factor(epoch * STEPS) for epoch in (1, 3, 4)] == [pytest.approx(0.1), 0.5, 1.0]
    second.load_state_dict(first.state_dict())
    assert [second.factor(step) for step in range(5 * STEPS)] == [first.factor(step) for step in range(5 * STEPS)]


# A phase of each kind; the last restarts from the best weights.
PHASES = [
    "epochs=6",
    "phases.train.share=0",
    "+phases.head={share: 1, trainable: head, lr: 2.0}",
    "+phases.last={share: 1, trainable: last1, image_size: 16, augmentation: flip, mixing: none, scheduler: constant}",
    "+phases.drop={share: 2, image_size: [24, 40], freeze_bn: true,"
    " scheduler: {_target_: foldwise.schedule.schedulers.Plateau, patience: 0, min_delta: 10}}",
    "+phases.again={share: 2, augmentation: heavy, lr: 0.5, start: best, snapshot: true}",
]
OTHERS = ["fold=0", "optimizer.layer_decay=0.5", "mixing.mixup=0.4", "optimizer.lr=0.01"]


class Witness(pl.Callback):
    """The shape of the images and the rates in each step, and the weights after each epoch."""

    def __init__(self):
        self.shapes, self.rates, self.weights = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.shapes.append((trainer.current_epoch, tuple(batch["image"].shape[2:])))
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append({key: value.clone() for key, value in pl_module.network.net.net.state_dict().items()})


def train(config, folder, *own):
    with watched(*own):
        return train_folds(config, folder)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A configuration with all kinds of phases, a run of it that was never stopped, and what a witness saw of it.

    Its worker stays alive from one epoch to the next.
    """
    config = tiny_config(data, "multiclass", *PHASES, *OTHERS, "data.workers=1")
    witness = Witness()
    return config, train(config, tmp_path_factory.mktemp("whole"), witness), witness


def inspect(config):
    """What is found out of a configuration before a run exists."""
    prepared = prepare_tiny(config)
    return inspect_config(config, prepared)


def moved(old, new):
    """The top-level parts of the network in which a tensor changed."""
    return {key.partition(".")[0] for key in old if not torch.equal(old[key], new[key])}


def test_phases_train_their_layers_on_images_of_their_size(whole):
    _, _, witness = whole
    sizes = dict.fromkeys(witness.shapes)
    assert list(sizes) == [(0, (32, 32)), (1, (16, 16)), (2, (24, 40)), (3, (24, 40)), (4, (32, 32)), (5, (32, 32))]
    after = witness.weights
    assert moved(after[0], after[1]) == {"layer4", "fc"}  # layer 4 is the last stage of a residual network
    everything = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
    assert moved(after[1], after[2]) == moved(after[4], after[5]) == everything
    norms = [key for key in after[1] if "running" in key]
    assert all(torch.equal(after[1][key], after[3][key]) for key in norms)  # freeze_bn
    assert not any(torch.equal(after[4][key], after[5][key]) for key in norms)


def test_layer_decay_reaches_every_curve(whole):
    _, _, witness = whole
    rates = np.array(witness.rates)
    assert np.allclose(rates / rates[:, -1:], rates[0] / rates[0, -1]) and rates[0, 0] < 0.1 * rates[0, -1]
    highest = rates[:, -1].reshape(6, 3)  # three steps an epoch
    assert np.allclose(highest[1], 0.01)
    # The first validation sets the best loss; the drop of the second one comes after the phase.
    assert np.allclose(highest[3], [0.01, 0.01, 0.01]) and highest[4, 0] == pytest.approx(0.005 * highest[0, 0] / 0.02)


@pytest.mark.parametrize(
    "stop", [pytest.param((1, 1), marks=pytest.mark.slow), pytest.param((3, 0), marks=pytest.mark.slow), (5, 2)]
)
def test_a_resume_within_any_phase_equals_a_run_never_stopped(stop, whole, tmp_path):
    config, run, _ = whole
    config = config | {"data": config["data"] | {"workers": 0}}
    with pytest.raises(OSError, match="killed"):
        train(config, tmp_path, Stop(*stop))
    resumed = train_folds(config, tmp_path)
    histories = [pd.read_csv(each / "fold0/history.csv").drop(columns="seconds") for each in (run, resumed)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    name = "fold0/snapshots/again/model.safetensors"
    first, second = load_file(run / name), load_file(resumed / name)
    assert all(torch.equal(first[key], second[key]) for key in first)
    oof = "fold0/oof-0-of-1/predictions.parquet"
    assert (run / oof).read_bytes() == (resumed / oof).read_bytes()


def test_choices_named_in_a_phase_are_replaced_by_their_content(data):
    config = tiny_config(data, "multiclass", "augmentation=photo", *PHASES, "phases.last.mixing=cutmix")
    phases = config["phases"]
    assert [transform["_target_"] for transform in phases["last"]["augmentation"]["transforms"]] == [
        "albumentations.HorizontalFlip"
    ]
    assert phases["last"]["mixing"] == {"mixup": 0.0, "cutmix": 1.0}
    # What is written for the size of the images is for that of the phase.
    assert phases["drop"]["augmentation"]["transforms"][0]["size"] == [24, 40]
    assert "mixing" not in phases["drop"]  # as in the run
    assert phases["again"]["augmentation"]["transforms"][0]["size"] == [32, 32]
    assert phases["last"]["scheduler"] == {"_target_": "foldwise.schedule.schedulers.Constant"}
    with pytest.raises(Refusal, match=r"phases.a: there is no augmentation=flop; .* flip(.|\n)*phases.b: .*steep"):
        tiny_config(data, "multiclass", "+phases.a.augmentation=flop", "+phases.b.scheduler=steep")


def test_an_image_size_that_the_network_cannot_take_is_refused(data):
    config = tiny_config(
        data,
        "segmentation",
        "model=fpn",
        "model.encoder=tu-test_resnet",
        "model.pretrained=false",
        "epochs=3",
        "+phases.small={share: 1, image_size: 40}",
        "+phases.odd={share: 1, image_size: [32, 50]}",
    )
    with pytest.raises(Refusal, match=r"small.image_size=\[64,64\](.|\n)*odd.image_size=\[32,64\]"):
        inspect(config)
    fixed = ["model.name=test_vit", "+model.options.img_size=32", "+model.options.dynamic_img_size=false"]
    fixed += ["+phases.small={share: 1, image_size: 16}"]
    config = tiny_config(data, "multiclass", *fixed)
    with pytest.raises(Refusal, match=r"phases.small.image_size: .* 16 x 16"):
        inspect(config)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("test_vit", {"img_size": 64, "dynamic_img_size": False}, (48, 48)),
        ("test_vit", {"img_size": 64, "dynamic_img_size": True}, (52, 52)),
        ("test_vit", {"img_size": 64, "dynamic_img_size": True}, (40, 72)),
        ("test_maxvit", {}, (100, 100)),
    ],
)
def test_the_nearest_sizes_that_a_network_takes_are_advised(name, options, size, data):
    """Against timm's own forward pass at every even size up to 160."""

    def takes(side: int) -> bool:
        try:
            net(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError):
            return False
        return True

    net = timm.create_model(name, **options).eval()
    with torch.no_grad():
        taken = [side for side in range(2, 161, 2) if takes(side)]
    given = [f"+model.options.{option}={value}" for option, value in options.items()]
    height, width = size
    overrides = [f"model.name={name}", *given, f"data.image_size=[{height},{width}]", "augmentation=none"]
    with pytest.raises(Refusal) as error:
        inspect(tiny_config(data, "multiclass", *overrides))
    message = str(error.value)
    assert message.startswith(f"data.image_size: the network cannot take {height} x {width} (")
    advised = [tuple(map(int, found)) for found in re.findall(r"data\.image_size=\[(\d+),(\d+)\]", message)]
    down = tuple(max((side for side in taken if side <= given), default=0) for given in size)
    up = tuple(min((side for side in taken if side >= given), default=0) for given in size)
    assert advised == [sizes for sizes in (down, up) if all(sizes)] and advised
    for advice in re.findall(r"\+\+model\.options\.\S+\b\]?", message):
        inspect(tiny_config(data, "multiclass", *overrides, advice))
    assert ("dynamic_img_size=true" in message) == (options.get("dynamic_img_size") is False)


def test_one_image_for_batch_norm_is_refused_before_there_is_a_run(data):
    """A residual network halves 32 pixels to one: the oracle is torch, which refuses it in training."""
    net = timm.create_model("test_resnet", num_classes=3).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.zeros(1, 3, 32, 32))
    overrides = ["model=tiny", "batch_size=1", "augmentation=none"]
    with pytest.raises(Refusal, match=r"batch_size=1 is one image .*\(phase train\).*batch_size=2 or more") as error:
        inspect(tiny_config(data, "multiclass", *overrides))
    assert "++phases.train.freeze_bn=true" in str(error.value)
    shared = [*overrides[::2], "batch_size=4", "trainer.accumulate_grad_batches=2", "trainer.devices=2"]
    with pytest.raises(Refusal, match=r"=4 on 2 devices with trainer.accumulate_grad_batches=2 is .* batch_size=8 or"):
        inspect(tiny_config(data, "multiclass", *shared))
    for works in ("batch_size=2", "++phases.train.freeze_bn=true", "data.image_size=64"):
        inspect(tiny_config(data, "multiclass", *overrides, works))
    inspect(tiny_config(data, "multiclass", *shared, "batch_size=8"))


def test_the_plan_shows_what_the_phases_do(data):
    config = tiny_config(data, "multiclass", *PHASES, *OTHERS)
    _, previews = inspect(config)
    head, last, drop, again = previews
    net = new_network(config).net.net
    total = sum(value.numel() for value in net.parameters())
    assert head.share == pytest.approx(sum(value.numel() for value in net.fc.parameters()) / total)
    assert head.share < last.share < drop.share == again.share == 1
    assert last.image_size == (16, 16) and last.augmentations == ["HorizontalFlip"]
    assert "GridDistortion" in again.augmentations and "mixup" in drop.augmentations and drop.plateau
    assert last.lrs[0][1] == pytest.approx(0.01) and last.lrs[0][0] < 0.001  # layer decay
    picture = cv2.imdecode(np.frombuffer(to_png(phases_figure(previews)), np.uint8), cv2.IMREAD_COLOR)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
