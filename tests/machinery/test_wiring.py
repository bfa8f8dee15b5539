"""Every setting of the configuration changes what it is about, or the table says why it changes nothing.

`SETTINGS` has an entry for each setting that any choice of any group has: a setting without one fails. Most entries are
a second value and what must be found in a training with it, by an oracle where there is one. Trainings are shared.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from scipy.stats import norm, rankdata
from sklearn.metrics import balanced_accuracy_score, f1_score, fbeta_score, log_loss
from sklearn.utils.class_weight import compute_class_weight
from stopping import watched
from tiny import new_network, prepare_tiny, tiny_config, train_folds
from wiring import FIRST, Trained, write_world

from foldwise.config import compose_config
from foldwise.data.images import read_mask
from foldwise.predictions.metrics.base import row_records
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.store import read_predictions
from foldwise.settings import LIBRARY, OWNER
from foldwise.training import fold, identity

LR = 1e-3  # optimizer.lr of adamw
MEAN = "net.conv1.1.running_mean"  # of the first BatchNorm


@dataclass(frozen=True)
class Changes:
    """A second value, and what it must change.

    Attributes:
        value: overrides; the first value is that of the configuration, after `base`.
        check: of a training with the first value, and of one with the second.
    """

    value: str
    check: Callable[[Trained, Trained], Any]
    base: str = ""
    task: str = "multiclass"


class Same(str):
    """Why a setting changes no result."""


# learning rates


def lr_follows(formula: Callable[[float, float], float], base: float = LR) -> Callable[[Trained, Trained], None]:
    """The learning rate of each step by the progress of the training and the epochs passed."""

    def check(_: Trained, after: Trained) -> None:
        total, per_epoch = len(after.lr), len(after.lr) // len(after.history)
        expected = [base * formula(step / (total - 1), step / per_epoch) for step in range(total)]
        assert after.lr == pytest.approx(expected, rel=1e-6)

    return check


def short_epochs(before: Trained, after: Trained) -> None:
    """The learning rate falls to its end in the steps that there are."""
    assert len(after.lr) == 4 < len(before.lr)
    lr_follows(lambda progress, epoch: warmed(progress, 0.05))(before, after)


def cosine(progress: float, high: float = 1.0, low: float = 0.01) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


def warmed(progress: float, warmup: float, low: float = 0.01) -> float:
    if progress < warmup:
        return max(low, 0.01) + (1 - max(low, 0.01)) * progress / warmup
    return cosine((progress - warmup) / (1 - warmup), low=low)


def one_cycle(progress: float, rise: float = 0.3, start: float = 0.04, floor: float = 1e-4) -> float:
    return cosine(progress / rise, start, 1.0) if progress < rise else cosine((progress - rise) / (1 - rise), low=floor)


def restarts(progress: float, cycles: int = 3, gamma: float = 1.0) -> float:
    cycle = min(int(progress * cycles), cycles - 1)
    return cosine(progress * cycles - cycle, gamma**cycle)


def plateau_by_torch(before: Trained, after: Trained, patience: int = 0, **options: float) -> None:
    """torch's scheduler over the validation losses of the history gives the learning rates of the epochs."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    settings = {"factor": 0.1, "threshold": 1e-4, "min_lr": LR * 1e-4} | options
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience, threshold_mode="abs", eps=0, **settings
    )
    expected = []
    for loss in after.history["val_loss"]:
        expected += [optimizer.param_groups[0]["lr"]] * (len(after.lr) // len(after.history))
        oracle.step(loss)
    assert after.lr == pytest.approx(expected)
    assert after.lr != before.lr


# optimizers


def steps_of(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[Trained, Trained], None]:
    """The weights after each step are those of torch's optimizer with these gradients and learning rates."""

    def check(before: Trained, after: Trained) -> None:
        decay = options.get("weight_decay", 0.05)
        parameters = {n: torch.nn.Parameter(after.witness.start[n].clone()) for n in after.witness.probes()}
        groups = [
            {"params": [parameter], "weight_decay": decay if parameter.ndim > 1 else 0.0}
            for parameter in parameters.values()
        ]
        oracle = make(groups, **{"lr": LR} | options)
        for step in after.steps:
            for group, (name, parameter) in zip(oracle.param_groups, parameters.items(), strict=True):
                group["lr"], parameter.grad = step.lr[name], step.gradients[name]
            oracle.step()
            for name, parameter in parameters.items():
                torch.testing.assert_close(step.weights[name], parameter.data, rtol=1e-5, atol=1e-7)
        assert differs(before, after)

    return check


def decayed_by_layer(_: Trained, after: Trained) -> None:
    lr = after.steps[0].lr
    factors = sorted({round(math.log(value / max(lr.values()), 0.5), 6) for value in lr.values()})
    assert factors == list(range(len(factors))) and len(factors) > 3
    assert lr[FIRST] == min(lr.values()) and lr["net.fc.weight"] == max(lr.values())


# losses


def losses_are(formula: Callable[..., torch.Tensor]) -> Callable[[Trained, Trained], None]:
    """The loss of each pass from its logits and targets; `formula` gives that of each sample."""

    def check(_: Trained, after: Trained) -> None:
        for step in after.steps:
            for each in step.passes:
                expected = (each["weight"] * formula(each["logits"].float(), each["target"], after)).mean()
                torch.testing.assert_close(each["loss"], expected, rtol=1e-4, atol=1e-6)

    return check


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, _: Any = None, **options: Any) -> torch.Tensor:
    return F.cross_entropy(logits, target, reduction="none", **options)


def balanced(logits: torch.Tensor, target: torch.Tensor, after: Trained) -> torch.Tensor:
    """As scikit-learn balances the classes of the training rows."""
    table, held = after.prepared.table, after.prepared.fold_of_items == 0
    labels = table.target[~held].argmax(axis=1)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    return cross_entropy(logits, target, weight=torch.tensor(weights, dtype=torch.float32))


def huber(logits: torch.Tensor, target: torch.Tensor, _: Any = None, delta: float = 1.0) -> torch.Tensor:
    return F.huber_loss(logits, target, reduction="none", delta=delta).mean(1)


def squares(logits: torch.Tensor, target: torch.Tensor, _: Any = None) -> torch.Tensor:
    """Of two columns, of which the second counts three times."""
    return ((logits - target) ** 2 * torch.tensor([0.25, 0.75])).sum(1)


