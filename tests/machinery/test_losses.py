"""Losses against torch, scikit-learn, torchvision, closed forms and brute force."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from foldwise.errors import Refusal
from foldwise.models.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    WeightedSum,
    balanced_class_weights,
)
from foldwise.settings import list_choices

IGNORE = 255
CONFIGS = list(list_choices("loss").values())
PIXEL_LOSSES = [CrossEntropy(), Focal(task="segmentation"), Dice(), Lovasz()]


def classification(classes: int = 4, batch: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, classes, generator=generator)
    labels = torch.arange(batch) % classes
    return logits, F.one_hot(labels, classes).float(), torch.rand(batch, generator=generator) + 0.5


def segmentation(classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, (3, 6, 5), generator=generator)
    target[0, :3] = IGNORE  # samples with different numbers of valid pixels
    target[1, 0, 0] = IGNORE
    return 2 * torch.randn(3, classes, 6, 5, generator=generator), target


def test_cross_entropy_equals_sklearn_with_sample_weights() -> None:
    from sklearn.metrics import log_loss

    logits, target, weight = classification()
    expected = log_loss(
        target.argmax(1), logits.double().softmax(1).numpy(), sample_weight=weight.numpy(), labels=range(4)
    )
    # scikit-learn divides by the sum of the weights, we by the number of samples
    assert CrossEntropy()(logits, target, weight).item() == pytest.approx(expected * weight.mean().item(), rel=1e-5)
    assert CrossEntropy()(logits, target).item() == pytest.approx(
        log_loss(target.argmax(1), logits.double().softmax(1).numpy(), labels=range(4)), rel=1e-5
    )


def test_cross_entropy_smoothing_class_weights_and_soft_targets_by_hand() -> None:
    logits, _, weight = classification()
    target = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    target /= target.sum(1, keepdim=True)
    class_weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    smoothed = 0.9 * target + 0.1 / 4
    samples = -(class_weights * smoothed * logits.log_softmax(1)).sum(1)
    loss = CrossEntropy(label_smoothing=0.1, class_weights=class_weights.tolist())
    assert loss(logits, target, weight).item() == pytest.approx((weight * samples).mean().item(), rel=1e-5)


def test_cross_entropy_of_pixels_is_a_mean_of_sample_means() -> None:
    logits, target = segmentation()
    weight = torch.tensor([1.0, 3.0, 0.5])
    samples = []
    for image, mask in zip(logits, target, strict=True):
        pixels = [
            -image[:, row, column].log_softmax(0)[mask[row, column]]
            for row in range(6)
            for column in range(5)
            if mask[row, column] != IGNORE
        ]
        samples.append(torch.stack(pixels).mean())
    expected = (weight * torch.stack(samples)).mean().item()
    assert CrossEntropy()(logits, target, weight).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", ["multiclass", "segmentation"])
def test_focal_without_gamma_is_cross_entropy(task: str) -> None:
    options: dict[str, Any] = {"class_weights": [0.5, 1.0, 2.0, 4.0]}
    logits, target, weight = classification() if task == "multiclass" else (*segmentation(), torch.ones(3))
    focal, plain = Focal(gamma=0, task=task, **options), CrossEntropy(**options)
    assert focal(logits, target, weight).item() == pytest.approx(plain(logits, target, weight).item(), rel=1e-5)


def test_focal_by_hand() -> None:
    logits = torch.tensor([[math.log(0.9), math.log(0.1)], [math.log(0.3), math.log(0.7)]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = (0.1**2 * -math.log(0.9) + 0.7**2 * -math.log(0.3)) / 2
    assert Focal(gamma=2)(logits, target).item() == pytest.approx(expected, rel=1e-5)
    mask = torch.zeros(2, 1, 1, dtype=torch.int64)
    pixels = Focal(gamma=2, task="segmentation")(logits[..., None, None], mask)
    assert pixels.item() == pytest.approx(expected, rel=1e-5)


def test_multilabel_focal_equals_torchvision() -> None:
    from torchvision.ops import sigmoid_focal_loss

    logits, target, weight = classification()
    expected = sigmoid_focal_loss(logits, target, alpha=-1, gamma=2, reduction="none").mean(1)
    loss = Focal(task="multilabel")(logits, target, weight)
    assert loss.item() == pytest.approx((weight * expected).mean().item(), rel=1e-5)


def test_binary_cross_entropy_equals_torch() -> None:
    logits, target, _ = classification()
    pos_weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=pos_weight)(logits, 0.8 * target + 0.1)
    loss = BinaryCrossEntropy(label_smoothing=0.2, class_weights=pos_weight)(logits, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    weight = torch.tensor([0.0, 0, 0, 0, 0, 6])
    assert BinaryCrossEntropy()(logits, target, weight).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits[5], target[5]).item(), rel=1e-5
    )


def test_dice_by_brute_force() -> None:
    logits, target = segmentation()
    probability, valid = logits.softmax(1), target != IGNORE
    values = []
    for label in range(4):
        truth = (target == label) & valid
        p = probability[:, label] * valid
        values.append(1 - 2 * (p * truth).sum() / (p.sum() + truth.sum()))
    assert Dice()(logits, target).item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-4)
    weights = torch.tensor([1.0, 0, 0, 3])
    expected = (weights * torch.stack(values)).sum() / 4
    assert Dice(class_weights=weights)(logits, target).item() == pytest.approx(expected.item(), rel=1e-4)


def test_lovasz_of_a_hard_prediction_is_one_minus_iou() -> None:
    """The Lovász extension equals the set function at its corners."""
    _, target = segmentation()
    predicted = torch.randint(4, target.shape, generator=torch.Generator().manual_seed(5))
    logits = 200.0 * F.one_hot(predicted, 4).permute(0, 3, 1, 2)
    valid = target != IGNORE
    iou = [
        ((predicted == c) & (target == c) & valid).sum() / (((predicted == c) | (target == c)) & valid).sum()
        for c in range(4)
    ]
    assert Lovasz()(logits, target).item() == pytest.approx(1 - torch.stack(iou).mean().item(), abs=1e-5)


@pytest.mark.parametrize("loss", PIXEL_LOSSES, ids=lambda loss: type(loss).__name__)
def test_ignored_pixels_count_nowhere(loss: torch.nn.Module) -> None:
    logits, target = segmentation()
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    ignored = (target == IGNORE).unsqueeze(1).expand_as(logits)
    assert logits.grad is not None and (logits.grad[ignored] == 0).all() and (logits.grad[~ignored] != 0).any()
    other = torch.where(ignored, 50.0, logits.detach())
    assert loss(other, target).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("loss", PIXEL_LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_batch_of_ignored_pixels_gives_zero_with_a_graph(loss: torch.nn.Module) -> None:
    logits, target = segmentation()
    logits.requires_grad_()
    value = loss(logits, torch.full_like(target, IGNORE), torch.ones(3))
    value.backward()
    assert value.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


@pytest.mark.parametrize("loss", [Dice(), Lovasz()], ids=lambda loss: type(loss).__name__)
def test_batch_losses_refuse_sample_weights(loss: torch.nn.Module) -> None:
    logits, target = segmentation()
    with pytest.raises(Refusal, match="weight"):
        loss(logits, target, torch.tensor([1.0, 2.0, 1.0]))
    expected = 2 * loss(logits, target).item()
    assert loss(logits, target, torch.full((3,), 2.0)).item() == pytest.approx(expected)
    with pytest.raises(Refusal, match="segmentation"):
        loss(*classification()[:2])


def test_weighted_sum() -> None:
    logits, target = segmentation()
    first, second = CrossEntropy(), Dice()
    total = WeightedSum([{"loss": first, "weight": 0.5}, {"loss": second, "weight": 2}])
    expected = 0.5 * first(logits, target) + 2 * second(logits, target)
    assert total(logits, target, torch.ones(3)).item() == pytest.approx(expected.item())


def test_refusals() -> None:
    logits, target, _ = classification()
    with pytest.raises(Refusal, match="3 values for 4 classes"):
        CrossEntropy(class_weights=[1, 1, 1])(logits, target)
    with pytest.raises(Refusal, match="multi-label"):
        BinaryCrossEntropy()(*segmentation())
    with pytest.raises(Refusal, match="regression"):
        Focal(task="regression")


def test_balanced_class_weights_equal_sklearn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [10, 3, 1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_class_weights([10, 3, 1]) == pytest.approx(expected.tolist())
    assert balanced_class_weights([10, 0, 30]) == pytest.approx([2, 1, 2 / 3])
    assert balanced_class_weights([5, 0, 10], rows=10) == [1.0, 1.0, 1.0]
    assert balanced_class_weights([2, 8], rows=10) == [4.0, 0.25]
    assert balanced_class_weights([10, 3, 1], power=0.5) == pytest.approx(np.sqrt(expected).tolist())
    assert balanced_class_weights([2, 8], rows=10, power=0.5) == [2.0, 0.5]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_choices_give_a_gradient(path: Path) -> None:
    pixels, layers = path.stem in ("dice", "lovasz", "ce_dice"), path.stem == "bce_dice"
    task = "segmentation" if pixels else "multilabel" if path.stem in ("bce", "brier") else "multiclass"
    # Weights that are named get their numbers from the data, in training/build.py.
    config = OmegaConf.create(path.read_text().replace("class_weights: sqrt_balanced", "class_weights: null"))
    root = OmegaConf.create({"task": task, "data": {"ignore_index": IGNORE}, "loss": config})
    loss = instantiate(root.loss)
    logits, target = segmentation() if pixels or layers else classification()[:2]
    target = (logits > 0).float() if layers else target
    logits.requires_grad_()
    loss(logits, target, torch.ones(len(logits))).backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad != 0).any()
