"""Mixup and CutMix: each kind of field against brute force and torchvision, and what cannot be mixed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foldwise.data.fields import Field, FieldKind
from foldwise.errors import Refusal
from foldwise.models.mixing import Mix

FIELDS = {"image": Field("image"), "target": Field("values", train_only=True)}
KINDS: dict[str, FieldKind] = {"image": "image", "depth": "map", "seen": "mask", "age": "values", "sex": "codes"}
ALL = {name: Field(kind) for name, kind in KINDS.items()} | {"target": Field("values", train_only=True)}
OFF_MASKS = {name: field for name, field in ALL.items() if field.kind != "mask"}


def batch_of(size: int = 5, height: int = 12, width: int = 9) -> dict[str, Tensor]:
    """A batch in which no two numbers are alike, with a stack beside the pictures."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(256, (size, 3, height, width), generator=generator, dtype=torch.uint8),
        "depth": torch.rand(size, 2, 1, height, width, generator=generator),
        "seen": torch.randint(7, (size, height, width), generator=generator),
        "age": torch.rand(size, generator=generator),
        "sex": torch.randint(9, (size, 4), generator=generator),
        "target": torch.eye(size),
        "weight": torch.rand(size, generator=generator) + 0.5,
        "row": torch.arange(size),
    }


def neighbour(values: np.ndarray) -> np.ndarray:
    """What each sample is mixed with: the one before it."""
    return np.stack([values[(place - 1) % len(values)] for place in range(len(values))])


def by_hand(batch: dict[str, Tensor], lam: float, box: np.ndarray | None) -> dict[str, np.ndarray]:
    """The mixed batch in float64, sample by sample.

    Args:
        box: (H, W) bool, what is cut out of the neighbour.
    """
    arrays = {name: value.double().numpy() for name, value in batch.items()}
    arrays["image"] /= 255
    mixed = {}
    for name in ("image", "depth", "seen"):
        if box is not None:
            mixed[name] = np.where(box, neighbour(arrays[name]), arrays[name])
        elif name != "seen":
            mixed[name] = lam * arrays[name] + (1 - lam) * neighbour(arrays[name])
    for name in ("age", "weight"):
        mixed[name] = lam * arrays[name] + (1 - lam) * neighbour(arrays[name])
    weighed = arrays["target"] * arrays["weight"][:, None]
    mixed["target"] = (lam * weighed + (1 - lam) * neighbour(weighed)) / mixed["weight"][:, None]
    return mixed | {"sex": arrays["sex"], "sex_other": neighbour(arrays["sex"]), "row": arrays["row"]}


@pytest.mark.parametrize("seed", range(6))
def test_mixup_of_every_kind_by_hand(seed: int) -> None:
    batch = {name: value for name, value in batch_of().items() if name != "seen"}
    before = {name: value.clone() for name, value in batch.items()}
    torch.manual_seed(seed)
    mixed = Mix(0.8, 0, OFF_MASKS)(batch)
    expected = by_hand(batch | {"seen": torch.zeros(1)}, float(mixed["lam"]), None)
    assert mixed.keys() == {*batch, "sex_other", "lam"} and mixed["lam"].ndim == 0
    for name, values in expected.items():
        np.testing.assert_allclose(mixed[name], values, atol=1e-6, err_msg=name)
    assert all(torch.equal(batch[name], value) for name, value in before.items())  # the batch itself stays
    assert {name: mixed[name].dtype for name in ("sex", "sex_other", "row")} == dict.fromkeys(
        ("sex", "sex_other", "row"), torch.int64
    )


def test_cutmix_of_every_kind_by_hand() -> None:
    boxes = set()
    for seed in range(12):
        batch = batch_of()
        torch.manual_seed(seed)
        mixed = Mix(0, 1.0, ALL)(batch)
        share = float(mixed["lam"])
        # the box, found in the mask alone; it must be that of all spatial fields, and of every sample
        places = (mixed["seen"] != batch["seen"]).any(0).nonzero()
        box = np.zeros((12, 9), bool)
        if len(places):
            (top, left), (bottom, right) = places.min(0).values.tolist(), places.max(0).values.tolist()
            box[top : bottom + 1, left : right + 1] = True
        assert share == pytest.approx(1 - box.mean(), abs=1e-6)
        for name, values in by_hand(batch, share, box).items():
            np.testing.assert_allclose(mixed[name], values, atol=1e-6, err_msg=f"{name}, seed {seed}")
        assert mixed["seen"].dtype == torch.int64 and mixed.keys() == {*batch, "sex_other", "lam"}
        boxes.add(box.tobytes())
    assert len(boxes) > 8