def normal_scores(_: Trained, after: Trained) -> None:
    """The loss sees the normal scores of the training rows' ranks."""
    numbers, held = after.prepared.table.target[:, 0], after.prepared.fold_of_items == 0
    scores = np.full(len(numbers), np.nan)
    scores[~held] = norm.ppf((rankdata(numbers[~held]) - 0.5) / (~held).sum())
    for each in after.steps[0].passes:
        np.testing.assert_allclose(each["target"][:, 0], scores[each["row"]], rtol=1e-5)


def masks(logits: torch.Tensor, target: torch.Tensor, _: Any = None, ignored: int = 255) -> torch.Tensor:
    """The mean over the pixels of each mask that count."""
    pixels = F.cross_entropy(logits, target.where(target != ignored, 0), reduction="none")
    valid = (target != ignored).float()
    return (pixels * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)


def focal(logits: torch.Tensor, target: torch.Tensor, _: Any = None, gamma: float = 2.0) -> torch.Tensor:
    p = logits.softmax(1)
    return -(target * (1 - p) ** gamma * p.log()).sum(1)


def dice(before: Trained, after: Trained, smooth: float = 0.0, weights: Any = (1.0,)) -> None:
    for step in after.steps:
        (each,) = step.passes
        valid = (each["target"] != 255)[:, None]
        p = each["logits"].softmax(1) * valid
        true = F.one_hot(each["target"].where(valid[:, 0], 0), 4).movedim(-1, 1) * valid
        both, sizes = (p * true).sum((0, 2, 3)), (p + true).sum((0, 2, 3))
        terms = (1 - (both + smooth) / (sizes / 2 + smooth).clamp(min=1e-7)) * (true.sum((0, 2, 3)) > 0)
        weight = torch.as_tensor(weights).expand(4)
        torch.testing.assert_close(each["loss"], (terms * weight).sum() / weight.sum(), rtol=1e-3, atol=1e-5)
    assert differs(before, after)


# what is found in a training


def differs(before: Trained, after: Trained) -> bool:
    """Other weights at the end."""
    assert before.saved.keys() == after.saved.keys()
    return any(not torch.equal(before.saved[name], after.saved[name]) for name in before.saved)


def same_weights(before: Trained, after: Trained) -> bool:
    return not differs(before, after)


def started_from_file(before: Trained, after: Trained) -> None:
    stored = load_file(after.config["model"]["weights"])
    for name, tensor in after.witness.start.items():
        if not name.startswith("net.fc"):
            assert torch.equal(tensor, stored[name.removeprefix("net.")])
    assert not torch.equal(before.witness.start[FIRST], after.witness.start[FIRST])


def classes_alike(_: Trained, after: Trained) -> None:
    labels = dict(zip(after.prepared.table.ids, after.prepared.table.target.argmax(1), strict=True))
    counts = np.bincount([labels[id] for step in after.ids for id in step])
    assert (np.abs(counts / counts.sum() - 1 / 3) < 0.1).all()


def each_row_once(_: Trained, after: Trained) -> None:
    for epoch in range(len(after.history)):
        drawn = [id for step, ids in zip(after.steps, after.ids, strict=True) if step.epoch == epoch for id in ids]
        assert max(Counter(drawn).values()) == 1


def weights_reach_the_loss(_: Trained, after: Trained) -> None:
    table = after.prepared.table
    stored = pd.read_csv(table.root / "train.csv").set_index("id")["weight"]
    for step in after.steps:
        for each in step.passes:
            expected = [stored[table.ids[row]] / stored.mean() for row in each["row"]]
            assert each["weight"].tolist() == pytest.approx(expected)
    losses_are(masks if table.task == "segmentation" else cross_entropy)(_, after)


def ema_by_hand(decay: float) -> Callable[[Trained, Trained], None]:
    """Warmed-up averages of the weights after each step; the statistics are those of the training images."""

    def check(before: Trained, after: Trained) -> None:
        for name in after.witness.probes():
            average = after.witness.start[name]
            for step, seen in enumerate(after.steps):
                share = min(decay, 1 - (1 + step) ** (-2 / 3)) if step else 0.0
                average = share * average + (1 - share) * seen.weights[name]
            torch.testing.assert_close(after.saved[name], average, rtol=1e-5, atol=1e-7)
        net, spec = after.model.network.net.net, after.spec["images"]["image"]
        drawn = [each["image"] for step in after.steps if step.epoch == 0 for each in step.passes]
        mean, std = (torch.tensor(spec[key]).view(-1, 1, 1) for key in ("mean", "std"))
        inputs = (torch.cat(drawn) / 255 - mean) / std
        statistics = net.conv1[0](inputs).mean((0, 2, 3))  # of all training rows, which are three whole batches
        torch.testing.assert_close(after.saved[MEAN], statistics, rtol=1e-3, atol=1e-5)
        assert (after.steps[-1].weights[MEAN] - statistics).norm() > 0.1 * statistics.norm()

    return check


def ema_is_validated(before: Trained, after: Trained) -> None:
    """The validation losses are those of the average, and without EMA of the weights."""
    assert before.history["val_loss"].tolist() == pytest.approx(before.witness.val_loss["last"], rel=1e-4)
    assert after.history["val_loss"].tolist() == pytest.approx(after.witness.val_loss["ema"], rel=1e-4)
    assert after.witness.val_loss["ema"] != pytest.approx(after.witness.val_loss["last"], rel=1e-2)


def each_pass_has(count: int, passes: int = 1) -> Callable[[Trained, Trained], None]:
    """So many rows a pass, and passes a step."""

    def check(_: Trained, after: Trained) -> None:
        assert {len(each["row"]) for step in after.steps for each in step.passes} == {count}
        assert {len(step.passes) for step in after.steps} == {passes}

    return check


def accumulated(before: Trained, after: Trained) -> None:
    """As many steps, of two passes each, and the schedule ends where it would end."""
    each_pass_has(2, 2)(before, after)
    assert after.lr == pytest.approx(before.lr) and len(after.lr) == 6
    assert [set(step) for step in before.ids] == [set(step) for step in after.ids]


def images_are(
    expected: Callable[[np.ndarray], np.ndarray], field: str = "image"
) -> Callable[[Trained, Trained], None]:
    """What a stored picture becomes."""

    def check(_: Trained, after: Trained) -> None:
        table, seen = after.prepared.table, 0
        for step in after.steps:
            for each in step.passes:
                for row, image in zip(each["row"], each[field], strict=True):
                    stored = after.stored(table.frame["image"][int(row)])
                    np.testing.assert_allclose(image.numpy(), expected(stored), atol=1e-5)
                    seen += 1
        assert seen

    return check


