"""Views and their inverses on odd, non-square maps, and the two means."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tiny import make_spec, random_model
from torch import nn

from foldwise.data.fields import Field
from foldwise.errors import Refusal
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA, load_tta
from foldwise.inference.weights import Model
from foldwise.settings import find_choice, list_choices
from foldwise.tasks import TASKS, Multiclass, Multilabel, Segmentation
from foldwise.tasks.outputs import Output
from foldwise.tasks.views import CROPS, SYMMETRIES, View

D4 = list(SYMMETRIES)


def picture(height, width, batch=2):
    return torch.arange(batch * 3 * height * width, dtype=torch.float32).view(batch, 3, height, width) % 251


def smooth(height, width):
    """Maps without detail, which resampling hardly changes."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([x, y, x * y])[None].repeat(2, 1, 1, 1)


class Raw(Segmentation):
    """Values as the network gives them, turned back where they are maps."""

    name = "raw"

    def activate(self, raw):
        return raw

    def undo(self, value, view, size):
        return view.inverse(value, size) if value.ndim == 4 else value


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(TASKS, "raw", Raw())


class Net(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, batch):
        return self.values(batch)


def predictor(values, tta, outputs=("",), fields=None, keep_views=False):
    """A predictor whose network is a function of a batch."""
    described = tuple(Output(name, name, "", ("a",), "raw") for name in outputs)
    samples = SimpleNamespace(fields=fields or {"image": Field("image")})
    model = Model(Net(values), samples, replace(make_spec("multiclass", ("a",)), outputs=described))
    return Predictor([model], tta, keep_views=keep_views)


def mean_of(tta, network, x):
    """The mean over the views of what a function of a picture gives."""
    return views_of(predictor(lambda batch: {"": network(batch["image"])}, tta), {"image": x})[""][:, 0]


def views_of(made, batch, views=None):
    return made.predict_views(0, {made.inputs[0, None]: batch}, views)


def corners(x):
    """Where the four corners' values went, which tells the eight views of a picture apart."""
    return tuple(x[0, 0, row, column].item() for row in (0, -1) for column in (0, -1))


@pytest.mark.parametrize("size", [(5, 7), (7, 5), (4, 4), (1, 3)])
@pytest.mark.parametrize("name", D4)
def test_inverse_turns_back_exactly(name, size):
    x, view = picture(*size), View(name)
    assert torch.equal(view.inverse(view.forward(x), size), x)
    swaps = view.forward(picture(2, 3)).shape[-2:] == (3, 2)
    assert view.forward(x).shape[-2:] == (size[::-1] if swaps else size)


def test_the_views_are_the_eight_of_the_square_by_name():
    x = torch.tensor([[1, 2], [3, 4]]).float()[None, None]
    assert {name: corners(View(name).forward(x)) for name in SYMMETRIES} == {
        "identity": (1, 2, 3, 4),
        "hflip": (2, 1, 4, 3),
        "vflip": (3, 4, 1, 2),
        "rot180": (4, 3, 2, 1),
        "rot90": (2, 4, 1, 3),  # counterclockwise
        "rot270": (3, 1, 4, 2),
        "transpose": (1, 3, 2, 4),
        "antitranspose": (4, 2, 3, 1),
    }


@pytest.mark.parametrize("symmetry", D4)
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_a_scaled_view_is_undone_to_the_image_size(symmetry, scale):
    x, view = smooth(64, 128), View(symmetry, scale)
    assert sorted(view.forward(x).shape[-2:]) == [64 * scale, 128 * scale]
    torch.testing.assert_close(view.inverse(view.forward(x), (64, 128)), x, atol=0.02, rtol=0)


