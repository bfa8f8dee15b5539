"""Checks before the first fold: each planted bug is found, nothing is said of what is right, and nothing changes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from groups import log_of, start_training
from PIL import Image
from safetensors.torch import save_file
from tiny import code_of, prepare_tiny, tiny_config

from foldwise.code.source import Code, trust
from foldwise.data.holdout import Holdout
from foldwise.preflight import learning, reading
from foldwise.preflight.checks import LEARNING, READING, run_checks
from foldwise.preflight.sheet import draw_sheet
from foldwise.preflight.shuffled import chance_of, check_shuffled
from foldwise.preflight.subject import Subject
from foldwise.schedule.phases import Schedule

MASKS = ("task=segmentation", "model=tiny_unet")


def subject_of(root: Path, task: str = "multiclass", *overrides: str) -> Subject:
    config = tiny_config(root, task, "batch_size=8", *overrides)
    return Subject(config, prepare_tiny(config), Holdout((0,)), trusted_code(config))


def trusted_code(config: dict[str, Any]) -> Code:
    code = code_of(config)
    trust(code.digest)
    return code


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression", "segmentation", "retrieval"])
def test_nothing_is_said_of_what_is_right(kind: str, data: Path):
    overrides = {"segmentation": ["model=tiny_unet"], "regression": ["loss=mse"], "retrieval": ["experiment=retrieval"]}
    asked = "preflight=full" if kind == "multiclass" else "preflight=true"
    config = tiny_config(data, kind, "batch_size=8", asked, *overrides.get(kind, []))
    found = run_checks(config, prepare_tiny(config), [Holdout((0,)), Holdout((1,))], trusted_code(config), 1, 1)
    assert not found.problems and found.sheet is not None
    count = len(READING) + len(LEARNING) + (asked == "preflight=full")
    assert f"{count} checks passed" in found.lines[0] and "2 models will take about" in found.lines[-1]


def module(name: str, change: Callable[..., Any]) -> Callable[[Subject, pytest.MonkeyPatch], None]:
    return lambda subject, patch: patch.setattr(type(subject.training.module), name, change)


def losses(formula: Callable[..., Any]) -> Callable[[Subject, pytest.MonkeyPatch], None]:
    """Planted `losses`: `formula(module, logits, target, weight)`."""
    return module(
        "losses", lambda self, out, batch: {"loss": formula(self, out["logits"], batch["target"], batch["weight"])}
    )


def forward(change: Callable[..., Any]) -> Callable[[Subject, pytest.MonkeyPatch], None]:
    """A planted `forward`: `change(network, logits, batch)`."""

    def plant(subject: Subject, patch: pytest.MonkeyPatch) -> None:
        kind = type(subject.training.network.net)
        old = kind.forward
        patch.setattr(kind, "forward", lambda self, batch: {"logits": change(self, old(self, batch)["logits"], batch)})

    return plant


def before(change: Callable[..., Any]) -> Callable[[Subject, pytest.MonkeyPatch], None]:
    """As `forward`, with a `change(network, batch)` before it."""

    def plant(subject: Subject, patch: pytest.MonkeyPatch) -> None:
        kind = type(subject.training.network.net)
        old = kind.forward
        patch.setattr(kind, "forward", lambda self, batch: old(self, change(self, batch) or batch))

    return plant


def read(change: Callable[..., Any]) -> Callable[[Subject, pytest.MonkeyPatch], None]:
    """A planted `read`: `change(sample, rows, item, rng)`."""

    def plant(subject: Subject, patch: pytest.MonkeyPatch) -> None:
        kind = type(subject.prepared.samples)
        old = kind.read

        def new(self: Any, rows: Any, item: Any, state: Any, rng: Any) -> dict[str, np.ndarray]:
            return {"image": np.ascontiguousarray(change(old(self, rows, item, state, rng)["image"], rows, item, rng))}

        patch.setattr(kind, "read", new)

    return plant


def same_file(image: np.ndarray, rows: Any, item: Any, rng: Any) -> np.ndarray:
    return np.asarray(Image.open(rows.path(0)).convert("RGB"))


def headless(subject: Subject, patch: pytest.MonkeyPatch) -> None:
    make = subject.training.module.make_optimizer

    def without(network: Any) -> torch.optim.Optimizer:
        optimizer, head = make(network), {id(p) for layer in network.net.head() for p in layer.parameters()}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
        return optimizer

    patch.setattr(subject.training.module, "make_optimizer", without)


def other_weights(subject: Subject, patch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        for parameter in subject.training.network.parameters():
            parameter.add_(1e-3)


def remember(network: Any, logits: torch.Tensor, _: Any) -> torch.Tensor:
    if network.training:
        network.seen = getattr(network, "seen", 0.0) + 0.05
    return logits * (1 + getattr(network, "seen", 0.0))


def freeze(network: Any, _: Any) -> None:
    for stage in ("layer3", "layer4"):
        network.net.get_submodule(stage).requires_grad_(False)


def unscaled(subject: Subject, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(subject.training.network), "_normalize", lambda self, name, x: x.float())


DARK = "augmentation.transforms=[{_target_: albumentations.RandomBrightnessContrast, brightness_limit: [-1, -1], p: 1}]"
LEAKING = "+samples={_target_: foldwise.data.units.Units, mode: stored, categories: [label], rare: 1}"
bce, cross_entropy = F.binary_cross_entropy_with_logits, F.cross_entropy
Plant = Callable[[Subject, pytest.MonkeyPatch], None]
# By what breaks: the check that must find it, a part of its sentence, what plants it, and overrides.
BUGS: dict[str, tuple[Any, str, Plant | None, tuple[str, ...]]] = {
    "mean and std are forgotten": (learning.check_start, "not divided by 255", unscaled, ()),
    "labels are off by one": (
        learning.check_losses, "a wrong sign", losses(lambda s, x, y, w: s.loss(x, y.roll(1, 1), w)), ()
    ),
    "labels are shuffled": (
        learning.check_losses, "of another sample", losses(lambda s, x, y, w: s.loss(x, y.roll(1, 0), w)), ()
    ),
    "the loss has the wrong sign": (
        learning.check_losses, "a wrong sign", losses(lambda s, x, y, w: -s.loss(x, y, w)), ()
    ),
    "no loss in validation": (
        learning.check_losses, "in validation", losses(lambda s, x, y, w: s.loss(x, y, w) * s.training), ()
    ),
    "the target is an output": (
        learning.check_start, "gives the target away", forward(lambda net, x, batch: x + 20 * batch["target"]), ()
    ),
    "half of the batch": (
        learning.check_losses, "a part of the batch", losses(lambda s, x, y, w: s.loss(x[:4], y[:4], w[:4])), ()
    ),
    "weights are ignored": (
        learning.check_losses, "ignores", losses(lambda s, x, y, w: s.loss(x, y, torch.ones_like(w))), ()
    ),
    "a sigmoid for a softmax": (
        learning.check_losses, "is that of a sigmoid",
        losses(lambda s, x, y, w: (w * bce(x, y, reduction="none").mean(1)).mean()), (),
    ),
    "a softmax for labels": (
        learning.check_losses, "is that of a softmax",
        losses(lambda s, x, y, w: (w * cross_entropy(x, y, reduction="none")).mean()), ("task=multilabel",),
    ),
    "a softmax twice": (
        learning.check_learnt, "activated twice", losses(lambda s, x, y, w: s.loss(x.softmax(1), y, w)), ()
    ),
    "probabilities from the network": (
        learning.check_learnt, "activated twice", forward(lambda net, x, batch: x.softmax(1)), ()
    ),
    "a logarithm of 0": (
        learning.check_start, "the first loss is", losses(lambda s, x, y, w: -(y * (x * 0).log()).mean()), ()
    ),
    "no gradient": (learning.check_phases, "no gradient", losses(lambda s, x, y, w: s.loss(x.detach(), y, w)), ()),
    "no gradient for the body": (learning.check_phases, "gets no gradient", before(freeze), ()),
    "the head is not in the optimizer": (learning.check_phases, "the optimizer does not have", headless, ()),
    "a learning rate times 1000": (learning.check_phases, "too high", None, ("optimizer.lr=1",)),
    "a learning rate of 0": (
        learning.check_phases, "too low", lambda _, patch: patch.setattr(Schedule, "factor", lambda *_: 0.0), ()
    ),
    "phases are not applied": (
        learning.check_phases, "should freeze", module("on_train_epoch_start", lambda self: None),
        ("phases=frozen_warmup",),
    ),
    "batch norm is thawed": (
        learning.check_phases, "should freeze", before(lambda net, batch: net.train() and None),
        ("+phases.train.freeze_bn=true",),
    ),
    "batch norm in training mode": (
        learning.check_saved, "other images of the batch", before(lambda net, batch: net.train() and None), ()
    ),
    "another forward in eval mode": (
        learning.check_learnt, "eval mode", forward(lambda net, x, batch: x * (1 if net.training else -1)), ()
    ),
    "the same output for all": (
        learning.check_learnt, "the same for every input", forward(lambda net, x, batch: (x - 1e4).relu() + 0 * x), ()
    ),
    "not saved": (learning.check_saved, "a saved model", forward(remember), ()),
    "weights are not loaded": (learning.check_start, "pass `weights` on", other_weights, ("model.weights=WEIGHTS",)),
    "other channels in prediction": (
        reading.check_alike, "the order of the channels",
        read(lambda x, rows, item, rng: x[:, :, ::-1] if rng is None else x), (),
    ),
    "darker in training": (
        reading.check_alike, "differently from prediction",
        read(lambda x, rows, item, rng: x // (1 if rng is None else 2)), (),
    ),
    "darker in training at random": (
        reading.check_alike, "brighter or darker",
        read(lambda x, rows, item, rng: x if rng is None else np.roll(x // 2, rng.integers(9), 0)), (),
    ),
    "darker with targets": (
        reading.check_alike, "when there are targets",
        read(lambda x, rows, item, rng: x // (2 if rows.targets else 1)), (),
    ),
    "np.random": (
        reading.check_alike, "read again", read(lambda x, rows, item, rng: np.roll(x, np.random.randint(9), 0)), ()
    ),
    "channels are blue, green, red": (
        reading.check_channels, "OpenCV", read(lambda x, rows, item, rng: x[:, :, ::-1]), ()
    ),
    "always the same file": (reading.check_own, "alike", read(same_file), ()),
    "the target is an input": (reading.check_own, "depends on the target", None, (LEAKING,)),
    "a mean of the table at hand": (
        reading.check_declared, "whole table", read(lambda x, rows, item, rng: x // (1 + len(rows) % 5)), ()
    ),
    "the image is flipped, not its mask": (
        reading.check_masks, "flipped", read(lambda x, rows, item, rng: x[:, ::-1]), MASKS
    ),
    "everything is black": (reading.check_augmented, "leaves nothing", None, (DARK,)),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check, words, plant, overrides = BUGS[bug]
    task = next((each.partition("=")[2] for each in overrides if each.startswith("task=")), "multiclass")
    if "model.weights=WEIGHTS" in overrides:
        weights = subject_of(data).training.network.net.net.state_dict()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "weights.safetensors")
        overrides = (f"model.weights={tmp_path / 'weights.safetensors'}",)
    subject = subject_of(data, task, *(each for each in overrides if not each.startswith("task=")))
    if plant is not None:
        plant(subject, monkeypatch)
    found = [*check(subject)]
    assert any(words in sentence for sentence in found), found


def test_shuffled_labels_are_learnt_no_better_than_chance_unless_the_network_gets_them(data: Path):
    numbers = "+samples={_target_: foldwise.data.units.Units, mode: stored, numbers: [value]}"
    clean, leaking = subject_of(data), subject_of(data, "regression", "loss=mse", numbers)
    assert not [*check_shuffled(clean)]
    with pytest.MonkeyPatch.context() as patch:
        forward(lambda net, x, batch: x + batch["numbers"][:, :1])(leaking, patch)
        (sentence,) = check_shuffled(leaking)
    assert "gives the target away" in sentence


def test_the_permutation_test_is_uniform_where_nothing_is_learnt():
    rng, eye = np.random.default_rng(0), np.eye(3)
    chances = [chance_of(rng.random((40, 3)), eye[rng.integers(3, size=40)]) for _ in range(60)]
    assert 0.3 < np.mean(chances) < 0.7 and min(chances) < 0.15
    assert chance_of(eye[np.arange(40) % 3], eye[np.arange(40) % 3]) == 1 / 1000


def test_the_sheet_shows_what_the_network_gets(data: Path):
    """A row for each draw of a phase, of the size of the network, with its target; none without images."""
    subject = subject_of(data, "multiclass", "phases=frozen_warmup", "mixing=mixup")
    sheet = Image.open(io.BytesIO(draw_sheet(subject) or b""))
    other = Image.open(io.BytesIO(draw_sheet(subject_of(data, "multiclass", "mixing=none")) or b""))
    assert sheet.size[0] == other.size[0] and sheet.size[1] == 2 * other.size[1]


def test_training_is_the_same_after_it_and_a_failure_leaves_no_run(data: Path, tmp_path: Path):
    """Same run, same bytes; a second start does not check again; a failure names how to train all the same."""
    config = tiny_config(data, "multiclass", "fold=0", "epochs=1", f"data.prepared={tmp_path}")

    def start(asked: object, folder: str, code: int = 0, **optimizer: float) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        changed = config | {"preflight": asked, "optimizer": config["optimizer"] | optimizer}
        command = start_training(changed, tmp_path / folder)
        command.join(timeout=60)
        assert command.exitcode == code, log_of(tmp_path / folder)
        return log_of(tmp_path / folder)

    assert "checks passed" in start("new", "new") and "preflight" not in start(False, "off")
    weights = [tmp_path.glob(f"{folder}/runs/*/fold0/model/model.safetensors") for folder in ("new", "off")]
    (checked,), (unchecked,) = weights
    assert checked.relative_to(tmp_path / "new") == unchecked.relative_to(tmp_path / "off")
    assert checked.read_bytes() == unchecked.read_bytes()
    assert (checked.parents[2] / "preflight.png").exists() and not (unchecked.parents[2] / "preflight.png").exists()
    log = start("new", "off", code=2, lr=1.0)
    assert "the learning rate is too high" in log and "train in spite of it with preflight=false" in log
    assert (tmp_path / "off/runs/preflight.png").exists() and len(list(tmp_path.glob("off/runs/*/identity.json"))) == 1
    assert "preflight" not in start("new", "new").partition("is finished")[2]
