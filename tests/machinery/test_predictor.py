"""The prediction loop: order, sizes, sharing, errors, and that neither batches nor workers matter."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from tiny import make_spec
from torch import nn

from foldwise.data import images as image_files
from foldwise.data.fields import Field
from foldwise.data.images import ImageError, read_image, resize
from foldwise.data.samples import Samples, group_items
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.inference.items import describe_notes
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model, normalize
from foldwise.models.network import Network
from foldwise.tasks.outputs import Output
from foldwise.tasks.views import SYMMETRIES

CLASSES = ("a", "b", "c")


def spec(task="multiclass", size=(16, 24), mode="stored", channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)):
    images = {"image": {"scale": None, "mean": list(mean), "std": list(std)}}
    described = make_spec(task, CLASSES, channels, image_size=size, images=images)
    return replace(described, samples={**described.samples, "mode": mode})


class Pure(Network):
    """A network of an image alone."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return {"logits": self.net(batch["image"])}


def of(net, described, samples=None):
    """The model of a network."""
    net = net if isinstance(net, Network) else Pure(net)
    return Model(normalize(net, described), samples or Samples(described.samples["mode"]), described)


def model(seed=0, segmentation=False, **values):
    described = spec("segmentation" if segmentation else "multiclass", **values)
    torch.manual_seed(seed)
    layers = [nn.Conv2d(described.network["channels"]["image"], 3, 3, padding=1), nn.BatchNorm2d(3)]
    if not segmentation:
        layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)]
    return of(nn.Sequential(*layers), described)


class Pixelwise(nn.Module):
    """A network that is equivariant by construction: logits of a pixel from that pixel alone."""

    def forward(self, x):
        return x * torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1)


class FirstChannel(nn.Module):
    """Three logits that tell how bright a pixel is."""

    def forward(self, x):
        return torch.stack([x[:, 0], 0 * x[:, 0], -x[:, 0]], dim=1)


def table_of(paths, **columns):
    """A table of pictures, under the root of the file system."""
    frame = pd.DataFrame({"id": [path.stem for path in paths], "image": [str(path)[1:] for path in paths]})
    return Table(frame.assign(**columns), "multiclass", CLASSES, Path("/"), None, Path("test.csv"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Seven colour pictures of different sizes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for index, size in enumerate([(16, 24), (31, 17), (40, 60), (8, 8), (16, 24), (5, 90), (33, 33)]):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), size[::-1]))
        paths.append(path)
    return paths


def predict(predictor, paths):
    """The values of the main output of each image, (M, V, C, ...)."""
    found = list(predictor.predict(table_of(paths), range(len(paths))))
    assert [place for place, _ in found] == list(range(len(paths)))
    return [values[""] for _, values in found]


def run(models, paths, tta=None, **options):
    """The probabilities (M, C) or (M, C, H, W) of each image, views averaged."""
    predictor = Predictor(models, tta or TTA(), **{"workers": 0, **options})
    return [values[:, 0] for values in predict(predictor, paths)]


def test_the_same_as_one_image_at_a_time_by_hand(paths):
    whole = model()
    mean, std = (torch.tensor(whole.spec.images["image"][key]).view(3, 1, 1) for key in ("mean", "std"))
    for result, path in zip(run([whole], paths), paths, strict=True):
        image = resize(read_image(path), whole.spec.image_size).transpose(2, 0, 1).astype(np.float32) / 255
        with torch.no_grad():
            expected = whole.network.net.net.eval()((torch.from_numpy(image) - mean)[None] / std).softmax(1)
        assert result.shape == (1, 3) and result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("segmentation", [False, True])
def test_batches_and_workers_do_not_matter(paths, segmentation):
    models = [model(0, segmentation), model(1, segmentation)]
    one = run(models, paths, batch_size=1)
    for options in ({"batch_size": 3}, {"batch_size": 100}):
        for first, second in zip(one, run(models, paths, **options), strict=True):
            np.testing.assert_allclose(first, second, atol=1e-6)
    base = run(models, paths, batch_size=3)
    state = torch.get_rng_state()
    for workers in (1, 2):
        for first, second in zip(base, run(models, paths, batch_size=3, workers=workers), strict=True):
            np.testing.assert_array_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_segmentation_comes_out_at_the_stored_size(paths):
    for result, path in zip(run([model(segmentation=True)] * 2, paths, batch_size=4), paths, strict=True):
        height, width, _ = read_image(path).shape
        assert result.shape == (2, 3, height, width)
        np.testing.assert_allclose(result.sum(1), 1, atol=1e-5)