@pytest.mark.parametrize("symmetry", D4)
@pytest.mark.parametrize("crop", list(CROPS))
def test_a_crop_is_undone_to_its_area_and_leaves_the_rest_empty(symmetry, crop):
    x, view = smooth(56, 72), View(symmetry, crop=crop)
    back = view.inverse(view.forward(x), (56, 72))
    seen = ~back[0, 0].isnan()
    assert seen.sum() == 49 * 63  # seven eighths of both sides
    down, right = CROPS[crop]
    rows, columns = np.nonzero(seen.numpy())
    assert (rows.min(), columns.min()) == (round(7 * down), round(9 * right))
    torch.testing.assert_close(back[..., seen], x[..., seen], atol=0.02, rtol=0)


def test_five_crops_see_everything():
    tta = load_tta(find_choice("tta", "five_crops"))
    assert len(tta.names) == 5
    x = smooth(40, 56)
    torch.testing.assert_close(mean_of(tta, lambda batch: batch, x), x, atol=0.02, rtol=0)


def test_resampled_views_of_stored_integers_are_in_units():
    x = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    assert View("identity").forward(x).dtype == torch.uint8
    for view in (View("hflip", 2.0), View("identity", crop="centre")):
        torch.testing.assert_close(view.forward(x), torch.ones_like(view.forward(x)))


def pixelwise(x):
    """A network that is equivariant by construction: a function of each pixel alone."""
    return torch.stack([x.sum(1) / 251, x[:, 0].sin(), x[:, 1].cos()], dim=1).softmax(1)


@pytest.mark.parametrize("size", [(5, 7), (7, 4), (6, 6)])
@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_an_equivariant_network_gives_the_same_map(size, mean):
    x = picture(*size)
    torch.testing.assert_close(mean_of(TTA.choose(D4, mean), pixelwise, x), pixelwise(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in D4 if name != "identity"])
def test_a_map_that_is_not_turned_back_would_show(name):
    x = picture(5, 5)
    assert not torch.allclose(pixelwise(View(name).forward(x)), pixelwise(x), atol=1e-3)


def test_views_of_one_shape_are_one_batch_and_the_images_stay_in_order():
    shapes = []

    def network(x):
        shapes.append(tuple(x.shape))
        return x.mean((2, 3)).softmax(1)

    x = torch.rand(3, 2, 4, 6)
    result = mean_of(TTA.choose(D4), network, x)
    assert shapes == [(12, 2, 4, 6), (12, 2, 6, 4)]
    torch.testing.assert_close(result, x.mean((2, 3)).softmax(1))
    shapes.clear()
    mean_of(TTA.choose(D4), network, torch.rand(3, 2, 4, 4))
    assert shapes == [(24, 2, 4, 4)]


def test_arithmetic_mean_weighs_views_alike_over_both_shapes():
    def first_pixel(x):
        return torch.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], 1)

    x = torch.rand(2, 1, 3, 4)
    views = ["identity", "rot90", "transpose", "rot180"]
    expected = torch.stack([x[:, 0, 0, 0], x[:, 0, 0, -1], x[:, 0, 0, 0], x[:, 0, -1, -1]]).mean(0)
    torch.testing.assert_close(mean_of(TTA.choose(views), first_pixel, x)[:, 0], expected)


def test_geometric_mean_of_exclusive_classes_is_the_softmax_of_the_mean_log():
    probabilities = torch.randn(5, 4, 3).softmax(-1)
    result = Multiclass().average(probabilities, "geometric")
    torch.testing.assert_close(result, probabilities.log().mean(0).softmax(-1))


