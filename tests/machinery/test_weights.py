"""Model folders: what is saved predicts the same when loaded, and a bad folder is refused with a sentence."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import make_spec
from torch import nn

from foldwise.code.alias import open_code
from foldwise.code.build import make
from foldwise.code.source import read_code, trust
from foldwise.errors import Refusal
from foldwise.inference.spec import ModelError, read_spec
from foldwise.inference.weights import load_model, normalize, save_model

ARCHITECTURE = {"library": "timm", "name": "test_resnet", "options": {"drop_rate": 0.1}}


class Compiled(nn.Module):
    """Renames every tensor as torch.compile(net) does, whose import alone takes seconds."""

    def __init__(self, net):
        super().__init__()
        self._orig_mod = net


def build(spec):
    return make(spec.network)


def predict(network, x):
    return network({"image": x})["logits"]


@pytest.fixture(scope="module")
def spec():
    images = {"image": {"scale": None, "mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7, 0.8]}}
    spec = make_spec("multiclass", ("cat", "dog", "newt"), 4, image_size=(32, 48), images=images)
    return replace(spec, network={**spec.network, **ARCHITECTURE})


@pytest.fixture(scope="module")
def net(spec):
    torch.manual_seed(0)
    net = build(spec)
    nn.init.normal_(net.net.fc.weight)
    return normalize(net, spec)


def rewrite(folder, **change):
    """Change keys of model.json; those of an object that is there, one by one."""
    path = folder / "model.json"
    values = json.loads(path.read_text())
    for key, value in change.items():
        inner = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if inner else value
    path.write_text(json.dumps(values))


def outputs(**change):
    return [{"name": "", "key": "logits", "target": "target", "columns": list("abc"), "task": "multiclass", **change}]


@pytest.mark.parametrize("form", ["plain", "channels_last", "compiled"])
def test_round_trip_predicts_the_same(tmp_path, net, spec, form):
    x = torch.randint(0, 256, (2, 4, 32, 48), dtype=torch.uint8)
    saved = normalize(build(spec), spec)
    saved.load_state_dict(net.state_dict())
    expected = predict(saved.eval(), x)
    if form == "channels_last":
        saved.to(memory_format=torch.channels_last)
    if form == "compiled":
        saved.net.net = Compiled(saved.net.net)
    save_model(tmp_path / "model", saved, spec)
    state = torch.get_rng_state()
    loaded = load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.spec == spec == read_spec(tmp_path / "model")
    assert not loaded.network.training and type(loaded.samples).__name__ == "Samples"
    torch.testing.assert_close(predict(loaded.network, x), expected)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


def test_segmentation_model(tmp_path):
    images = {"image": {"scale": None, "mean": [0.5], "std": [1.0]}}
    spec = make_spec("segmentation", ("a", "b"), 1, images=images)
    net = build(spec).eval()
    save_model(tmp_path, normalize(net, spec), spec)
    x = torch.rand(1, 1, 64, 32)
    torch.testing.assert_close(predict(load_model(tmp_path).network, x), predict(net, x - 0.5))


def test_tied_tensors_are_kept(tmp_path, spec):
    tied = build(spec)
    first, second = tied.net.layer3[0].bn1, tied.net.layer3[0].bn2
    second.weight, second.running_mean = first.weight, first.running_mean
    save_model(tmp_path, normalize(tied, spec), spec)
    loaded = load_model(tmp_path).network
    assert torch.equal(loaded.net.net.layer3[0].bn2.weight, first.weight)


def test_saving_again_replaces_and_a_mix_is_refused(tmp_path, net, spec):
    save_model(tmp_path / "a", net, spec)
    save_model(tmp_path / "a", net, replace(spec, image_size=(64, 64)))
    assert read_spec(tmp_path / "a").image_size == (64, 64)
    save_model(tmp_path / "b", normalize(build(spec), spec), spec)
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "a" / "model.safetensors")
    with pytest.raises(ModelError, match=r"does not match the hash in model.json"):
        load_model(tmp_path / "a")


def test_a_diverged_model_is_not_saved(tmp_path, spec):
    broken = normalize(build(spec), spec)
    with torch.no_grad():
        broken.net.net.fc.bias[0] = float("nan")
    with pytest.raises(ModelError, match=r"first .*fc.bias: the training diverged"):
        save_model(tmp_path / "m", broken, spec)
    assert not (tmp_path / "m").exists()


def test_missing_and_damaged_files(tmp_path, net, spec):
    with pytest.raises(ModelError, match=r"has no model .*model.json is missing"):
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


IMAGE = {"scale": None, "mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7, 0.8]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99.*use the foldwise that wrote it"),
        ({"version": "1"}, "no version"),
        ({"outputs": []}, "outputs must be a list of different names"),
        ({"outputs": [{"name": ""}]}, "outputs must have key, target, and a task.*; columns of outputs must be"),
        ({"outputs": outputs(task="captions")}, "a task out of multiclass"),
        ({"outputs": outputs(task=["multiclass"])}, "a task out of multiclass"),
        ({"outputs": outputs(columns="abc")}, "columns of outputs must be lists of different names"),
        ({"outputs": outputs(columns=["a", "a", "b"])}, "columns of outputs must be lists of different names"),
        ({"outputs": outputs(columns=["a", "b"])}, "network.outputs must have the number of columns"),
        ({"outputs": outputs(key="other")}, "network.outputs must have the number of columns"),
        ({"outputs": outputs(key=5)}, "outputs must have key, target"),
        ({"outputs": outputs(name="../x")}, "outputs must be a list of different names, of letters and digits"),
        ({"outputs": outputs() + outputs()}, "outputs must be a list of different names"),
        ({"network": {"channels": {"image": True}}}, "network.channels and network.outputs must map names to positive"),
        ({"network": {"outputs": {"logits": 0}}}, "network.channels and network.outputs must map names to positive"),
        ({"network": []}, "network and samples must have a _target_"),
        ({"samples": {"_target_": 5}}, "network and samples must have a _target_"),
        ({"state": []}, "state must be an object"),
        ({"code": "../../code"}, "code must be a hash"),
        ({"fit": "zoom"}, "fit must be one of"),
        ({"image_size": [32]}, "image_size must be"),
        ({"image_size": [32, -1]}, "image_size must be"),
        ({"images": []}, "images must have the fields"),
        ({"images": {"image": {**IMAGE, "mean": [0.1]}}}, r"images must have mean and std \(one value per channel"),
        (
            {"images": {"image": {**IMAGE, "mean": [0.1], "std": [0.1]}}},
            r"images must have mean and std \(one value per channel",
        ),
        ({"images": {"image": {"mean": [0.1]}}}, r"images must have mean and std \(one value per channel"),
        ({"images": {"other": IMAGE}}, "images must have the fields of network.channels"),
        ({"network": {"channels": {"image": 4, "more": 3}}}, "images must have the fields of network.channels"),
        ({"images": {"image": {**IMAGE, "std": [0.1, 0, 1, 1]}}}, "std above 0"),
        ({"images": {"image": {**IMAGE, "scale": -1}}}, r"scale \(above 0 or null"),
        (
            {"outputs": outputs(columns=["a", "b"]), "network": {"outputs": {"logits": 2}}},
            "have another shape.*first .*fc.weight",
        ),
        ({"network": {"name": "test_convnext", "options": {}}}, "missing from the file"),
        ({"network": {"name": "no_such_network"}}, "cannot be built.*no_such_network"),
        ({"network": {"library": "pickle"}}, "cannot be built.*pickle"),
        ({"network": {"encodr": "x"}}, "cannot be built.*encodr"),
    ],
)
def test_a_spec_that_does_not_fit(tmp_path, net, spec, change, message):
    save_model(tmp_path, net, spec)
    rewrite(tmp_path, **change)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "network",
    [
        {"name": "hf-hub:somebody/model"},
        {"name": "local-dir:/tmp/model"},
        {"name": "../resnet18"},
        {"weights": "/tmp/evil.pth"},
        {"pretrained": True},
        {"options": {"checkpoint_path": "/tmp/evil.pth"}},
        {"options": {"pretrained_cfg_overlay": {"file": "/tmp/evil.pth"}}},
        {"options": {"a": [{"pretrained": True}]}},
        {"library": "smp", "name": "Unet", "encoder": "tu-hf-hub:somebody/model"},
        {"options": {"block": {"_target_": "os.system"}}},
        {"name": 5},
    ],
    ids=str,
)
def test_nothing_in_a_stranger_s_spec_reads_a_file_or_the_hub(tmp_path, net, spec, network):
    save_model(tmp_path, net, spec)
    rewrite(tmp_path, network=network)
    with pytest.raises(ModelError, match="network"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    "arguments", [{"path": "/etc/passwd"}, {"mode": {"_target_": "os.system"}}, {"a": [{"url": 1}]}]
)
def test_a_stranger_s_reader_names_no_file(tmp_path, net, spec, arguments):
    save_model(tmp_path, net, spec)
    rewrite(tmp_path, samples=arguments)
    with pytest.raises(ModelError, match="samples must not have"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("part", "target", "message"),
    [
        ("network", "os:system", "not of the form"),
        ("network", "torch.nn:Linear", "not of the form"),
        ("network", "foldwise.models.networks.ImageNetwork", "not of the form"),
        ("network", "foldwise.models.networks:nn.Linear", "not of the form"),
        ("network", "foldwise.models.networks:ImageNetwork.__init__", "not of the form"),
        ("network", "foldwise.files:shutil", "not a Network of foldwise"),
        ("network", "foldwise.inference.spec:Path", "not a Network of foldwise"),
        ("network", "foldwise.models.normalized:Normalized", "not a Network of foldwise"),
        ("network", "foldwise.data.samples:Samples", "not a Network of foldwise"),
        ("network", "foldwise.models.nothing:Network", "no nothing in foldwise.models"),
        ("network", "solution.networks:Network", "it needs code of solution/"),
        ("samples", "foldwise.models.networks:ImageNetwork", "not a Samples of foldwise"),
        ("samples", "builtins:open", "not of the form"),
        ("samples", "solution.samples:Samples", "it needs code of solution/"),
    ],
)
def test_a_stranger_s_spec_names_no_class_but_networks_and_readers(tmp_path, net, spec, part, target, message):
    save_model(tmp_path, net, spec)
    rewrite(tmp_path, **{part: {"_target_": target}})
    with pytest.raises(Refusal, match=message):
        load_model(tmp_path)


NETWORK = """
from pathlib import Path
from torch import nn
from foldwise.models.network import Network