def flipped_only_in(phase: int) -> Callable[[Trained, Trained], None]:
    """One of two epochs shows each picture mirrored."""

    def check(_: Trained, after: Trained) -> None:
        for step in after.steps:
            for each in step.passes:
                for row, image in zip(each["row"], each["image"], strict=True):
                    stored = after.stored(after.prepared.table.frame["image"][int(row)])
                    wanted = stored[:, :, ::-1] if step.epoch == phase else stored
                    assert np.array_equal(image.numpy(), wanted)

    return check


def mixed(whole_pixels: bool, _: Trained, after: Trained) -> None:
    images = torch.cat([each["image"] for step in after.steps for each in step.passes]) * 255
    assert torch.allclose(images, images.round(), atol=1e-3) == whole_pixels
    targets = torch.cat([each["target"] for step in after.steps for each in step.passes])
    assert ((targets > 0.01) & (targets < 0.99)).any() and torch.allclose(targets.sum(1), torch.ones(len(targets)))


def mixed_only_in(phase: int) -> Callable[[Trained, Trained], None]:
    """One of two epochs has mixed targets."""

    def check(_: Trained, after: Trained) -> None:
        for epoch in (0, 1):
            passes = [each for step in after.steps if step.epoch == epoch for each in step.passes]
            assert any("lam" in each for each in passes) == (epoch == phase)

    return check


def score_is(oracle: Callable[..., float]) -> Callable[[Trained, Trained], None]:
    """That of the fold, by targets and predictions."""

    def check(_: Trained, after: Trained) -> None:
        assert after.score == pytest.approx(oracle(after.targets(), after.answers()), abs=1e-6)

    return check


def maps_score(per_image: bool = False, background: bool = False, ignored: int = 255) -> Callable[..., None]:
    """Dice by counting pixels."""

    def check(_: Trained, after: Trained) -> None:
        counts = []
        for id, *_, values in after.maps():
            mask, answer = (
                read_mask(after.prepared.table.mask_files(after.prepared.table.ids.index(id))[0]),
                values.argmax(0),
            )
            valid = mask != ignored
            mask, answer = mask[valid], answer[valid]
            counts.append(
                [[((mask == c) & (answer == c)).sum(), (mask == c).sum() + (answer == c).sum()] for c in range(4)]
            )
        both, sizes = np.moveaxis(np.array(counts, float), -1, 0)
        if per_image:
            each = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0).mean(0)
        else:
            each = np.where(sizes.sum(0) > 0, 2 * both.sum(0) / np.maximum(sizes.sum(0), 1), np.nan)
        assert after.score == pytest.approx(np.nanmean(each[0 if background else 1 :]), abs=1e-6)

    return check


def views_are(make: Callable[[torch.Tensor], list[torch.Tensor]], geometric: bool = False) -> Callable[..., None]:
    """The out-of-fold predictions are the mean over views, which `make` gives of images in [0, 1]."""

    def check(before: Trained, after: Trained) -> None:
        network = after.model.network
        with torch.no_grad():
            values = torch.stack([network({"image": view})["logits"].softmax(1) for view in make(after.images() / 255)])
        mean = values.log().mean(0).exp() if geometric else values.mean(0)
        np.testing.assert_allclose(after.answers(), mean / mean.sum(1, keepdim=True), atol=1e-4)
        assert not np.allclose(before.answers(), after.answers(), atol=1e-3)

    return check


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)


def cropped(images: torch.Tensor, top: int, left: int) -> torch.Tensor:
    return resized(images[..., top : top + 28, left : left + 28], 32)


# phases


def weights_stay(name: str, epochs: set[int]) -> Callable[[Trained, Trained], None]:
    """A weight moves in all epochs but these."""

    def check(_: Trained, after: Trained) -> None:
        old = after.witness.start[name]
        for step in after.steps:
            assert torch.equal(step.weights[name], old) == (step.epoch in epochs), f"epoch {step.epoch}"
            old = step.weights[name]

    return check


def second_phase_begins_at_the_best(_: Trained, after: Trained) -> None:
    """Its first step starts from the weights after the epoch of the best score."""
    per_epoch = len(after.steps) // len(after.history)
    best = int(after.history["score"][:-1].argmin())
    assert best < len(after.history) - 2, "choose another seed: the last epoch is the best, and shows nothing"
    moved = after.steps[per_epoch * (len(after.history) - 1)]
    begun = after.steps[per_epoch * (best + 1) - 1].weights["net.fc.bias"]
    step = moved.weights["net.fc.bias"] - begun
    torch.testing.assert_close(step, -moved.lr["net.fc.bias"] * moved.gradients["net.fc.bias"], rtol=1e-3, atol=1e-7)


def snapshots(*names: str) -> Callable[[Trained, Trained], None]:
    def check(_: Trained, after: Trained) -> None:
        assert sorted(path.name for path in (after.fold / "snapshots").iterdir()) == sorted(names)
        ends = np.array_split(np.arange(len(after.steps)), len(names))  # phases of equal length
        for name, steps in zip(names, ends, strict=True):
            saved = load_file(after.fold / "snapshots" / name / "model.safetensors")
            assert torch.equal(saved["net.fc.bias"], after.steps[steps[-1]].weights["net.fc.bias"])

    return check


def pseudo_rows(shares: dict[int, float]) -> Callable[[Trained, Trained], None]:
    """Of each epoch's rows, these shares are pseudo rows."""

    def check(_: Trained, after: Trained) -> None:
        for step, ids in zip(after.steps, after.ids, strict=True):
            assert ids.count("pseudo") == shares[step.epoch] * len(ids)

    return check


def relabelled_in(epoch: int) -> Callable[[Trained, Trained], None]:
    """Half of an epoch's rows are unlabelled ones with soft targets, the others keep theirs."""

    def check(_: Trained, after: Trained) -> None:
        pseudo_rows({number: 0.5 * (number == epoch) for number in range(len(after.history))})(_, after)
        labels = torch.from_numpy(after.prepared.table.target)
        for step in after.steps:
            for seen in step.passes:
                own = seen["row"] < len(labels)
                assert torch.equal(seen["target"][own], labels[seen["row"][own]])
                soft = seen["target"][~own]
                assert ((soft > 0) & (soft < 1)).all() and torch.allclose(soft.sum(1), torch.ones(len(soft)))

    return check


# what is built and written


def spec_has(**values: Any) -> Callable[[Trained, Trained], None]:
    def check(_: Trained, after: Trained) -> None:
        for path, value in values.items():
            found = after.spec
            for key in path.split("__"):
                found = found[key]
            assert found == value

    return check


def seen(**values: Any) -> Callable[[Trained, Trained], None]:
    def check(_: Trained, after: Trained) -> None:
        assert {name: after.witness.seen[name] for name in values} == values

    return check


