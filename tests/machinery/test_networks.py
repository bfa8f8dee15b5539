"""Networks: names, channels, weights from files, normalisation, and what is frozen stays frozen."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from foldwise.errors import Refusal
from foldwise.models.network import Batch, Network
from foldwise.models.networks import ImageNetwork, build_network, pretrained_normalization
from foldwise.models.normalized import Normalized, enable_gradient_checkpointing, set_trainable
from foldwise.settings import list_choices

CONFIGS = list(list_choices("model").values())
TIMM = {"library": "timm", "name": "test_resnet", "options": {}}
UNET = {"library": "smp", "name": "Unet", "encoder": "tu-test_resnet", "options": {"decoder_channels": [8] * 5}}
# an encoder of smp's own
NATIVE = {"library": "smp", "name": "FPN", "encoder": "mobilenet_v2", "options": {}}


def image_network(architecture: dict[str, Any], channels: int = 3, classes: int = 4) -> ImageNetwork:
    return ImageNetwork(**architecture, channels={"image": channels}, outputs={"logits": classes})


def normalized(architecture: dict[str, Any]) -> Normalized:
    return Normalized(image_network(architecture), {"image": ([0.5] * 3, [0.2] * 3)})


def logits(net: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    return net({"image": image})["logits"]


class Same(Network):
    """Gives back what it gets."""

    def forward(self, batch: Batch) -> Batch:
        return batch


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of the tiny network, with the 1000 classes and 3 channels that its published weights have."""
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
@pytest.mark.parametrize("architecture", [TIMM, UNET, NATIVE], ids=["timm", "tu", "smp"])
def test_channels(architecture: dict[str, Any], channels: int) -> None:
    net = build_network(architecture, channels, 5).eval()
    out = net(torch.rand(2, channels, 64, 96))
    assert out.shape == ((2, 5) if architecture is TIMM else (2, 5, 64, 96))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_local_weights_are_loaded_into_timm(weights: Path, channels: int) -> None:
    net, file = build_network(TIMM, channels, 7, weights), read(weights)
    state = net.state_dict()
    stem = "conv1.0.weight" if "conv1.0.weight" in file else "conv1.weight"
    same = [name for name in file if not name.startswith("fc.") and name != stem]
    assert all(torch.equal(state[name], file[name]) for name in same) and len(same) > 10
    assert state["fc.weight"].shape[0] == 7
    if channels == 3:
        assert torch.equal(state[stem], file[stem])
    elif channels == 1:
        assert torch.allclose(state[stem], file[stem].sum(1, keepdim=True))
    else:  # red is repeated; the sum of the answers stays
        assert torch.allclose(state[stem], file[stem][:, [0, 1, 2, 0]] * 3 / 4)


def test_local_weights_are_loaded_into_the_encoder(weights: Path) -> None:
    encoder = build_network(UNET, 3, 4, weights).encoder.model.state_dict()  # type: ignore[union-attr]
    file = read(weights)
    assert all(torch.equal(value, file[name]) for name, value in encoder.items()) and len(encoder) > 10


def test_weights_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    """timm drops what does not fit and goes on; the run would start from scratch unknowing."""
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), other)
    for architecture, classes in ((TIMM, 7), (TIMM, 1000), (UNET, 4)):
        with pytest.raises(Refusal, match=r"other\.safetensors does not fit .*model\.name"):
            build_network(architecture, 3, classes, other)
    save_file({f"backbone.{name}": value for name, value in read(weights).items()}, other)
    for architecture in (TIMM, UNET):
        with pytest.raises(Refusal, match=r"other\.safetensors does not fit"):
            build_network(architecture, 3, 7, other)
    with pytest.raises(Refusal, match="no weight file"):
        build_network(TIMM, 3, 7, tmp_path / "none.safetensors")
    with pytest.raises(Refusal, match=r"model\.encoder=tu-resnet34"):
        build_network({"library": "smp", "name": "Unet", "encoder": "resnet34"}, 3, 4, weights)


