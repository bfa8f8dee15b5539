"""Model folders: what is saved predicts the same when loaded, and a bad folder is refused with a sentence."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from foldwise.inference.weights import ModelError, ModelSpec, load_model, read_spec, save_model
from foldwise.models.networks import build_network
from foldwise.models.normalized import Normalized

ARCHITECTURE = {"library": "timm", "name": "test_resnet", "options": {"drop_rate": 0.1}}


class Compiled(nn.Module):
    """Renames every tensor as torch.compile(net) does, whose import alone takes seconds."""

    def __init__(self, net):
        super().__init__()
        self._orig_mod = net


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_network(ARCHITECTURE, channels=4, classes=3)


@pytest.fixture
def spec():
    return ModelSpec(
        task="multiclass",
        architecture=ARCHITECTURE,
        channels=4,
        classes=("cat", "dog", "newt"),
        image_size=(32, 48),
        fit="stretch",
        mode="stored",
        scale=None,
        mean=(0.1, 0.2, 0.3, 0.4),
        std=(0.5, 0.6, 0.7, 0.8),
    )


def rewrite(folder, **change):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize("form", ["plain", "normalized", "channels_last", "compiled"])
def test_round_trip_predicts_the_same(tmp_path, net, spec, form):
    x = torch.randint(0, 256, (2, 4, 32, 48), dtype=torch.uint8)
    expected = Normalized(net, spec.mean, spec.std).eval()(x)
    saved = {
        "plain": lambda: net,
        "normalized": lambda: Normalized(net, spec.mean, spec.std),
        "channels_last": lambda: build_network(ARCHITECTURE, 4, 3).to(memory_format=torch.channels_last),
        "compiled": lambda: Compiled(net),
    }[form]()
    if form == "channels_last":
        saved.load_state_dict(net.state_dict())
    save_model(tmp_path / "model", saved, spec)
    state = torch.get_rng_state()
    loaded, back = load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert back == spec == read_spec(tmp_path / "model")
    assert not loaded.training
    torch.testing.assert_close(loaded(x), expected)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


def test_segmentation_model(tmp_path, spec):
    architecture = {"library": "smp", "name": "Unet", "encoder": "tu-test_resnet", "options": {}}
    net = build_network(architecture, channels=1, classes=2).eval()
    spec = replace(spec, task="segmentation", architecture=architecture, classes=("a", "b"))
    spec = replace(spec, channels=1, mean=[0.5], std=[1.0])
    save_model(tmp_path, net, spec)
    loaded, _ = load_model(tmp_path)
    x = torch.rand(1, 1, 64, 32)
    torch.testing.assert_close(loaded(x), net(x - 0.5))


def test_tied_tensors_are_kept(tmp_path, spec):
    tied = build_network(ARCHITECTURE, 4, 3)
    first, second = tied.layer3[0].bn1, tied.layer3[0].bn2
    second.weight, second.running_mean = first.weight, first.running_mean
    save_model(tmp_path, tied, spec)
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.net.layer3[0].bn2.weight, first.weight)


def test_saving_again_replaces_and_a_mix_is_noticed(tmp_path, net, spec):
    save_model(tmp_path / "a", net, spec)
    save_model(tmp_path / "a", net, replace(spec, image_size=(64, 64)))
    assert read_spec(tmp_path / "a").image_size == (64, 64)
    save_model(tmp_path / "b", build_network(ARCHITECTURE, 4, 3), spec)
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "a" / "model.safetensors")
    with pytest.raises(ModelError, match=r"is not the file that model.json was written with"):
        load_model(tmp_path / "a")


def test_a_diverged_model_is_not_saved(tmp_path, spec):
    broken = build_network(ARCHITECTURE, 4, 3)
    with torch.no_grad():
        broken.fc.bias[0] = float("nan")
    with pytest.raises(ModelError, match=r"fc.bias first: the training diverged"):
        save_model(tmp_path / "m", broken, spec)
    assert not (tmp_path / "m").exists()


def test_missing_and_damaged_files(tmp_path, net, spec):
    with pytest.raises(ModelError, match=r"there is no model in .*model.json is missing"):
        load_model(tmp_path / "m")
    save_model(tmp_path / "m", net, spec)
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="copy the whole folder again"):
        load_model(tmp_path / "m")
    weights.unlink()
    with pytest.raises(ModelError, match="run train.py again"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99.*update the code"),
        ({"version": "1"}, "no version"),
        ({"task": "detection"}, "task is not"),
        ({"classes": "abc"}, "classes is not a list"),
        ({"classes": ["a", "a", "b"]}, "classes is not a list of different names"),
        ({"channels": True}, "channels is not"),
        ({"image_size": [32]}, "image_size is not"),
        ({"image_size": [32, -1]}, "image_size is not"),
        ({"mean": [0.1]}, "mean is not .* one a channel"),
        ({"std": [0.1, 0, 1, 1]}, "std is not a list of positive"),
        ({"scale": -1}, "scale is neither"),
        ({"classes": ["a", "b"]}, "have another shape.*fc.weight first"),
        ({"architecture": {"library": "timm", "name": "test_convnext", "options": {}}}, "missing from the file"),
        ({"architecture": {"library": "timm", "name": "no_such_network"}}, "cannot be built.*no_such_network"),
        ({"architecture": {"library": "pickle", "name": "resnet18"}}, "cannot be built.*pickle"),
    ],
)
def test_a_spec_that_does_not_fit(tmp_path, net, spec, change, message):
    save_model(tmp_path, net, spec)
    rewrite(tmp_path, **change)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "architecture",
    [
        {"library": "timm", "name": "hf-hub:somebody/model"},
        {"library": "timm", "name": "local-dir:/tmp/model"},
        {"library": "timm", "name": "../resnet18"},
        {"library": "timm", "name": "resnet18", "options": {"checkpoint_path": "/tmp/evil.pth"}},
        {"library": "timm", "name": "resnet18", "options": {"pretrained_cfg_overlay": {"file": "/tmp/evil.pth"}}},
        {"library": "timm", "name": "resnet18", "options": {"a": [{"pretrained": True}]}},
        {"library": "smp", "name": "Unet", "encoder": "tu-hf-hub:somebody/model"},
        {"library": "timm", "name": "resnet18", "_target_": "os.system"},
        {"library": "timm", "name": 5},
    ],
)
def test_nothing_in_a_stranger_s_spec_reads_a_file_or_the_hub(tmp_path, net, spec, architecture):
    save_model(tmp_path, net, spec)
    rewrite(tmp_path, architecture=architecture)
    with pytest.raises(ModelError, match="architecture"):
        read_spec(tmp_path)


def test_all_problems_are_listed_at_once(tmp_path, net, spec):
    save_model(tmp_path, net, spec)
    rewrite(tmp_path, task="x", channels=0, mode="bgr")
    with pytest.raises(ModelError) as caught:
        read_spec(tmp_path)
    assert all(word in str(caught.value) for word in ("task is not", "channels is not", "mode is not"))


def test_dropout_and_batch_norm_are_off_after_loading(tmp_path, net, spec):
    save_model(tmp_path, net, spec)
    loaded, _ = load_model(tmp_path)
    assert not any(module.training for module in loaded.modules() if isinstance(module, nn.Module))