def test_d4_of_an_equivariant_network_changes_nothing(paths):
    """On 16 x 24 and its odd stored sizes: a wrong inverse, or height and width confused, would show."""
    described = spec("segmentation")
    models = [of(Pixelwise(), described)]
    for mean in ("arithmetic", "geometric"):
        for plain, d4 in zip(run(models, paths), run(models, paths, TTA.choose(list(SYMMETRIES), mean)), strict=True):
            np.testing.assert_allclose(d4, plain, atol=1e-5)


def test_a_bright_corner_is_found_where_it_is(tmp_path):
    image = np.zeros((40, 20, 3), np.uint8)
    image[30:, 12:, 0] = 255  # red: the file is written as BGR
    cv2.imwrite(str(tmp_path / "x.png"), image[..., ::-1])
    described = spec("segmentation", size=(20, 10), mean=(0.5,) * 3, std=(0.1,) * 3)
    net = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    result = run([of(net, described)], [tmp_path / "x.png"], TTA.choose(list(SYMMETRIES)))[0][0, 0]
    assert result[32:, 14:].min() > 0.9 and result[:28, :10].max() < 0.5


def test_maps_grow_about_the_pixels_centres(tmp_path):
    """Two pixels become four: their centres are at 0.5 and 2.5 of the four, not at the corners."""
    cv2.imwrite(str(tmp_path / "x.png"), np.repeat(np.array([[[0], [255]]], np.uint8), 2, axis=1).repeat(3, axis=2))
    described = spec("segmentation", size=(1, 2), mean=(0.5,) * 3, std=(0.1,) * 3)
    result = run([of(FirstChannel(), described)], [tmp_path / "x.png"])[0][0]
    first, last = result[0, 0, 0], result[0, 0, 3]
    np.testing.assert_allclose(result[0, 0, 1:3], [0.75 * first + 0.25 * last, 0.25 * first + 0.75 * last], atol=1e-6)


def test_models_of_other_sizes_and_modes_share_one_pass(paths):
    first, second = model(0), model(1, size=(8, 8), mode="gray", channels=1, mean=(0.5,), std=(0.2,))
    both = run([first, second, first], paths, batch_size=4)
    for mixed, one, two in zip(both, run([first], paths), run([second], paths), strict=True):
        np.testing.assert_allclose(mixed, np.concatenate([one, two, one]), atol=1e-6)


def test_segmentation_models_of_other_sizes_share_one_pass(paths):
    first, second = model(0, True), model(1, True, size=(8, 12))
    for mixed, one, two in zip(*(run(m, paths) for m in ([first, second], [first], [second])), strict=True):
        np.testing.assert_allclose(mixed, np.concatenate([one, two]), atol=1e-6)


def test_multilabel_is_a_sigmoid_a_class(paths):
    net = model().network.net
    result = run([of(net, spec("multilabel"))], paths)[0]
    logits = torch.from_numpy(run([of(net, spec())], paths)[0]).log()
    assert not np.isclose(result.sum(), 1)
    torch.testing.assert_close(torch.from_numpy(result).logit().diff(), logits.diff(), atol=1e-4, rtol=1e-4)


def test_sixteen_bit_among_eight_bit(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "8.png"), values)
    cv2.imwrite(str(tmp_path / "16.png"), values.astype(np.uint16) * 257)
    eight, sixteen = run([model(size=(9, 9))], [tmp_path / "8.png", tmp_path / "16.png"], batch_size=2)
    np.testing.assert_allclose(eight, sixteen, atol=1e-6)


def test_sixteen_bit_for_a_model_of_eight_is_refused(tmp_path):
    """A trained model has the scale of its images: 16 bits would be 257 times as bright."""
    values = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "8.png"), values)
    cv2.imwrite(str(tmp_path / "16.png"), values.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "8 in 16.png"), values.astype(np.uint16))
    described = replace(spec(), images={"image": {**spec().images["image"], "scale": 255.0}})
    trained = of(model().network.net, described)
    eight, stored = run([trained], [tmp_path / "8.png", tmp_path / "8 in 16.png"])
    np.testing.assert_allclose(eight, stored, atol=1e-3)  # resized as numbers of another type
    with pytest.raises(ImageError, match=r"16\.png has values above 255, but the model was trained on 8 bits"):
        run([trained], [tmp_path / "16.png"])


