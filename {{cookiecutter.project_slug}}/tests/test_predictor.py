"""The prediction loop: order, sizes, sharing, errors, and that neither batches nor workers matter."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from foldwise.data.images import ImageError, read_image, resize
from foldwise.errors import Refusal
from foldwise.inference.predictor import Predictor
from foldwise.inference.tta import TTA
from foldwise.inference.views import SYMMETRIES
from foldwise.inference.weights import ModelSpec
from foldwise.models.normalized import Normalized


def spec(task="multiclass", size=(16, 24), **values):
    defaults = {
        "task": task,
        "architecture": {},
        "channels": 3,
        "classes": ("a", "b", "c"),
        "image_size": size,
        "fit": "stretch",
        "mode": "stored",
        "scale": None,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.25, 0.3),
    }
    return ModelSpec(**{**defaults, **values})


def model(seed=0, segmentation=False, **values):
    described = spec("segmentation" if segmentation else "multiclass", **values)
    torch.manual_seed(seed)
    layers = [nn.Conv2d(described.channels, 3, 3, padding=1), nn.BatchNorm2d(3)]
    if not segmentation:
        layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)]
    return Normalized(nn.Sequential(*layers), described.mean, described.std), described


class Pixelwise(nn.Module):
    """A network that is equivariant by construction: logits of a pixel from that pixel alone."""

    def forward(self, x):
        return x * torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1)


class FirstChannel(nn.Module):
    """Three logits that tell how bright a pixel is."""

    def forward(self, x):
        return torch.stack([x[:, 0], 0 * x[:, 0], -x[:, 0]], dim=1)


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


def run(models, paths, tta=None, **options):
    """The probabilities (M, C) or (M, C, H, W) of each image, views averaged."""
    predictor = Predictor(models, tta or TTA(), **{"workers": 0, **options})
    return [result[:, 0] for _, result in predictor.predict(paths)]


def test_the_same_as_one_image_at_a_time_by_hand(paths):
    net, described = model()
    for result, path in zip(run([(net, described)], paths), paths, strict=True):
        image = resize(read_image(path), described.image_size).transpose(2, 0, 1).astype(np.float32) / 255
        x = (torch.from_numpy(image) - torch.tensor(described.mean).view(3, 1, 1)) / torch.tensor(described.std).view(
            3, 1, 1
        )
        with torch.no_grad():
            expected = net.net.eval()(x[None]).softmax(1)
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
    models = [(Normalized(Pixelwise(), described.mean, described.std), described)]
    for mean in ("arithmetic", "geometric"):
        for plain, d4 in zip(run(models, paths), run(models, paths, TTA(list(SYMMETRIES), mean)), strict=True):
            np.testing.assert_allclose(d4, plain, atol=1e-5)


def test_a_bright_corner_is_found_where_it_is(tmp_path):
    image = np.zeros((40, 20, 3), np.uint8)
    image[30:, 12:, 0] = 255  # red: the file is written as BGR
    cv2.imwrite(str(tmp_path / "x.png"), image[..., ::-1])
    described = spec("segmentation", size=(20, 10), mean=(0.5,) * 3, std=(0.1,) * 3)
    net = Normalized(nn.Conv2d(3, 3, 1, bias=False), described.mean, described.std)
    with torch.no_grad():
        net.net.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    result = run([(net, described)], [tmp_path / "x.png"], TTA(list(SYMMETRIES)))[0][0, 0]
    assert result[32:, 14:].min() > 0.9 and result[:28, :10].max() < 0.5


def test_maps_grow_about_the_pixels_centres(tmp_path):
    """Two pixels become four: their centres are at 0.5 and 2.5 of the four, not at the corners."""
    cv2.imwrite(str(tmp_path / "x.png"), np.repeat(np.array([[[0], [255]]], np.uint8), 2, axis=1).repeat(3, axis=2))
    described = spec("segmentation", size=(1, 2), mean=(0.5,) * 3, std=(0.1,) * 3)
    result = run([(Normalized(FirstChannel(), described.mean, described.std), described)], [tmp_path / "x.png"])[0][0]
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
    net, described = model()
    described = spec("multilabel")
    result = run([(net, described)], paths)[0]
    logits = torch.from_numpy(run([(net, spec())], paths)[0]).log()
    assert not np.isclose(result.sum(), 1)
    torch.testing.assert_close(torch.from_numpy(result).logit().diff(), logits.diff(), atol=1e-4, rtol=1e-4)


def test_sixteen_bit_among_eight_bit(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "8.png"), values)
    cv2.imwrite(str(tmp_path / "16.png"), values.astype(np.uint16) * 257)
    eight, sixteen = run([model(size=(9, 9))], [tmp_path / "8.png", tmp_path / "16.png"], batch_size=2)
    np.testing.assert_allclose(eight, sixteen, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_cannot_be_read_are_named(tmp_path, paths, workers):
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:60])
    cv2.imwrite(str(tmp_path / "gray.png"), np.zeros((8, 8), np.uint8))
    for name, message in (("broken.png", "broken.png cannot be decoded"), ("gray.png", "gray.png has 1 channels")):
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
    net, described = model()
    with pytest.raises(Refusal, match="not of one task"):
        Predictor([(net, described), (net, spec("multilabel"))], TTA())
    assert run([(net, described)], []) == []


@pytest.mark.parametrize("segmentation", [False, True])
def test_views_are_kept_apart_and_their_mean_is_the_prediction(paths, segmentation):
    models = [model(0, segmentation), model(1, segmentation)]
    crops = [] if segmentation else ["centre"]
    tta = TTA(["identity", "hflip"], scales=[1.0, 2.0], crops=crops)
    predictor = Predictor(models, tta, workers=0, keep_views=True)
    names = ["identity", "hflip", "identity@2", "hflip@2"]
    assert predictor.views == names + ([] if segmentation else ["identity@centre", "hflip@centre"])
    for (_, views), mean in zip(predictor.predict(paths), run(models, paths, tta), strict=True):
        assert views.shape[:3] == (2, len(predictor.views), 3)
        np.testing.assert_allclose(views.mean(axis=1), mean, atol=1e-5)


def test_maps_of_crops_cannot_be_kept_but_averaged(paths):
    tta = TTA(scales=[], crops=["top-left", "top-right", "bottom-left", "bottom-right"])
    models = [model(segmentation=True)]
    with pytest.raises(Refusal, match="a crop sees a part"):
        Predictor(models, tta, keep_views=True)
    for result in run(models, paths, tta):
        np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-5)


def test_random_draws_are_the_same_every_time_and_differ_from_each_other(paths):
    brightness = {"_target_": "albumentations.RandomBrightnessContrast", "p": 1.0}
    tta = TTA(draws=3, transforms=[brightness])
    first, second = (
        [result for _, result in Predictor([model()], tta, workers=workers, keep_views=True).predict(paths)]
        for workers in (0, 2)
    )
    np.testing.assert_array_equal(np.stack(first), np.stack(second))
    assert np.stack(first).shape == (7, 1, 3, 3)
    assert not np.allclose(first[0][0, 0], first[0][0, 1])
    with pytest.raises(Refusal, match="cannot be turned back"):
        Predictor([model(segmentation=True)], tta)
    with pytest.raises(Refusal, match=r"os.system is not a transform"):
        run([model()], paths, TTA(draws=1, transforms=[{"_target_": "os.system"}]))


def test_networks_of_one_size_take_no_scales():
    net, described = model(architecture={"name": "vit", "options": {"img_size": [16, 24]}})
    with pytest.raises(Refusal, match="vit takes images of one size only"):
        Predictor([(net, described)], TTA(scales=[0.5]))