def ensures(test: Callable[[Trained, Trained], Any]) -> Callable[[Trained, Trained], None]:
    """The test is true."""

    def check(before: Trained, after: Trained) -> None:
        assert test(before, after)

    return check


def table_column(name: str) -> Callable[[Trained], pd.Series]:
    return lambda trained: pd.read_csv(trained.prepared.table.root / "train.csv")[name]


def gold_is_only_scored(before: Trained, after: Trained) -> None:
    gold = set(after.oof.frame["id"]) | {id for step in after.ids for id in step}
    gold = set(before.prepared.table.ids) - gold
    assert gold == {
        id for id, sure in zip(before.prepared.table.ids, table_column("sure")(before), strict=True) if sure
    }
    found = read_predictions(next(after.fold.glob("gold-*")))
    assert set(found.frame["id"]) == gold and not list(before.fold.glob("gold-*"))


def folds_are_stratified(_: Trained, after: Trained) -> None:
    counts = pd.crosstab(after.prepared.fold_of_items, table_column("label")(after)).to_numpy()
    assert len(counts) == 3 and (np.ptp(counts, axis=0) <= 1).all()


def groups_stay_together(_: Trained, after: Trained) -> None:
    fold = pd.Series(after.prepared.fold_of_items).groupby(table_column("site")(after)).nunique()
    assert fold.max() == 1 and len(set(after.prepared.fold_of_items)) == 2


def units_are_scored(_: Trained, after: Trained) -> None:
    """Their predictions are averaged, and no fold splits one."""
    things = table_column("thing")(after)
    assert pd.Series(after.prepared.fold_of_items).groupby(things).nunique().max() == 1
    thing = dict(zip(after.prepared.table.ids, things, strict=True))
    units = [thing[id] for id in after.oof.frame["id"]]
    target, answers = (pd.DataFrame(v).groupby(units).mean().to_numpy() for v in (after.targets(), after.answers()))
    assert len(target) < len(units)
    assert after.score == pytest.approx(log_loss(target.argmax(1), answers, labels=[0, 1, 2]), rel=1e-5)


def units_are_any(before: Trained, after: Trained) -> None:
    assert same_weights(before, after)
    thing = dict(zip(after.prepared.table.ids, table_column("thing")(after), strict=True))
    units = [thing[id] for id in after.oof.frame["id"]]
    target = pd.DataFrame(after.targets()).groupby(units).mean().to_numpy()
    answers = 1 - pd.DataFrame(1 - after.answers().astype(float)).groupby(units).prod().to_numpy()
    answers /= answers.sum(axis=1, keepdims=True)
    assert after.score == pytest.approx(log_loss(target.argmax(1), answers, labels=[0, 1, 2]), rel=1e-5) != before.score


def ignored_as_before(before: Trained, after: Trained) -> None:
    """The masks differ in the number alone that says what is ignored."""
    assert same_weights(before, after) and before.score == after.score
    losses_are(partial(masks, ignored=7))(before, after)
    corners = [each["target"][:, 0, 0] for step in before.steps for each in step.passes]
    assert {int(value) for value in torch.cat(corners)} == {255}


def mapped_as_before(before: Trained, after: Trained) -> None:
    """The masks differ in the stored number alone that the setting maps to what is ignored."""
    assert same_weights(before, after) and before.score == after.score
    losses_are(masks)(before, after)


def layers_as_stored(before: Trained, after: Trained) -> None:
    """A mask per class is trained, of the same class numbers, and what is ignored in these is so in each."""
    assert after.oof.header.task == "segmentation_overlapping"
    for one, other in zip(before.steps, after.steps, strict=True):
        for first, second in zip(one.passes, other.passes, strict=True):
            numbers = first["target"][:, None]
            expected = torch.where(numbers == 255, 255, (numbers == torch.arange(4).view(1, 4, 1, 1)).long())
            assert torch.equal(second["target"].long(), expected)


def targets_halve(before: Trained, after: Trained) -> None:
    first, second = (each.steps[0].passes[0]["target"] for each in (before, after))
    assert torch.allclose(first / 2, second) and 0.8 < float(first.max()) <= 1


def targets_are(column: str) -> Callable[[Trained, Trained], None]:
    def check(_: Trained, after: Trained) -> None:
        labels = [after.prepared.table.classes[best] for best in after.prepared.table.target.argmax(1)]
        assert labels == table_column(column)(after).tolist()
        losses_are(cross_entropy)(_, after)

    return check


def crops_are(height: int, width: int) -> Callable[[Trained, Trained], None]:
    """Of that size as prediction reads them, and trained on."""

    def check(before: Trained, after: Trained) -> None:
        assert (before.prepared.scan[["height", "width"]] == [18, 16]).all(axis=None)
        assert (after.prepared.scan[["height", "width"]] == [height, width]).all(axis=None)
        assert differs(before, after)

    return check


FLIP = "[{_target_:albumentations.HorizontalFlip,p:1.0}]"
TWO = "phases=frozen_warmup epochs=4 phases.head.share=1 phases.train.share=1"
PSEUDO = "data.pseudo=WORLD/pseudo.csv data.pseudo_share=0.5"
SGD = "optimizer=sgd scheduler=constant optimizer.opt=momentum optimizer.momentum=0 optimizer.weight_decay=0"
MASKS = "segmentation"
WHO = "experiment=retrieval batch_size=8"
# data.mode keeps wiring.py from predicting single pictures
UNITS = (
    "data.mode=rgb data.columns.fold=null samples._target_=foldwise.data.units.Units +samples.unit=thing "
    "+samples.frames=1 model._target_=foldwise.models.pooled.PooledNetwork model.library=null +model.pool=mean"
)
CROP = "data.mode=rgb +samples.crop={box:[x0,y0,x1,y1]}"
WHOLE = "data.columns.target=whole_mask"  # nothing is ignored