@pytest.mark.parametrize("workers", [0, 2])
def test_grey_pictures_among_rgb_are_converted_as_data_mode_does(tmp_path, paths, workers):
    """A model of `stored` images predicts grey, grey with alpha and RGBA as the same model of `rgb` images."""
    grey = np.random.default_rng(0).integers(0, 255, (30, 20, 4), np.uint8)
    others = [tmp_path / "1.png", tmp_path / "2.png", tmp_path / "4.png"]
    for path, image in zip(others, (grey[..., 0], Image.fromarray(grey[..., :2], "LA"), grey), strict=True):
        (image if path.stem == "2" else Image.fromarray(image)).save(path)
    stored, rgb = model(), model(mode="rgb")
    predictor = Predictor([stored], TTA(), workers=workers)
    found = [values[:, 0] for values in predict(predictor, [*paths[:2], *others])]
    (note,) = describe_notes(predictor.notes, [stored])
    assert note.startswith("3 pictures do not have the channels of the training images")
    assert "data.mode=rgb" in note and all(str(path) in note for path in others)
    for one, other in zip(found, run([rgb], [*paths[:2], *others]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_cannot_be_read_are_named(tmp_path, paths, workers):
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:60])
    tifffile.imwrite(tmp_path / "many.tif", np.zeros((8, 8, 7), np.uint8), photometric="minisblack")
    for name, message in (("broken.png", "broken.png cannot be decoded"), ("many.tif", "many.tif has 7 channels")):
        with pytest.raises(ImageError, match=message) as caught:
            run([model()], [*paths[:2], tmp_path / name], workers=workers)
        assert "Traceback" not in str(caught.value)


def test_bfloat16_is_close_and_other_precisions_are_refused(paths):
    full, half = (run([model()], paths, precision=precision) for precision in ("32", "bf16-mixed"))
    np.testing.assert_allclose(np.concatenate(full), np.concatenate(half), atol=0.02)
    assert not np.array_equal(np.concatenate(full), np.concatenate(half))
    with pytest.raises(Refusal, match="needs a GPU"):
        Predictor([model()], TTA(), precision="16-mixed")
    with pytest.raises(Refusal, match="one of 32"):
        Predictor([model()], TTA(), precision="64")


def test_models_of_different_tasks_are_refused_and_no_images_are_no_results():
    whole = model()
    with pytest.raises(Refusal, match="differ in task or number of classes"):
        Predictor([whole, of(whole.network.net, spec("multilabel"))], TTA())
    assert run([whole], []) == []


@pytest.mark.parametrize("segmentation", [False, True])
def test_views_are_kept_apart_and_their_mean_is_the_prediction(paths, segmentation):
    models = [model(0, segmentation), model(1, segmentation)]
    crops = [] if segmentation else ["centre"]
    tta = TTA.choose(["identity", "hflip"], scales=[1.0, 2.0], crops=crops)
    predictor = Predictor(models, tta, workers=0, keep_views=True)
    names = ["identity", "hflip", "identity@2", "hflip@2"]
    assert predictor.views == names + ([] if segmentation else ["identity@centre", "hflip@centre"])
    for views, mean in zip(predict(predictor, paths), run(models, paths, tta), strict=True):
        assert views.shape[:3] == (2, len(predictor.views), 3)
        np.testing.assert_allclose(views.mean(axis=1), mean, atol=1e-5)


def test_maps_of_crops_cannot_be_kept_but_averaged(paths):
    tta = TTA.choose(scales=[], crops=["top-left", "top-right", "bottom-left", "bottom-right"])
    models = [model(segmentation=True)]
    with pytest.raises(Refusal, match="cannot keep the map of a crop"):
        Predictor(models, tta, keep_views=True)
    for result in run(models, paths, tta):
        np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-5)


def test_random_draws_are_the_same_every_time_and_differ_from_each_other(paths):
    brightness = {"_target_": "albumentations.RandomBrightnessContrast", "p": 1.0}
    tta = TTA.choose(draws=3, transforms=[brightness])
    first, second = (predict(Predictor([model()], tta, workers=workers, keep_views=True), paths) for workers in (0, 2))
    np.testing.assert_array_equal(np.stack(first), np.stack(second))
    assert np.stack(first).shape == (7, 1, 3, 3)
    assert not np.allclose(first[0][0, 0], first[0][0, 1])
    with pytest.raises(Refusal, match="cannot be undone"):
        Predictor([model(segmentation=True)], tta)
    with pytest.raises(Refusal, match=r"os.system is not a transform"):
        run([model()], paths, TTA.choose(draws=1, transforms=[{"_target_": "os.system"}]))