@pytest.mark.parametrize("cut", [False, True], ids=["mixup", "cutmix"])
def test_images_and_targets_are_those_of_torchvision_to_the_byte(cut: bool) -> None:
    from torchvision.transforms import v2

    theirs: Any = (v2.CutMix if cut else v2.MixUp)(alpha=0.7)
    ours = Mix(0 if cut else 0.7, 0.7 if cut else 0, FIELDS)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        image, target = torch.rand(6, 3, 11, 14, generator=generator), torch.rand(6, 4, generator=generator)
        weight = torch.rand(6, generator=generator) + 0.5
        torch.manual_seed(seed)
        torch.randint(1, ())  # which of the two it is, where there is one
        # the weight as one more class: by it, a sample counts in its target
        expected, labels = theirs(image, torch.cat([target * weight[:, None], weight[:, None]], 1))
        torch.manual_seed(seed)
        mixed = ours({"image": image, "target": target, "weight": weight})
        assert torch.equal(mixed["image"], expected)
        assert torch.equal(mixed["target"], labels[:, :-1] / labels[:, -1:])
        assert torch.equal(mixed["weight"], labels[:, -1])


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_mix_keeps_image_target_and_weight_together(alphas: tuple[float, float]) -> None:
    """Images are constant and name their class, so the mean of a mixed image tells the target that it must have."""
    torch.manual_seed(0)
    classes = 4
    image = (torch.arange(classes).view(-1, 1, 1, 1) * 60).expand(classes, 3, 32, 32).to(torch.uint8)
    mix, seen = Mix(*alphas, FIELDS), []
    for _ in range(8):
        mixed = mix({"image": image, "target": torch.eye(classes), "weight": torch.ones(classes)})
        target = mixed["target"]
        seen.append(target[0].max().item())
        assert mixed["image"].dtype == torch.float32 and torch.allclose(mixed["weight"], torch.ones(classes))
        assert torch.allclose(target.sum(1), torch.ones(classes))
        colour = (target @ torch.arange(classes).float()) * 60 / 255
        assert torch.allclose(mixed["image"].mean((1, 2, 3)), colour, atol=1e-4)
    assert min(seen) < 0.95 and len(set(seen)) > 4


def test_both_are_taken_by_equal_chance() -> None:
    """A mixed image has values in between, a cut one has not."""
    torch.manual_seed(0)
    mix, cuts = Mix(1.0, 1.0, FIELDS), 0
    image = torch.eye(2).view(2, 1, 1, 2).expand(2, 1, 8, 2).contiguous()
    for _ in range(200):
        mixed = mix({"image": image, "target": torch.eye(2), "weight": torch.ones(2)})["image"]
        cuts += bool(((mixed == 0) | (mixed == 1)).all())
    assert 75 < cuts < 125


def test_mix_weighs_targets_by_the_samples_weights() -> None:
    torch.manual_seed(3)
    batch = {"image": torch.rand(2, 3, 8, 8), "target": torch.eye(2), "other": torch.eye(2)}
    mixed = Mix(1.0, 0, FIELDS | {"other": Field("values")})(batch | {"weight": torch.tensor([2.0, 0.0])})
    assert mixed["weight"].sum().item() == pytest.approx(2.0)
    # a sample of weight 0 has no say in the target, and as much as any in values that are no target
    assert torch.allclose(mixed["target"], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert float(mixed["other"][0, 0]) == pytest.approx(float(mixed["lam"]))
    nothing = Mix(1.0, 0, FIELDS)(batch | {"weight": torch.zeros(2)})
    assert nothing["target"].isfinite().all()


def test_mix_off_and_refused() -> None:
    batch = {"image": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "target": torch.eye(2), "weight": torch.ones(2)}
    off = Mix(0, 0, FIELDS)
    assert not off and off(batch) is batch
    assert not Mix(0, 0, ALL) and Mix(0, 1, ALL)
    with pytest.raises(Refusal, match=r"the masks seen.*mixing=cutmix"):
        Mix(0.2, 1.0, ALL)
    ragged = FIELDS | {"notes": Field("values", ragged=True)}
    for alphas in ((0.2, 0), (0, 0.2)):
        with pytest.raises(Refusal, match=r"notes differ in length.*mixing=none"):
            Mix(*alphas, ragged)
    assert not Mix(0, 0, ragged)
    with pytest.raises(Refusal, match="must be 0 or more"):
        Mix(-0.1, 0, FIELDS)
    with pytest.raises(Refusal, match="mixing=mixup"):
        Mix(0, 1.0, {"age": Field("values")})