SETTINGS: dict[str, Changes | Same] = {
    # the training as a whole
    "seed": Changes(
        "seed=7",
        ensures(lambda a, b: a.ids != b.ids and not torch.equal(a.witness.start[FIRST], b.witness.start[FIRST])),
    ),
    "batch_size": Changes("batch_size=6", each_pass_has(6)),
    "lr_batch_size": Changes("lr_batch_size=16", lr_follows(lambda p, e: warmed(p, 0.05), LR * 4 / 16)),
    "epochs": Changes("epochs=3", ensures(lambda a, b: (len(a.steps), len(b.steps)) == (6, 9))),
    "threads": Changes("threads=2", seen(threads=2), "epochs=1"),
    "top_k": Changes("top_k=2", ensures(lambda a, b: len(list((b.fold / "snapshots").iterdir())) == 2), "epochs=3"),
    "validate_every": Changes(
        "validate_every=2", ensures(lambda a, b: b.history["score"].isna().tolist() == [True, False, False]), "epochs=3"
    ),
    "fold": Changes("fold=1", ensures(lambda a, b: (a.fold.name, b.fold.name) == ("fold0", "fold1"))),
    "task": Changes(
        "task=multilabel metric=f_beta",
        ensures(
            lambda a, b: b.spec["outputs"][0]["task"] == "multilabel" and "BinaryCross" in b.config["loss"]["_target_"]
        ),
    ),
    "experiment_name": Changes("experiment_name=other", ensures(lambda a, b: b.run.name.startswith("other-"))),
    "outputs": Same("test_heads trains heads, test_solution outputs of an own network"),
    "fold_workers": Same("how many folds train at once: test_processes"),
    "run": Same("which run is continued: test_training"),
    "preflight": Same("checks in a process of their own: test_preflight"),
    "project.name": Same("of the default logger's project"),
    "project.slug": Same("of the default logger's project"),
    "project.image_size": Same("the default of data.image_size"),
    "project.folds": Same("the default of data.folds"),
    "samples._target_": Changes(
        "samples._target_=foldwise.data.samples.Samples",
        ensures(lambda a, b: same_weights(a, b) and b.spec["samples"]["_target_"] == "foldwise.data.samples:Samples"),
    ),
    "samples.mode": Same("the default is data.mode"),
    "samples.crop.box": Changes("samples.crop.box=[left,y0,x1,y1]", crops_are(18, 12), CROP),
    "samples.crop.margin": Changes("+samples.crop.margin=0.125", crops_are(24, 20), CROP),
    "samples.crop.square": Changes("+samples.crop.square=true", crops_are(18, 18), CROP),
    "samples.crop.jitter": Changes(
        "+samples.crop.jitter=0.5",
        ensures(lambda a, b: differs(a, b) and b.prepared.scan["width"].eq(16).all()),
        CROP,
    ),
    "data.sampling._target_": Same("test_retrieval draws identities"),
    "data.sampling.images": Changes("data.sampling.images=1", ensures(lambda a, b: a.ids != b.ids), WHO, "retrieval"),
    "loss.scale": Changes("loss.scale=5", ensures(differs), WHO, "retrieval"),  # by formula: test_retrieval
    "loss.margin": Changes("loss.margin=by_size", ensures(differs), WHO, "retrieval"),
    "model.width": Changes(
        "model.width=16", ensures(lambda a, b: b.saved["vector.0.weight"].shape[0] == 16), WHO, "retrieval"
    ),
    "model.subcentres": Changes(
        "model.subcentres=0", ensures(lambda a, b: "identities.bias" in b.witness.start), WHO, "retrieval"
    ),
    "metric.k": Changes(
        *("metric.k=1", ensures(lambda a, b: b.score < a.score and same_weights(a, b))),
        *(f"{WHO} data.columns.target=answer", "retrieval"),  # names at random, so that few are found first
    ),
    "module._target_": Same("test_solution trains with modules of its own"),
    # the data
    "data.name": Same("a name for messages; the embedded sample has one of its own: test_sample"),
    "data.root": Same("a path: these tests set it"),
    "data.table": Same("a path: these tests set it"),
    "data.test_table": Same("read by predict.py: test_predict"),
    "data.prepared": Same("a path: these tests set it"),
    "data.workers": Same("results do not depend on it: test_training"),
    "data.folds": Changes("data.folds=3", folds_are_stratified, "data.columns.fold=null"),
    "seed of folds": Changes(
        "seed=7",
        ensures(lambda a, b: a.prepared.folds != b.prepared.folds),
        "data.columns.fold=null",
    ),
    "data.columns.id": Changes(
        "data.columns.id=name", ensures(lambda a, b: set(b.oof.frame["id"]) <= set(table_column("name")(b)))
    ),
    "data.columns.image": Changes(
        "data.columns.image=picture", lambda a, b: images_are(lambda x: x)(a, b) or ensures(differs)(a, b)
    ),
    "data.columns.target": Changes("data.columns.target=answer", targets_are("answer"), "data.columns.fold=null"),
    "data.columns.group": Changes("data.columns.group=site", groups_stay_together, "data.columns.fold=null"),
    "data.columns.unit": Changes("data.columns.unit=thing", units_are_scored, "data.columns.fold=null metric=log_loss"),
    "data.unit_reduction": Changes(
        "data.unit_reduction=noisy_or", units_are_any, "data.columns.unit=thing data.columns.fold=null metric=log_loss"
    ),
    "data.columns.weight": Changes("data.columns.weight=weight", weights_reach_the_loss),
    "data.columns.weight of masks": Changes("data.columns.weight=weight", weights_reach_the_loss, task=MASKS),
    "data.columns.fold": Changes(
        "data.columns.fold=part",
        ensures(lambda a, b: b.prepared.fold_of_items.tolist() == table_column("part")(b).tolist()),
        "data.columns.fold=null",
    ),
    "data.columns.gold": Changes("data.columns.gold=sure", gold_is_only_scored),
    "data.classes": Changes(
        "data.classes=[red,blue,green]", ensures(lambda a, b: list(b.oof.columns) == ["red", "blue", "green"])
    ),
    "data.label_separator": Changes(
        'data.label_separator="|" data.columns.target=tags', same_weights, task="multilabel"
    ),
    "data.transform": Changes("data.transform=rank", normal_scores, task="regression"),
    "data.ignore_index": Changes("data.ignore_index=7 data.columns.target=mask7", ignored_as_before, task=MASKS),
    "data.mask_values": Changes(
        "++data.mask_values={0:0,1:1,2:2,3:3,7:255} data.columns.target=mask7", mapped_as_before, task=MASKS
    ),
    "data.masks": Changes("data.masks=overlapping loss=bce metric=dice", layers_as_stored, task=MASKS),
    "data.mask_encoding": Changes(
        "data.mask_encoding=rle data.columns.target=[code0,code1,code2,code3]",
        same_weights,
        f"data.masks=overlapping loss=bce metric=dice {WHOLE}",
        MASKS,
    ),
    "data.mask_scale": Changes(
        "data.mask_scale=510",
        targets_halve,
        "data.masks=soft loss=bce metric=pixel_mae data.classes=[ink] data.columns.target=soft",
        MASKS,
    ),
    "data.image_size": Changes(
        "data.image_size=16", ensures(lambda a, b: b.steps[0].passes[0]["image"].shape[-2:] == (16, 16))
    ),
    "data.sizes": Same("of the embedded sample: test_sample"),
    "data.fit": Changes("data.fit=crop data.image_size=[28,14]", images_are(lambda x: x[:, 2:30, 9:23])),
    "data.mode": Changes("data.mode=gray", spec_has(network__channels={"image": 1})),
    "data.exif": Changes("data.exif=ignore", spec_has(exif="ignore")),
    "data.scale": Changes("data.scale=204", images_are(lambda x: x / np.float32(204))),
    "data.normalize": Changes(
        "data.normalize=weights", ensures(lambda a, b: b.spec["images"]["image"]["mean"] == [0.5, 0.5, 0.5])
    ),
    "data.sampling": Changes("data.sampling=balanced", classes_alike, "epochs=12 optimizer.lr=1e-5"),
    "data.sampling of shuffle": Changes("data.sampling=shuffle", each_row_once),
    "data.pseudo": Changes("data.pseudo=WORLD/pseudo.csv", pseudo_rows({0: 0.5, 1: 0.5})),
    "data.features": Same("needs features, which are its test: test_features"),
    "data.pseudo_share": Changes("data.pseudo_share=0.25", pseudo_rows({0: 0.25, 1: 0.25}), PSEUDO),
    # augmentation
    "augmentation.transforms": Changes(f"augmentation.transforms={FLIP}", images_are(lambda x: x[:, :, ::-1])),
    # mixing
    "mixing.mixup": Changes("mixing.mixup=1.0", partial(mixed, False)),
    "mixing.cutmix": Changes("mixing.cutmix=1.0", partial(mixed, True)),
    # networks
    "model._target_": Same("test_solution trains networks of its own"),
    "model.library": Changes("model=tiny_unet", spec_has(network__library="smp"), task=MASKS),
    "model.name": Changes("model.name=test_efficientnet", spec_has(network__name="test_efficientnet")),
    "model.encoder": Changes(
        "model.encoder=tu-test_efficientnet", spec_has(network__encoder="tu-test_efficientnet"), task=MASKS
    ),
    **dict.fromkeys(("model.hidden", "model.dropout"), Same("of a head on features: test_features")),
    "model.options": Changes(
        "+model.options.drop_path_rate=0.5",
        lambda a, b: spec_has(network__options={"drop_path_rate": 0.5})(a, b) or ensures(differs)(a, b),
    ),
    "model.pretrained": Same("asks the hub: test_pretrained_weights_are_asked_for"),
    "model.weights": Changes("model.weights=WORLD/weights.safetensors", started_from_file),
    "init": Same("starts from another run: test_initial"),
    "model.channels_last": Changes(
        "model.channels_last=false",
        ensures(lambda a, b: [t.witness.seen["channels_last"] for t in (a, b)] == [True, False]),
    ),
    "model.compile": Same("compiling takes longer than all of this: test_what_compile_compiles"),
    "model.gradient_checkpointing": Changes(
        "model.gradient_checkpointing=true",
        ensures(lambda a, b: b.witness.net.net.grad_checkpointing and not a.witness.net.net.grad_checkpointing),
    ),
    # losses
    "loss._target_": Changes("loss=focal", losses_are(focal)),
    "loss.label_smoothing": Changes(
        "loss.label_smoothing=0.3", losses_are(partial(cross_entropy, label_smoothing=0.3))
    ),
    "loss.class_weights": Changes("loss.class_weights=balanced", losses_are(balanced)),
    "loss.class_weights of numbers": Changes(
        "loss.class_weights=[1,2,3]", losses_are(partial(cross_entropy, weight=torch.tensor([1.0, 2.0, 3.0])))
    ),
    "loss.gamma": Changes("loss.gamma=1", losses_are(partial(focal, gamma=1.0)), "loss=focal"),
    "loss.task": Same("the default is task, and the loss is of another kind with another"),
    "loss.ignore_index": Changes("loss.ignore_index=1", losses_are(partial(masks, ignored=1)), WHOLE, MASKS),
    "loss.terms": Changes("loss.terms.0.weight=0", dice, "loss=ce_dice", MASKS),
    "loss.delta": Changes("loss.delta=0.1", losses_are(partial(huber, delta=0.1)), "loss=huber", "regression"),
    "loss.target_weights": Changes(
        "loss.target_weights=[1,3]", losses_are(squares), "data.columns.target=[value,part]", "regression"
    ),
    "loss.class_weights of dice": Changes(
        "loss.class_weights=[1,2,3,4]", partial(dice, weights=(1.0, 2.0, 3.0, 4.0)), "loss=dice", MASKS
    ),
    "loss.smooth": Changes("loss.smooth=50", partial(dice, smooth=50.0), "loss=dice", MASKS),
    # optimizers
    "optimizer.opt": Changes(
        "optimizer=sgd", steps_of(torch.optim.SGD, lr=0.05, weight_decay=1e-4, momentum=0.9, nesterov=True)
    ),
    "optimizer.lr": Changes("optimizer.lr=0.01", lr_follows(lambda p, e: warmed(p, 0.05), 0.01)),
    "optimizer.weight_decay": Changes("optimizer.weight_decay=2", steps_of(torch.optim.AdamW, weight_decay=2.0)),
    "optimizer.momentum": Changes(
        "optimizer.momentum=0.5",
        steps_of(torch.optim.SGD, lr=0.05, weight_decay=1e-4, momentum=0.5, nesterov=True),
        "optimizer=sgd",
    ),
    "optimizer.layer_decay": Changes("optimizer.layer_decay=0.5", decayed_by_layer),
    # schedulers
    "scheduler._target_": Changes("scheduler=constant", lr_follows(lambda p, e: 1.0)),
    "scheduler.warmup": Changes("scheduler.warmup=0.5", lr_follows(lambda p, e: warmed(p, 0.5))),
    "scheduler.floor": Changes("scheduler.floor=0.3", lr_follows(lambda p, e: warmed(p, 0.05, 0.3))),
    "scheduler.cycles": Changes(
        "scheduler.cycles=2", lr_follows(lambda p, e: restarts(p, 2)), "scheduler=cosine_restarts"
    ),
    "scheduler.gamma": Changes("scheduler.gamma=0.5", lr_follows(lambda p, e: 0.5**e), "scheduler=exponential"),
    "scheduler.gamma of restarts": Changes(
        "scheduler.gamma=0.5", lr_follows(lambda p, e: restarts(p, 3, 0.5)), "scheduler=cosine_restarts"
    ),
    "scheduler.every": Changes("scheduler.every=1", lr_follows(lambda p, e: 0.1 ** int(e)), "scheduler=step"),
    "scheduler.rise": Changes(
        "scheduler.rise=0.6", lr_follows(lambda p, e: one_cycle(p, rise=0.6)), "scheduler=one_cycle"
    ),
    "scheduler.start": Changes(
        "scheduler.start=0.5", lr_follows(lambda p, e: one_cycle(p, start=0.5)), "scheduler=one_cycle"
    ),
    "scheduler.power": Changes("scheduler.power=2", lr_follows(lambda p, e: (1 - p) ** 2), "scheduler=poly"),
    "scheduler.patience": Changes(
        "scheduler.patience=1",
        partial(plateau_by_torch, patience=1, threshold=9.0),
        "scheduler=plateau epochs=6 scheduler.min_delta=9",
    ),
    "scheduler.min_delta": Changes(
        "scheduler.min_delta=9",
        partial(plateau_by_torch, threshold=9.0),
        "scheduler=plateau epochs=4 scheduler.patience=0",
    ),
    # phases
    "phases.*.share": Changes("phases.head.share=3", weights_stay(FIRST, {0, 1, 2}), TWO),
    "phases.*.trainable": Changes("phases.head.trainable=all", weights_stay(FIRST, set()), TWO),
    "phases.*.lr": Changes(
        "phases.train.lr=0.5",
        ensures(lambda a, b: b.lr[-1] == pytest.approx(0.5 * a.lr[-1]) and b.lr[0] == a.lr[0]),
        TWO,
    ),
    "phases.*.freeze_bn": Changes("phases.train.freeze_bn=true", weights_stay(MEAN, {0, 1, 2, 3}), TWO),
    "phases.*.scheduler": Changes(
        "+phases.train.scheduler=constant", ensures(lambda a, b: b.lr[6:] == [LR] * 6 and b.lr[:6] == a.lr[:6]), TWO
    ),
    "phases.*.augmentation": Changes(
        f"+phases.train.augmentation={{transforms:{FLIP}}}",
        flipped_only_in(1),
        TWO.replace("epochs=4", "epochs=2"),
    ),
    "phases.*.mixing": Changes("+phases.train.mixing=both", mixed_only_in(1), TWO.replace("epochs=4", "epochs=2")),
    "phases.*.image_size": Changes(
        "+phases.train.image_size=16",
        ensures(lambda a, b: [step.passes[0]["image"].shape[-1] for step in b.steps] == [32] * 6 + [16] * 6),
        TWO,
    ),
    "phases.*.rows": Changes(
        "+phases.head.rows=pseudo +phases.train.rows=real", pseudo_rows({0: 1, 1: 0}), f"{TWO} {PSEUDO} epochs=2"
    ),
    "phases.*.relabel": Changes("+phases.train.relabel=1", relabelled_in(1), f"{TWO} epochs=2"),
    "phases.*.start": Changes(
        "+phases.again={share:1,start:best}",
        second_phase_begins_at_the_best,
        f"{SGD} optimizer.lr=0.01 epochs=5 metric=log_loss +phases.wild={{share:3,lr:50}}",
    ),
    "phases.*.snapshot": Changes(
        "+phases.head.snapshot=true +phases.train.snapshot=true", snapshots("head", "train"), TWO
    ),
    # callbacks
    "callbacks": Changes(
        "+callbacks.timer={_target_:pytorch_lightning.callbacks.Timer}",
        ensures(lambda a, b: b.witness.callbacks - a.witness.callbacks == {"Timer"}),
        "epochs=1",
    ),
    "ema": Changes("ema=0.999", ema_by_hand(0.999), "epochs=4 optimizer.lr=0.01"),
    "ema of another decay": Changes("ema=0.6", ema_by_hand(0.6), "ema=0.999 epochs=4 optimizer.lr=0.01"),
    "ema of validation": Changes("ema=0.999", ema_is_validated, "epochs=4 optimizer.lr=0.01"),
    # views
    "tta.views": Changes("tta.views=[identity,vflip]", views_are(lambda x: [x, x.flip(-2)])),
    "tta.mean": Changes(
        "tta.mean=geometric",
        views_are(lambda x: [x, x.flip(-1)], geometric=True),
        "tta=flips optimizer.lr=0.01 epochs=6",
    ),
    "tta.scales": Changes(
        "tta.scales=[1.0,2.0]", views_are(lambda x: [x, resized(x, 64)]), "tta=scales tta.views=[identity]"
    ),
    "tta.crops": Changes(
        "tta.crops=[top-left,bottom-right]", views_are(lambda x: [cropped(x, 0, 0), cropped(x, 4, 4)]), "tta=five_crops"
    ),
    "tta.frames": Changes(
        "tta.frames=3",
        ensures(lambda a, b: [len(each.oof.header.tta["views"]) for each in (a, b)] == [4, 3]),
        f"tta=frames {UNITS}",
    ),
    "tta.margins": Changes(
        "tta.margins=[0,0.5]",
        ensures(lambda a, b: [len(each.oof.header.tta["views"]) for each in (a, b)] == [3, 2]),
        f"tta=margins {CROP}",
    ),
    "tta.draws": Changes("tta.draws=3", ensures(lambda a, b: not np.allclose(a.answers(), b.answers())), "tta=random"),
    "tta.transforms": Changes(f"tta.transforms={FLIP}", views_are(lambda x: [x.flip(-1)]), "tta=random tta.draws=2"),
    # metrics
    "metric._target_": Changes("metric=log_loss", score_is(lambda t, p: log_loss(t.argmax(1), p, labels=[0, 1, 2]))),
    "metric.beta": Changes(
        "metric.beta=0.5",
        score_is(lambda t, p: fbeta_score(t, p >= 0.5, beta=0.5, average="samples", zero_division=1)),
        task="multilabel",
    ),
    "metric.threshold": Changes(
        "metric.threshold=0.3",
        score_is(lambda t, p: fbeta_score(t, p >= 0.3, beta=2, average="samples", zero_division=1)),
        task="multilabel",
    ),
    "metric.threshold of macro_f1": Changes(
        "metric.threshold=0.3",
        score_is(lambda t, p: f1_score(t, p >= 0.3, average="macro")),
        "metric=macro_f1",
        "multilabel",
    ),
    "metric.positive": Changes(
        "metric.positive=red",
        score_is(lambda t, p: balanced_accuracy_score(t.argmax(1) == 2, p.argmax(1) == 2)),
        "metric=balanced_accuracy metric.positive=blue",
    ),
    "metric.per_image": Changes("metric.per_image=true", maps_score(per_image=True), "metric=dice", MASKS),
    "metric.background": Changes("metric.background=true", maps_score(background=True), "metric=dice", MASKS),
    "metric.ignore_index": Changes("metric.ignore_index=1", maps_score(ignored=1), f"metric=dice {WHOLE}", MASKS),
    **dict.fromkeys(
        [
            f"metric.{name}"
            for name in ("function", "row_id_column_name", "column", "columns", "greater_is_better", "pooled")
        ],
        Same("test_a_published_metric_gets_its_settings"),
    ),
    "metric.thresholds": Same("of boxes: test_detection"),
    "metric.most": Same("of boxes: test_detection"),
    # trainers
    "trainer.accelerator": Same("hardware; trainer=cpu here"),
    "trainer.devices": Same("hardware: test_devices"),
    "trainer.num_nodes": Same("hardware: test_nodes"),
    "trainer.strategy": Same("hardware: test_ddp"),
    "trainer.sync_batchnorm": Same("needs processes: test_ddp"),
    "trainer.precision": Changes(
        "trainer.precision=bf16-mixed", ensures(lambda a, b: b.steps[0].passes[0]["logits"].dtype == torch.bfloat16)
    ),
    "trainer.accumulate_grad_batches": Changes("trainer.accumulate_grad_batches=2", accumulated),
    "trainer.gradient_clip_val": Changes(
        "trainer.gradient_clip_val=0.01",
        ensures(lambda a, b: [s.moved for s in b.steps] == pytest.approx([0.01] * 6, rel=1e-3)),
        f"{SGD} optimizer.lr=1",
    ),
    "trainer.deterministic": Changes("trainer.deterministic=true", seen(deterministic=True)),
    "trainer.detect_anomaly": Changes("+trainer.detect_anomaly=true", seen(anomaly=True)),
    "trainer.limit_train_batches": Changes("trainer.limit_train_batches=2", short_epochs),
    # loggers
    "logger._target_": Changes(
        "logger=csv", ensures(lambda a, b: any(b.run.rglob("metrics.csv")) and not any(a.run.rglob("metrics.csv")))
    ),
    "logger.project": Same("a name at wandb: test_loggers"),
}