def test_networks_of_one_size_take_no_scales():
    fixed, own = (
        replace(spec(), network={**spec().network, "options": {"img_size": [16, 24]}, **name})
        for name in ({"name": "vit"}, {"name": None})
    )
    del own.network["name"]
    for described, name in ((fixed, "vit"), (own, "the network")):
        with pytest.raises(Refusal, match=f"{name} has a fixed input size"):
            Predictor([of(Pixelwise(), described)], TTA.choose(scales=[0.5]))


class Tagged(Samples):
    """A picture with what the state and the table say of it."""

    columns = ("age",)
    fields: Mapping[str, Field] = {
        "image": Field("image"),
        "near": Field("map"),
        "seen": Field("mask"),
        "age": Field("values"),
        "words": Field("codes", ragged=True),
        "secret": Field("values", train_only=True),
    }

    def read(self, rows, item, state, rng):
        assert rng is None and not rows.targets
        image = read_image(rows.path(item.rows[0]), self.mode)
        near = image[:, :, :1].astype(np.float32) + state["add"]
        age = float(rows["age"][item.rows[0]])
        return {"image": image, "near": near, "seen": image[:, :, 0], "age": age, "words": np.arange(int(age)) + 1}


class Everything(Network):
    """Logits that need each field in its place: of a pixel, and of the item."""

    def forward(self, batch):
        assert batch["near"].dtype == torch.float32 and batch["seen"].dtype == torch.int64 and "secret" not in batch
        assert torch.equal(batch["words"].bool(), batch["words_valid"])
        red, near, seen = 255 * batch["image"][:, :1], batch["near"], batch["seen"][:, None].float()
        agree = ((red - near).abs() < 0.5) & ((red - seen).abs() < 0.5)
        age = batch["age"].view(-1, 1, 1, 1)
        told = batch["words_valid"].sum(1).view(-1, 1, 1, 1)
        maps = torch.cat([(red - 128) / 50, age.expand_as(red), torch.where(agree & (told == age), 1.0, 9.0)], 1)
        return {"logits": maps, "old": torch.cat([batch["age"][:, None], torch.zeros(len(maps), 2)], 1), "aux": None}


@pytest.mark.parametrize("views", [["identity"], list(SYMMETRIES)], ids=["one", "d4"])
def test_all_fields_reach_the_network_and_all_outputs_come_back(paths, views):
    outputs = (Output.main("segmentation", CLASSES), Output("old", "old", "target_old", CLASSES, "multiclass"))
    described = replace(spec("segmentation", mean=(0.0,) * 3, std=(1.0,) * 3), outputs=outputs, state={"add": 0.0})
    images = [path for path in paths if read_image(path).shape[:2] == (16, 24)] * 3  # none is resampled
    table = table_of(images, age=["3", "0", "1", "2", "5", "4"])
    predictor = Predictor(
        [of(Everything(), described, Tagged())], TTA.choose(views), workers=1, batch_size=2 * len(views)
    )
    found = [values for _, values in predictor.predict(table)]
    for path, age, values in zip(images, table.frame["age"].astype(float), found, strict=True):
        assert values.keys() == {"", "old"}
        red = torch.from_numpy(read_image(path)[:, :, 0].astype(np.float32))
        expected = torch.stack([(red - 128) / 50, torch.full_like(red, age), torch.ones_like(red)]).softmax(0)
        np.testing.assert_allclose(values[""][0, 0], expected, atol=1e-5)
        np.testing.assert_allclose(values["old"][0, 0], torch.tensor([age, 0.0, 0.0]).softmax(0), atol=1e-6)