@pytest.mark.parametrize("architecture", [TIMM, UNET, NATIVE], ids=["timm", "tu", "smp"])
def test_missing_hub_says_what_to_do(architecture: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(Refusal, match=r"model\.weights=<file>"):
        build_network(architecture, 3, 4, pretrained=True)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client would try five times."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Refusal, match="http://127.0.0.1:9 does not answer .*model.weights=<file>"):
        build_network(TIMM, 3, 4, pretrained=True)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"library": "torch", "name": "resnet18"}, "library 'torch'.*timm, smp"),
        ({"library": "timm", "name": "resnet_18"}, "resnet18"),
        ({"library": "timm", "name": "resnet18.imagenet"}, "resnet18.a1_in1k"),
        ({"library": "timm", "name": "hf-hub:timm/resnet18"}, "unknown timm network"),
        ({"library": "timm", "name": "test_resnet", "options": {"droprate": 0.1}}, "droprate"),
        ({"library": "smp", "name": "UNet", "encoder": "tu-test_resnet"}, "Unet"),
        ({"library": "smp", "name": "Unet", "encoder": "resnet43"}, "resnet34"),
        ({"library": "smp", "name": "Unet", "encoder": "tu-resnet43"}, "resnet34"),
        ({"library": "smp", "name": "Unet", "encoder": "tu-test_resnet", "options": {"depth": [1]}}, "depth"),
        ({"library": "smp", "name": "Unet"}, "unknown encoder None"),
    ],
)
def test_wrong_names_are_refused_with_close_ones(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        build_network(architecture, 3, 2)


def test_normalisation_is_per_channel() -> None:
    mean, std = [0.1, 0.5, 0.7, 0.2], [0.1, 0.2, 0.3, 0.4]
    net = Normalized(Same(), {"image": (mean, std)})
    x = torch.randint(0, 256, (2, 4, 5, 6), dtype=torch.uint8)
    expected = torch.stack([(x[:, c] / 255 - mean[c]) / std[c] for c in range(4)], dim=1)
    assert torch.allclose(net({"image": x})["image"], expected, atol=1e-5)
    assert torch.allclose(net({"image": x / 255})["image"], expected, atol=1e-5)
    stack = torch.stack([x, x.flip(-1)], dim=1)
    both = net({"image": stack})["image"]
    assert torch.allclose(both[:, 0], expected, atol=1e-5) and torch.allclose(both[:, 1], expected.flip(-1), atol=1e-5)
    assert not net.state_dict()
    with pytest.raises(Refusal, match="3 channels"):
        net({"image": x[:, :3]})
    with pytest.raises(Refusal, match="1 channels"):
        net({"image": x[:, :1]})
    with pytest.raises(Refusal, match="std"):
        Normalized(Same(), {"image": ([0.5], [0.0])})


def running(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.named_buffers() if "running" in name or "batches" in name}


@pytest.mark.parametrize("architecture", [TIMM, UNET], ids=["timm", "smp"])
def test_frozen_part_does_not_move(architecture: dict[str, Any]) -> None:
    net = normalized(architecture)
    trunk = net.net.net.encoder if architecture is UNET else net.net.net
    set_trainable(net, "head")
    net.eval()
    net.train()  # as a trainer does after each validation
    before = running(trunk)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    old = {name: value.clone() for name, value in net.named_parameters()}
    logits(net, torch.rand(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()

    head = {id(value) for module in net.net.head() for value in module.parameters()}
    assert head
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, old[name])}
    assert moved and moved <= {name for name, value in net.named_parameters() if id(value) in head}
    after = running(trunk)  # type: ignore[arg-type]
    assert before and all(torch.equal(before[name], after[name]) for name in before)
    heads = {module for head in net.net.head() for module in head.modules()}
    frozen = [module for module in net.net.modules() if module not in heads and module not in (net.net, net.net.net)]
    assert not any(module.training for module in frozen) and all(module.training for module in heads)

    set_trainable(net, "all")
    assert all(value.requires_grad for value in net.parameters()) and all(m.training for m in net.modules())
    logits(net, torch.rand(4, 3, 32, 32))
    thawed = running(trunk)  # type: ignore[arg-type]
    assert any(not torch.equal(before[name], thawed[name]) for name in before)
    with pytest.raises(Refusal, match="encoder"):
        set_trainable(net, "encoder")


@pytest.mark.parametrize("architecture", [TIMM, UNET], ids=["timm", "smp"])
def test_frozen_batch_norms_keep_their_statistics_while_everything_learns(architecture: dict[str, Any]) -> None:
    net = normalized(architecture)
    set_trainable(net, "all", freeze_bn=True)
    net.eval()
    net.train()
    before, old = running(net), {name: value.clone() for name, value in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    logits(net, torch.rand(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(value, old[name]) for name, value in net.named_parameters() if "bn1" in name)
    moved = {name for name, value in running(net).items() if not torch.equal(value, before[name])}
    # The decoder's norms are new, so they have to learn their statistics.
    assert all(name.startswith("net.net.decoder") for name in moved) and bool(moved) == (architecture is UNET)


def test_weights_from_a_file_begin_with_equal_probabilities(tmp_path: Path) -> None:
    saved = build_network(TIMM, 3, 10)
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    net = build_network(TIMM, 3, 4, tmp_path / "weights.pth").eval()
    assert torch.equal(net(torch.rand(2, 3, 32, 32)), torch.zeros(2, 4))


def test_freezing_in_eval_keeps_eval() -> None:
    net = normalized(TIMM).eval()
    set_trainable(net, "head")
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("architecture", [TIMM, UNET], ids=["timm", "smp"])
def test_gradient_checkpointing_gives_the_same_gradients(architecture: dict[str, Any]) -> None:
    net = build_network(architecture, 3, 4).eval()  # in eval, so that no batch norm moves between the passes
    x = torch.rand(2, 3, 32, 32)

    def gradients() -> list[torch.Tensor]:
        net.zero_grad()
        net(x).square().mean().backward()
        return [value.grad.clone() for value in net.parameters() if value.grad is not None]

    plain = gradients()
    saved = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    def stored() -> int:
        nonlocal saved
        saved = 0
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            net(x)
        return saved

    all_stored = stored()
    enable_gradient_checkpointing(net)
    assert stored() < 0.9 * all_stored
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, gradients(), strict=True))


def test_gradient_checkpointing_is_refused_for_smps_own_encoders() -> None:
    with pytest.raises(Refusal, match="gradient_checkpointing"):
        enable_gradient_checkpointing(build_network(NATIVE, 3, 2))


def test_pretrained_normalization() -> None:
    lite = {"library": "timm", "name": "tf_efficientnet_lite0"}
    assert pretrained_normalization(lite) == ([0.5] * 3, [0.5] * 3)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    resnet = {"library": "smp", "name": "Unet", "encoder": "tu-resnet18.a1_in1k"}
    assert pretrained_normalization(resnet) == (mean, std)
    assert pretrained_normalization(resnet, 4) == ([*mean, mean[0]], [*std, std[0]])
    assert pretrained_normalization(resnet, 1)[0] == pytest.approx([sum(mean) / 3])
    with pytest.raises(Refusal, match=r"data\.normalize=dataset"):
        pretrained_normalization(NATIVE)


@pytest.mark.parametrize(("name", "multiple"), [("Unet", 1), ("FPN", 32), ("DeepLabV3Plus", 16)])
def test_required_multiple(name: str, multiple: int) -> None:
    architecture = {"library": "smp", "name": name, "encoder": "mobilenet_v2"}
    assert image_network(architecture).multiple == multiple
    net = build_network(architecture, 3, 2).eval()
    assert net(torch.rand(1, 3, 3 * multiple + 32, 64)).shape[-2:] == (3 * multiple + 32, 64)
    if multiple > 1:
        with pytest.raises(RuntimeError):
            net(torch.rand(1, 3, multiple + 1, multiple))
    assert image_network(TIMM).multiple == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_choices_name_networks_that_exist(path: Path) -> None:
    OmegaConf.register_new_resolver("image_hw", lambda size: [size, size], replace=True)
    root = OmegaConf.create({"data": {"image_size": 64}, "model": OmegaConf.load(path)})
    config = OmegaConf.to_container(root.model, resolve=True)
    assert isinstance(config, dict)
    assert {"pretrained", "weights", "options", "channels_last", "compile", "gradient_checkpointing"} <= set(config)
    architecture = {str(key): value for key, value in config.items()}
    with torch.device("meta"):
        net = build_network(architecture, 3, 2)
    assert sum(value.numel() for value in net.parameters()) > 1e5
    mean, _ = pretrained_normalization(architecture)
    assert len(mean) == 3
    if not config["pretrained"]:
        assert build_network(architecture, 3, 2).eval()(torch.rand(1, 3, 64, 64)).shape[:2] == (1, 2)
