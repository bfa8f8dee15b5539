"""The rules of a plan: from facts to settings, each with its reason. docs/plan.md says where each was measured.

A rule gets the facts and a draft (network, image size, epochs) and returns settings, by name as on the command line,
and a sentence. Which draft fits the budget is decided in planning/budget.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from foldwise.planning.facts import Facts, Network

HUNDREDS, TEN_THOUSANDS = 1_000, 20_000  # images to train on: fewer; at least
MULTIPLE = 32  # pixels; strides of the networks
SMALLEST, USUAL = 64, 224  # pixels of a side
LONG = 5_000  # steps of a training
GIGABYTES = 2  # of memory that a fold needs on a CPU


class Draft(NamedTuple):
    """What the budget decides.

    Attributes:
        network: None: from scratch.
        batches: of an epoch; None: all images.
    """

    network: Network | None
    size: int
    epochs: int
    batches: int | None = None


class Choice(NamedTuple):
    """Settings and their reason; a name without a dot may be a group."""

    settings: Mapping[str, Any]
    reason: str


class Length(NamedTuple):
    """Epochs worth training: the least and the most, and of these those of the head alone."""

    least: int
    most: int
    head: int


def length_of(facts: Facts) -> Length:
    """The lengths between which the budget decides."""
    if facts.task.name == "retrieval":
        return Length(20, 60, 0)
    if facts.masks:  # in steps of 8 images: 600 to 1,200
        steps = max(1, facts.rows // 8)
        return Length(max(2, 600 // steps), max(8, 1_200 // steps), 0)
    if not facts.pretrained:
        return Length(5, 60 if facts.rows < TEN_THOUSANDS else 30, 0)
    if facts.rows < TEN_THOUSANDS:
        return Length(4, 13, 3)
    return Length(2, 20, 1)


def sizes_of(facts: Facts) -> list[int]:
    """Image sizes to consider, of the shorter side, from large to small."""
    side = min(facts.height, facts.width)
    if facts.masks and facts.gpus:
        largest = 512
    else:
        largest = USUAL if facts.gpus or not facts.masks else 192
    wanted = min(largest, max(SMALLEST if facts.pretrained else MULTIPLE, -(-side // MULTIPLE) * MULTIPLE))
    least = max(MULTIPLE, wanted // 2 // MULTIPLE * MULTIPLE) if wanted > SMALLEST else wanted
    return list(range(wanted, least - 1, -MULTIPLE))


def network(facts: Facts, draft: Draft) -> Choice:
    if draft.network is None:
        name = "resnet18" if facts.gpus else "test_resnet"
        small = "" if facts.gpus else ", a tiny one, which a CPU can train"
        settings: dict[str, Any] = {"model.pretrained": False}
        if facts.masks:
            settings |= {"model": "unet" if facts.gpus else "tiny_unet", "model.encoder": f"tu-{name}"}
        else:
            settings |= {"model": "resnet" if facts.gpus else "tiny", "model.name": name}
        return Choice(settings | {"data.normalize": "dataset"}, f"{name} from scratch{small}: {facts.missing}")
    chosen = draft.network
    settings = {"model.weights": chosen.weights, "model.pretrained": chosen.pretrained}
    if facts.masks:
        settings |= {"model": "unet_lite", "model.encoder": f"tu-{chosen.name}"}
        shown = f"U-Net on {chosen.name}"
    else:
        settings |= {"model": "efficientnet_lite", "model.name": chosen.name}
        shown = chosen.name
    larger = [other.name for other in facts.networks[facts.networks.index(chosen) + 1 :]]
    reason = f"{shown}, from pretrained weights"
    if larger:
        reason += f"; {' and '.join(larger)} would not fit the budget at full size and length"
    normalize = "weights" if facts.rgb8 else "dataset"
    return Choice(settings | {"data.normalize": normalize}, reason)


def pixels(facts: Facts, draft: Draft) -> Choice:
    sides, wanted = image_sides(facts, draft.size), sizes_of(facts)[0]
    fit, why = "stretch", "all images have these proportions: nothing is cut or distorted"
    if not facts.alike and facts.masks:
        why = "every pixel is predicted, so nothing is cut"
    elif not facts.alike:
        fit, why = "crop", "proportions differ, and are kept; what is at the borders is cut"
    shown = f"{sides[0]} x {sides[1]} pixels, {fit}: {why}"
    if draft.size < wanted:
        shown += f"; full size, {wanted} pixels, costs more"
    elif min(facts.height, facts.width) > draft.size:
        shown += "; larger images cost more, with the square of the side"
    if facts.object_px is not None and (seen := facts.object_px * draft.size / min(facts.height, facts.width)) < 8:
        shown += f". The smallest class is about {seen:.0f} pixels wide at this size: it may be missed"
    return Choice({"data.image_size": list(sides), "data.fit": fit}, shown)


def image_sides(facts: Facts, size: int) -> tuple[int, int]:
    """Height and width in the images' proportions, if these are alike, with `size` as the shorter side."""
    if facts.square or not (facts.alike or facts.masks):
        return size, size
    short = min(facts.height, facts.width)
    height, width = (max(1, round(size * side / short / MULTIPLE)) * MULTIPLE for side in (facts.height, facts.width))
    return height, width