def test_an_image_is_decoded_once_for_all_models(paths, monkeypatch):
    """They differ in sizes, modes and states; fields and prediction are as those of each alone."""
    decoded = []
    decode = image_files.decode_image
    monkeypatch.setattr(image_files, "decode_image", lambda path: decoded.append(path) or decode(path))
    first = replace(spec(), state={"add": 0.0})
    specs = [first, replace(first, image_size=(8, 8)), replace(first, state={"add": 3.0}), spec(mode="rgb")]
    specs[3] = replace(specs[3], state={"add": 0.0})

    class Near(Network):
        def forward(self, batch):
            return {"logits": torch.cat([batch["near"].mean((2, 3)) / 50, batch["age"][:, None].expand(-1, 2)], 1)}

    models = [of(Near(), described, Tagged(described.samples["mode"])) for described in specs]
    table = table_of(paths, age=["1"] * len(paths))
    found = [values[""] for _, values in Predictor(models, TTA(), workers=0).predict(table)]
    assert decoded == paths
    for number, alone in enumerate(models):
        for values, (_, own) in zip(found, Predictor([alone], TTA(), workers=0).predict(table), strict=True):
            np.testing.assert_array_equal(values[number], own[""][0])
    assert not np.allclose(found[0][0], found[0][2])


class Patients(Samples):
    """A stack of the pictures of a patient."""

    columns = ("patient",)
    fields: Mapping[str, Field] = {"image": Field("image", ragged=True)}

    def items(self, rows):
        return group_items(rows, "patient")

    def read(self, rows, item, state, rng):
        return {"image": [read_image(rows.path(row), self.mode) for row in item.rows]}


class MeanOfStack(Network):
    """The mean colour of the pictures that there are."""

    def forward(self, batch):
        valid = batch["image_valid"].float()[:, :, None]
        colours = batch["image"].mean((3, 4))
        return {"logits": (colours * valid).sum(1) / valid.sum(1)}


@pytest.mark.parametrize(
    "tta",
    [
        TTA(),
        TTA.choose(list(SYMMETRIES)),
        TTA.choose(scales=[1.0, 2.0]),
        TTA.choose(draws=3, transforms=[{"_target_": "albumentations.HorizontalFlip", "p": 0.5}]),
    ],
    ids=["one", "d4", "scales", "draws"],
)
def test_stacks_of_several_lengths(paths, tta):
    """Items are groups of rows; what pads a stack is seen as such in every view, so the batch makes no difference."""
    samples = Patients()
    table = table_of(paths, patient=list("abbcaaa"))
    whole = of(MeanOfStack(), spec(size=(32, 32)), samples)
    plain = [values[""] for _, values in Predictor([whole], TTA(), workers=0, batch_size=1).predict(table)]
    predictor = Predictor([whole], tta, workers=0, batch_size=100)
    found = list(predictor.predict(table))
    assert [place for place, _ in found] == [0, 1, 2]
    for (_, values), alone in zip(found, plain, strict=True):
        assert values[""].shape == (1, 1, 3)
        np.testing.assert_allclose(values[""], alone, atol=2e-3)  # scaled ones are resampled
    mean, std = (np.array(whole.spec.images["image"][key]) for key in ("mean", "std"))
    by_hand = [(resize(read_image(paths[row]), (32, 32)).mean((0, 1)) / 255 - mean) / std for row in (1, 2)]
    expected = torch.from_numpy(np.mean(by_hand, axis=0)).softmax(0)
    np.testing.assert_allclose(plain[1][0, 0], expected, atol=1e-5)
    last = [values for _, values in predictor.predict(table, [2])]
    np.testing.assert_allclose(last[0][""], found[2][1][""], atol=1e-6)


def test_tiles_of_a_model_with_other_fields(paths):
    """The map in tiles is that of the whole picture, with maps, masks and values beside it."""
    outputs = (Output.main("segmentation", CLASSES),)
    described = spec("segmentation", mean=(0.0,) * 3, std=(1.0,) * 3)
    described = replace(described, outputs=outputs, state={"add": 0.0}, fit="tiles", image_size=(16, 16))
    table = table_of(paths, age=["2"] * len(paths))
    predictor = Predictor([of(Everything(), described, Tagged())], TTA(), workers=0)
    for path, (_, values) in zip(paths, predictor.predict(table), strict=True):
        red = torch.from_numpy(read_image(path)[:, :, 0].astype(np.float32))
        expected = torch.stack([(red - 128) / 50, torch.full_like(red, 2), torch.ones_like(red)]).softmax(0)
        assert values[""].dtype == np.uint8 and values[""].shape == (1, 1, 3, *red.shape)
        np.testing.assert_allclose(values[""][0, 0], 255 * expected, atol=1)


def test_an_output_that_the_network_does_not_give_is_named(paths):
    outputs = (Output("", "logit", "target", CLASSES, "multiclass"),)
    with pytest.raises(Refusal, match="the network returns logits but not logit"):
        run([of(model().network.net, replace(spec(), outputs=outputs))], paths)