Path(__file__).with_name("imported").touch()


class Two(Network):
    auxiliary = ("teacher", "extra")

    def __init__(self, channels, outputs, width, weights=None, pretrained=False):
        super().__init__()
        self.encoder = nn.Conv2d(channels["image"], width, 3)
        self.classifier = nn.Linear(width, outputs["logits"])
        self.extra = nn.Linear(width, 2)
        self.teacher = nn.Sequential(nn.Linear(width, 2))

    def forward(self, batch):
        features = self.encoder(batch["image"]).mean((2, 3))
        outputs = {"logits": self.classifier(features)}
        return outputs if self.extra is None else outputs | {"extra": self.extra(features)}


class Other(nn.Module):
    pass
"""


@pytest.fixture
def own(tmp_path):
    """A run with a network of its own: (its code, a saved model, the network, the spec)."""
    code = tmp_path / "run" / "code" / "solution"
    code.mkdir(parents=True)
    (code / "__init__.py").touch()
    (code / "networks.py").write_text(f"{NETWORK}# {tmp_path}\n")  # of another hash in each test
    read = read_code(code.parent)
    trust(read.digest)
    spec = make_spec("multiclass", ("a", "b", "c"))
    network = {"_target_": "solution.networks:Two", "width": 5, "channels": {"image": 3}, "outputs": {"logits": 3}}
    spec = replace(spec, network=network, code=read.hash)
    torch.manual_seed(0)
    net = normalize(make(spec.network, open_code(code.parent)), spec).eval()
    save_model(tmp_path / "run" / "fold0" / "model", net, spec)
    return code, tmp_path / "run" / "fold0" / "model", net, spec


def test_what_only_training_needs_is_not_saved(own):
    _, folder, net, spec = own
    x = torch.rand(2, 3, 32, 32)
    outputs = net({"image": x})
    assert outputs.keys() == {"logits", "extra"} and net.net.extra is not None  # saving leaves the network whole
    loaded = load_model(folder)
    assert loaded.spec == spec and loaded.network.net.extra is None and loaded.network.net.teacher is None
    assert set(loaded.network.state_dict()) == {
        f"net.{part}.{name}" for part in ("encoder", "classifier") for name in ("weight", "bias")
    }
    found = loaded.network({"image": x})
    assert found.keys() == {"logits"} and torch.equal(found["logits"], outputs["logits"])


def test_code_that_was_edited_is_not_that_of_the_model(own):
    code, folder, _, _ = own
    (code / "networks.py").write_text(NETWORK.replace("width, 3)", "width, 1)"))
    (code / "imported").unlink(missing_ok=True)
    with pytest.raises(Refusal, match="needs the code .* of its run, and there is none beside it"):
        load_model(folder)
    rewrite(folder, code=read_code(code.parent).hash)  # a stranger can do that too
    with pytest.raises(Refusal, match="arrived with code of its own .*--trust-code"):
        load_model(folder)
    assert not (code / "imported").exists()


def test_a_class_of_the_run_that_is_no_network_is_refused(own):
    _, folder, _, _ = own
    for name, message in (
        ("Other", "not a Network of foldwise or solution"),
        ("Path", "not a Network"),
        ("nn", "not a Network"),
    ):
        rewrite(folder, network={"_target_": f"solution.networks:{name}"})
        with pytest.raises(Refusal, match=message):
            load_model(folder)


def test_all_problems_are_listed_at_once(tmp_path, net, spec):
    save_model(tmp_path, net, spec)
    rewrite(tmp_path, outputs=outputs(task="x"), network={"channels": {"image": 0}}, fit="zoom")
    with pytest.raises(ModelError) as caught:
        read_spec(tmp_path)
    assert all(word in str(caught.value) for word in ("a task out of", "network.channels and", "fit must be"))


def test_dropout_and_batch_norm_are_off_after_loading(tmp_path, net, spec):
    save_model(tmp_path, net, spec)
    loaded = load_model(tmp_path).network
    assert not any(module.training for module in loaded.modules())