def flatten(values: Any, path: str = "") -> Iterator[str]:
    """The settings of nested mappings, those of phases and of other people's classes as one."""
    if isinstance(values, dict) and values and path not in ("model.options", "data.sizes"):
        for name, value in values.items():
            name = "*" if path == "phases" else name
            if name != "defaults":
                yield from flatten(value, f"{path}.{name}" if path else name)
    elif path:
        yield "phases.*.scheduler" if path.startswith("phases.*.scheduler") else path


def all_settings() -> set[str]:
    """Of the composed configuration and of every choice of every group."""
    from omegaconf import OmegaConf

    found = set(flatten(OmegaConf.to_container(compose_config(["experiment_name=test"]))))
    for folder in (OWNER, LIBRARY):
        for path in set(folder.rglob("*.yaml")) - {folder / "tune.yaml"}:  # what tools/tune.py tries: test_tuning
            if path.parent.name == "primatrix":  # a reader and a network of several pictures: test_units, test_pools
                continue
            text, values = path.read_text(), yaml.safe_load(path.read_text()) or {}
            group = path.relative_to(folder).parts[0]
            root = "@package _global_" in text or path.parent == folder
            found |= set(flatten(values if root else {group: values}))
    return {name for name in found if not name.startswith(("hydra", "outputs."))}


