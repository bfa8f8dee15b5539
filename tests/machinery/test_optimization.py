"""Optimizers: every parameter once, no decay where there should be none, and layer decay that reaches the lr."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from foldwise.errors import Refusal
from foldwise.models.networks import ImageNetwork
from foldwise.models.normalized import Normalized, set_trainable
from foldwise.models.optimization import build_optimizer, layer_factors, parameter_groups, scale_lr
from foldwise.settings import list_choices

CONFIGS = list(list_choices("optimizer").values())
# timm starts the last norm of each block at 0, which leaves the block without a gradient in the first step
TIMM = {"library": "timm", "name": "test_resnet", "options": {"zero_init_last": False}}
UNET = {"library": "smp", "name": "Unet", "encoder": "tu-test_resnet", "options": {"decoder_channels": [8] * 5}}
# by the way in which timm extracts features: flattened sequentials, a wrapped network
FLATTENED = {"library": "smp", "name": "Unet", "encoder": "tu-test_efficientnet"}
WRAPPED = {"library": "smp", "name": "FPN", "encoder": "tu-efficientvit_b0"}
VIT = {"library": "timm", "name": "test_vit"}


def network(architecture: dict[str, Any]) -> Normalized:
    net = ImageNetwork(**architecture, channels={"image": 3}, outputs={"logits": 4})
    return Normalized(net, {"image": ([0.5] * 3, [0.5] * 3)})


@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("architecture", [TIMM, UNET, VIT], ids=["timm", "smp", "vit"])
def test_every_parameter_once_also_when_frozen(architecture: dict[str, Any], layer_decay: float | None) -> None:
    net = network(architecture)
    set_trainable(net, "head")
    optimizer = build_optimizer(net, "adamw", 1e-3, 0.1, layer_decay)
    inside = [id(value) for group in optimizer.param_groups for value in group["params"]]
    assert sorted(inside) == sorted(id(value) for value in net.parameters())
    for group in optimizer.param_groups:
        if layer_decay is None:
            assert group["lr"] == 1e-3
        for value in group["params"]:
            assert value.ndim > 1 or group["weight_decay"] == 0
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}


def test_no_decay_on_norms_biases_and_what_the_network_exempts() -> None:
    net = network(VIT)
    decay = {id(value): group["weight_decay"] for group in parameter_groups(net, 1.0, 0.3) for value in group["params"]}
    exempt = 0
    for name, value in net.net.named_parameters():
        expected = 0.0 if name.endswith("bias") or "norm" in name or name in ("net.pos_embed", "net.cls_token") else 0.3
        exempt += name in ("net.pos_embed", "net.cls_token")
        assert decay[id(value)] == expected or value.ndim == 1, name
    assert exempt


@pytest.mark.parametrize("architecture", [TIMM, VIT], ids=["timm", "vit"])
def test_layer_decay_equals_timms(architecture: dict[str, Any]) -> None:
    from timm.optim import param_groups_layer_decay

    net = network(architecture).net
    expected = {
        id(value): group["lr_scale"]
        for group in param_groups_layer_decay(net.net, 0.1, layer_decay=0.5)
        for value in group["params"]
    }
    for group in build_optimizer(net, "sgd", 0.2, 0.1, layer_decay=0.5).param_groups:
        for value in group["params"]:
            assert group["lr"] == pytest.approx(0.2 * expected[id(value)])
    assert len(set(expected.values())) > 3


@pytest.mark.parametrize("architecture", [UNET, FLATTENED, WRAPPED], ids=["plain", "flattened", "wrapped"])
def test_layer_decay_of_a_segmentation_network(architecture: dict[str, Any]) -> None:
    """Every parameter of the encoder has a layer, the first one the smallest lr; the decoder has the full lr."""
    net = network(architecture).net
    factors = layer_factors(net, 0.5)
    names = [name for name, _ in net.named_parameters() if name.startswith("net.encoder.")]
    assert set(factors) == set(names)
    values = [factors[name] for name in names]
    assert values[0] == min(values) and len(set(values)) > 3 and max(values) <= 1
    lrs = {id(value): group["lr"] for group in parameter_groups(net, 0.1, 0.0, 0.5) for value in group["params"]}
    for name, value in net.named_parameters():
        assert lrs[id(value)] == pytest.approx(0.1 * factors.get(name, 1.0))
    assert lrs[id(net.get_parameter(names[0]))] < 0.02


def test_layer_decay_survives_a_scheduler() -> None:
    """torch's schedulers know `lr` alone; what timm writes to `lr_scale` they would ignore."""
    net = network(TIMM)
    optimizer = build_optimizer(net, "sgd", 1.0, layer_decay=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    optimizer.step()
    scheduler.step()
    stem = next(iter(net.parameters()))
    lrs = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    assert lrs[id(stem)] < 0.06 and max(lrs.values()) == pytest.approx(0.1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_choices_make_a_step(path: Path) -> None:
    net = network(TIMM)
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    optimizer = build_optimizer(net, **{str(key): value for key, value in config.items()})
    before = [value.clone() for value in net.parameters()]
    net({"image": torch.rand(4, 3, 32, 32)})["logits"].square().mean().backward()
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_sgd_is_nesterov_and_options_arrive() -> None:
    assert build_optimizer(network(TIMM), "sgd", 0.1, momentum=0.8).defaults["nesterov"] is True
    assert build_optimizer(network(TIMM), "sgd", 0.1, momentum=0.8).defaults["momentum"] == 0.8
    assert build_optimizer(network(TIMM), "adamw", 0.1, betas=[0.5, 0.9]).defaults["betas"] == (0.5, 0.9)


def test_an_lr_for_another_batch_size_is_scaled_where_that_is_asked_for() -> None:
    assert scale_lr(1e-3, 64, None) == 1e-3
    assert scale_lr(1e-3, 64, 256) == pytest.approx(2.5e-4)
    for reference in (0, 1.5, True, "256"):
        with pytest.raises(Refusal, match="lr_batch_size is"):
            scale_lr(1e-3, 64, reference)  # type: ignore[arg-type]


def test_refusals() -> None:
    net = network(TIMM)
    with pytest.raises(Refusal, match="adamw"):
        build_optimizer(net, "adamv", 0.1)
    with pytest.raises(Refusal, match="nesterof"):
        build_optimizer(net, "sgd", 0.1, nesterof=True)
    with pytest.raises(Refusal, match="Invalid beta parameter"):
        build_optimizer(net, "adam", 0.1, betas=[2, 2])
    with pytest.raises(Refusal, match="layer_decay"):
        build_optimizer(net, "sgd", 0.1, layer_decay=1.5)
    native = network({"library": "smp", "name": "Unet", "encoder": "mobilenet_v2"})
    with pytest.raises(Refusal, match="timm encoder"):
        build_optimizer(native, "sgd", 0.1, layer_decay=0.5)