def batch(facts: Facts, draft: Draft) -> Choice:
    size, why = 32, "the learning rates below are for it"
    if facts.masks:
        size, why = 8, "masks need memory, and hundreds of images need steps"
    elif draft.network is None and facts.rows < 5_000 and facts.task.name != "retrieval":
        size, why = 16, "a few thousand images need many steps from scratch"
    elif facts.gpus and facts.rows >= TEN_THOUSANDS:
        size, why = 128, "it fills a GPU, and leaves hundreds of steps an epoch"
    while size > max(4, facts.rows // 4):
        size, why = size // 2, "few images need steps"
    return Choice({"batch_size": size}, f"{size}: {why}")


def steps_of(facts: Facts, draft: Draft) -> int:
    return draft.epochs * (draft.batches or facts.rows // batch(facts, draft).settings["batch_size"])


def learning(facts: Facts, draft: Draft) -> Choice:
    """Length, learning rates, phases and freezing."""
    epochs: dict[str, Any] = {"epochs": draft.epochs, "scheduler": "one_cycle"}
    part = ""
    if draft.batches:
        epochs["trainer.limit_train_batches"] = draft.batches
        part = f"; {draft.batches} batches an epoch, of other images each time: the budget is too short for all"
    single = epochs | {"phases": "single"}
    if draft.network is None:
        return Choice(
            single | {"optimizer.lr": 0.002 if facts.gpus else 0.004}, f"all at a high learning rate: new weights{part}"
        )
    if facts.masks or facts.task.name == "retrieval":
        return Choice(single | {"optimizer.lr": 0.001}, f"everything trains at once at 0.001: most of it is new{part}")
    share = length_of(facts)
    head = min(share.head, max(1, draft.epochs * share.head // share.most))
    freeze = steps_of(facts, draft) < LONG
    lr, words = (0.1, "tenth") if facts.rows < HUNDREDS else (0.2, "fifth")
    why = f"then everything at a {words} of that learning rate"
    if freeze:
        why += ", with frozen BatchNorm: in a short training the pretrained statistics are better"
    settings = epochs | {
        "phases": "frozen_warmup",
        "optimizer.lr": 0.005,
        "optimizer.weight_decay": 0.05,
        "phases.head.share": head,
        "phases.train.share": draft.epochs - head,
        "phases.train.lr": lr,
        "phases.train.freeze_bn": freeze,
    }
    return Choice(settings, f"first {head} of {draft.epochs} epochs for the new head alone (a probe), {why}{part}")


def augmentation(facts: Facts, draft: Draft) -> Choice:
    if not facts.rgb8:
        return Choice({"augmentation": "geometric", "tta": "none"}, "geometric: the values are measurements, and stay")
    if draft.network is None and not facts.masks:
        return Choice({"augmentation": "light", "tta": "none"}, "light: safe for signs and letters too")
    mirrored = "mirror images must mean the same; for letters or signs: augmentation=light tta=none"
    if facts.masks or (facts.rows >= HUNDREDS and draft.epochs >= 8):
        return Choice({"augmentation": "photo", "tta": "flips"}, f"photo, flips in prediction too: {mirrored}")
    return Choice({"augmentation": "flip", "tta": "flips"}, f"flips alone, for few images or epochs: {mirrored}")


def loss(facts: Facts, draft: Draft) -> Choice:
    name = facts.task.name
    if name == "segmentation":
        why = f"the rarest class has {facts.rarest:.1%} of the pixels"
        if facts.columns > 2:
            return Choice({"loss": "ce_dice"}, f"cross-entropy with weights for rare classes, and Dice: {why}")
        names = ("CrossEntropy", "Dice")
        parts = [{"_target_": f"foldwise.models.losses.{one}", "ignore_index": "${data.ignore_index}"} for one in names]
        terms = [{"weight": 1.0, "loss": part} for part in parts]
        return Choice({"loss.terms": terms}, f"cross-entropy and Dice, which sees small objects without weights: {why}")
    if name == "segmentation_overlapping":
        return Choice({"loss": "bce_dice"}, "cross-entropy of each class, and Dice")
    if name == "segmentation_soft":
        return Choice({"loss": "bce"}, "cross-entropy takes soft targets")
    if name == "multiclass" and facts.metric == "LogLoss":
        return Choice({"loss": "cross_entropy"}, "cross-entropy, not smoothed, as the metric scores the probabilities")
    if name == "multiclass" and facts.metric in ("MacroF1", "BalancedAccuracy") and facts.rarest < 0.5 / facts.columns:
        balanced = {"loss": "cross_entropy", "loss.class_weights": "sqrt_balanced"}
        return Choice(
            balanced, f"weighted: the metric counts the rarest class, {facts.rarest:.1%}, as much as the others"
        )
    if name == "multiclass" and facts.metric == "QuadraticKappa":
        return Choice({"loss": "ordinal"}, "ordinal: the metric counts how many grades a prediction is off")
    if name == "multiclass":
        return Choice({"loss": "cross_entropy", "loss.label_smoothing": 0.1}, "cross-entropy, smoothed by 0.1")
    if name == "multilabel":
        return Choice({"loss": "bce", "loss.label_smoothing": 0.1}, "cross-entropy of each label, smoothed by 0.1")
    if name == "regression" and facts.metric in ("Rmsle", "Mape"):
        return Choice(
            {"loss": "mse", "data.transform": "log1p"}, f"squared error of log(1 + x), as {facts.metric} counts ratios"
        )
    if name == "regression":
        return Choice({"loss": "mae" if facts.metric == "Mae" else "mse"}, "the error that the metric counts")
    settings = {
        "model._target_": "foldwise.models.identities.IdentityNetwork",
        "model.width": 128,
        "module._target_": "foldwise.models.identities.IdentityModule",
        "data.sampling": {"_target_": "foldwise.data.sampling.Identities", "images": 4},
    }
    if draft.network is None or draft.epochs >= 40:
        return Choice(settings | {"model.subcentres": 1, "loss": "arcface"}, "ArcFace, which needs tens of epochs")
    softmax = {"model.subcentres": 0, "loss": "cross_entropy"}
    return Choice(settings | softmax, "plain softmax: ArcFace is not learnt in so few epochs")


def average(facts: Facts, draft: Draft) -> Choice:
    """EMA and validation."""
    every = max(1, draft.epochs // 10)
    steps = steps_of(facts, draft)
    ema = 0.998 if steps >= LONG else None
    why = f"EMA over {steps:,} steps" if ema else f"last weights: {steps:,} steps are too few for an EMA"
    return Choice(
        {"ema": ema, "validate_every": every},
        f"{why}; validation {'each epoch' if every == 1 else f'every {every} epochs'}",
    )


def machine(facts: Facts, draft: Draft) -> Choice:
    if facts.gpus:
        at_once, workers = min(facts.models, facts.gpus), max(1, min(16, facts.cpus // min(facts.models, facts.gpus)))
        settings = {"data.workers": workers, "trainer.precision": "16-mixed", "fold_workers": at_once}
        return Choice(settings, f"half precision, a fold for each of {at_once} GPUs, {workers} reader processes a fold")
    settings = {"data.workers": min(2, facts.cpus), "trainer.precision": "32-true", "fold_workers": 1}
    if draft.network is not None:
        return Choice(settings, "one fold after another, each on all cores")
    at_once = max(1, min(facts.models, facts.cpus // 2, int(facts.memory // GIGABYTES)))
    settings |= {"data.workers": 1, "threads": 1, "fold_workers": at_once}
    return Choice(settings, f"{at_once} folds at once, with a thread each: a tiny network is fastest with one")


RULES: dict[str, Callable[[Facts, Draft], Choice]] = {
    "network": network,
    "pixels": pixels,
    "batch": batch,
    "learning": learning,
    "augmentation": augmentation,
    "loss": loss,
    "average": average,
    "machine": machine,
}


def settings_of(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """The settings of all rules together."""
    return {name: value for choice in choices.values() for name, value in choice.settings.items()}