def test_every_setting_has_an_entry():
    listed = {name.split(" of ")[0] for name in SETTINGS}
    assert all_settings() - listed == set(), "add to SETTINGS what they change"
    assert listed - all_settings() == set(), "there are no such settings any more"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trainings by task and overrides, each made once."""
    root = write_world(tmp_path_factory.mktemp("wiring") / "world")
    save_file(
        {n: t.contiguous() for n, t in timm.create_model("test_resnet").state_dict().items()},
        root / "weights.safetensors",
    )
    made: dict[tuple[str, ...], Trained] = {}

    def train(task: str, *overrides: str) -> Trained:
        key = (task, *overrides)
        if key not in made:
            made[key] = Trained(root, root.parent / f"run{len(made)}", task, overrides)
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(False)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        # The code is the same for all, and reading it would take half of the time.
        patch.setattr(fold, "check_covered", lambda alias: None)
        patch.setattr(identity, "hash_code", lambda *_: {})
        yield train


@pytest.mark.parametrize("name", [name for name, entry in SETTINGS.items() if isinstance(entry, Changes)])
def test_a_setting_changes_what_it_is_about(name, trained):
    entry = SETTINGS[name]
    before = trained(entry.task, *entry.base.split())
    entry.check(before, trained(entry.task, *entry.base.split(), *entry.value.split()))


def test_a_published_metric_gets_its_settings(data):
    """Under the names that are set: the column of ids, columns of the table, labels at the threshold; its direction."""
    seen = []

    def function(solution, submission, ids):
        seen.append((solution, submission, ids))
        return float(len(seen))

    config = tiny_config(
        data,
        *("multilabel", "metric=published", "metric.row_id_column_name=image_id", "metric.column=tags"),
        *("metric.columns=[label]", "metric.threshold=0.3", "metric.greater_is_better=false", "metric.pooled=false"),
    )
    table = prepare_tiny(config).table
    metric = build_metric(config["metric"] | {"function": function}, config["task"], table.classes, table)
    assert not metric.greater_is_better and not metric.pooled
    values = np.full(table.target.shape, [0.4, 0.29, 0.31])
    metric(table.target, values, rows=row_records(table.frame))
    solution, submission, ids = seen[-1]
    assert ids == "image_id" and list(solution.columns) == ["image_id", "tags", "label"]
    assert set(submission["tags"]) == {"blue red"} and solution["label"].tolist() == table.frame["label"].tolist()


def test_pretrained_weights_are_asked_for(data, monkeypatch):
    """And only where it is set."""
    asked = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k.pop("pretrained")) or create(*a, **k))
    for value in ("true", "false"):
        new_network(tiny_config(data, "multiclass", f"model.pretrained={value}"))
    assert asked == [True, False]


def test_what_compile_compiles(data, tmp_path):
    """Before the first step; compiling itself takes longer than all of this."""

    class Stop(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.compiled = [part._compiled_call_impl is not None for part in pl_module.network.net.compiled()]
            raise OSError("seen")

    stop = Stop()
    with watched(stop), pytest.raises(OSError, match="seen"):
        train_folds(tiny_config(data, "multiclass", "model.compile=true", "fold=0"), tmp_path)
    assert stop.compiled == [True]