def test_geometric_mean_of_labels_is_the_sigmoid_of_the_mean_logit():
    logits = torch.randn(5, 4, 3)
    result = Multilabel().average(logits.sigmoid(), "geometric")
    torch.testing.assert_close(result, logits.mean(0).sigmoid(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", [Multiclass(), Multilabel()], ids=lambda task: task.name)
def test_geometric_mean_is_finite_at_zero_and_one(task):
    first, second = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    result = task.average(torch.stack([first, second]), "geometric")
    assert result.isfinite().all() and (result >= 0).all() and (result <= 1).all()
    torch.testing.assert_close(result[0, :2], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    assert result[0, 2] < 1e-3


def test_all_spatial_fields_are_turned_and_the_rest_stays_with_its_image():
    """A network that says of each pixel what the fields have there: it must be the same in every view."""
    size, batch = (5, 7), 3
    place = torch.arange(batch * 35).view(batch, 1, *size)
    fields = {
        "image": place.float(),
        "stack": torch.stack([place, place + 1], dim=1).float(),
        "depth": 2.0 * place,
        "seen": place[:, 0] + 3,
        "age": torch.arange(batch).float(),
        "words": torch.arange(2 * batch).view(batch, 2),
        "stack_valid": torch.ones(batch, 2, dtype=torch.bool),
    }
    shapes = []

    def values(views):
        shapes.append(len(views["image"]))
        x = views["image"]
        assert torch.equal(views["stack"], torch.stack([x, x + 1], dim=1))
        assert torch.equal(views["depth"], 2 * x) and torch.equal(views["seen"], x[:, 0].long() + 3)
        assert torch.equal(views["age"], x.flatten(1).min(1).values // 35)  # the number of the picture
        assert torch.equal(views["words"], torch.stack([2 * views["age"], 2 * views["age"] + 1], 1).long())
        assert views["stack_valid"].shape == (len(x), 2)
        return {"map": x / 105, "row": views["age"][:, None]}

    kinds = {name: Field("map" if name != "image" else "image") for name in ("image", "stack", "depth", "seen")}
    whole = predictor(values, TTA.choose(D4), ("map", "row"), kinds, keep_views=True)
    found = views_of(whole, fields)
    assert shapes == [4 * batch, 4 * batch]
    assert torch.equal(found["map"], (place / 105)[:, None].expand(-1, 8, -1, -1, -1))
    assert torch.equal(found["row"], fields["age"][:, None, None].expand(-1, 8, -1))
    shapes.clear()
    some = views_of(whole, fields, [View("hflip"), View("rot90"), View("rot180")])
    assert shapes == [2 * batch, batch] and torch.equal(some["map"], found["map"][:, :3])


def test_samples_without_images_have_one_view_many_times():
    calls = []

    def values(batch):
        calls.append(batch)
        return {"": batch["age"]}

    whole = predictor(values, TTA.choose(D4), fields={"age": Field("values")}, keep_views=True)
    found = views_of(whole, {"age": torch.rand(2, 1)})
    assert len(calls) == 1 and found[""].shape == (2, 8, 1)


@pytest.mark.parametrize("view", [View("hflip", 2.0), View("rot90", crop="centre")])
def test_resampled_masks_keep_their_numbers(view):
    mask = torch.tensor([0, 7, 300]).repeat(2, 32, 11)[..., :32]
    seen = view.forward(mask)
    assert seen.dtype == torch.int64 and set(seen.unique().tolist()) == {0, 7, 300}
    assert seen.shape[-2:] == view.forward(mask[:, None].float()).shape[-2:]


def test_bad_choices_are_refused_with_the_good_ones():
    for views in (["hflip", "hflip"], "hflip"):
        with pytest.raises(Refusal, match="list of different names"):
            TTA.choose(views)
    with pytest.raises(Refusal, match="tta.views has unknown rot45; choose from identity, "):
        TTA.choose(["identity", "rot45"])
    with pytest.raises(Refusal, match=r"arithmetic, geometric.*; .*draws"):
        TTA.choose(mean="harmonic", draws=2)
    for choices in ({"views": []}, {"scales": []}):
        with pytest.raises(Refusal, match="has no views"):
            TTA.choose(**choices)
    for scales in ([0.0], ["1"], 2.0):
        with pytest.raises(Refusal, match="numbers from 0.1 to 4"):
            TTA.choose(scales=scales)
    with pytest.raises(Refusal, match="crops has unknown middle; choose from top-left"):
        TTA.choose(crops=["middle"])


def test_sets_of_frames_are_views_with_names_and_only_for_readers_that_have_them():
    tta = TTA.choose(["identity", "hflip"], frames=2)
    assert tta.names == ["identity@1of2", "hflip@1of2", "identity@2of2", "hflip@2of2"] and tta.frames == 2
    assert TTA.from_names(tta.names, tta.mean) == tta
    batch = {"image": torch.arange(10).view(2, 5), "image_valid": torch.ones(2, 5, dtype=torch.bool)}
    batch |= {"slot": torch.arange(10).view(2, 5), "slot_valid": batch["image_valid"], "numbers": torch.ones(2, 3)}
    taken = tta.views[2].take(batch)
    assert taken["slot"].tolist() == taken["image"].tolist() == [[1, 3], [6, 8]]
    assert taken["image_valid"].shape == (2, 2) and taken["numbers"].shape == (2, 3)
    for choices in ({"frames": 0}, {"frames": 2, "scales": [0.5]}, {"frames": 2, "crops": ["centre"]}):
        with pytest.raises(Refusal, match=r"tta.frames is"):
            TTA.choose(**choices)
    with pytest.raises(Refusal, match="for the reader foldwise.data.units.Units with samples.frames"):
        Predictor([random_model(make_spec("multiclass", ["a", "b"]), 0)], tta)


def test_margins_are_views_that_are_read(tmp_path):
    tta = TTA.choose(["identity", "hflip"], margins=[0, 0.1])
    assert tta.names == ["identity@margin0", "hflip@margin0", "identity@margin0.1", "hflip@margin0.1"]
    assert TTA.from_names(tta.names, tta.mean) == tta and tta.margins == [0, 0.1]
    for choices in ({"margins": [2]}, {"margins": [0.1], "frames": 2}, {"margins": [0.1, 0.1]}, {"margins": 0.1}):
        with pytest.raises(Refusal, match=r"tta.margins|tta.frames is combined"):
            TTA.choose(**choices)
    for name in ("identity@margin", "identity@margin.10", "identity@0.10"):
        with pytest.raises(Refusal, match=f"there is no view {name}"):
            View.from_name(name)
    with pytest.raises(Refusal, match="there is no samples.crop: choose another TTA"):
        Predictor([random_model(make_spec("multiclass", ["a", "b"]), 0)], tta)


def test_every_config_loads_without_hydra(tmp_path):
    found = {name: len(load_tta(path).names) for name, path in list_choices("tta").items()}
    expected = {"none": 1, "flips": 2, "d4": 8, "five_crops": 5, "scales": 6, "d4_scales": 24, "random": 8}
    expected |= {"d4_crops": 48, "random_crops": 32, "frames": 4, "margins": 3}
    assert found == expected
    with pytest.raises(Refusal, match="there is no TTA .*/d5.yaml; .* has d4, "):
        load_tta(find_choice("tta", "d4").with_name("d5.yaml"))
    for content, message in (
        ("views: [identity]\nmeans: arithmetic\n", "has views and mean"),
        ("views: [5]\nmean: arithmetic\n", r"bad.yaml: tta.views has unknown 5"),
        ("[]", "views and mean"),
    ):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(Refusal, match=message):
            load_tta(tmp_path / "bad.yaml")


def test_random_draws_are_the_light_augmentation_with_half_the_amplitudes():
    def amplitudes(value, neutral=0.0):
        if isinstance(value, list):
            return [abs(number - neutral) for number in value]
        return [abs(value)]

    paths = find_choice("tta", "random"), find_choice("augmentation", "light")
    drawn, trained = (yaml.safe_load(path.read_text())["transforms"] for path in paths)
    assert [entry["_target_"] for entry in drawn] == [entry["_target_"] for entry in trained]
    for half, full in zip(drawn, trained, strict=True):
        assert half.keys() == full.keys()
        for key in half.keys() - {"_target_", "p"}:
            neutral = 1.0 if key == "scale" else 0.0
            np.testing.assert_allclose(np.multiply(2, amplitudes(half[key], neutral)), amplitudes(full[key], neutral))
