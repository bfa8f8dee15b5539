"""Views and their inverses on odd, non-square maps, and the two means."""

from pathlib import Path

import pytest
import torch

from competition.inference.tta import TTA, VIEWS, average, load_tta

CONFIGS = Path(__file__).parents[1] / "configs" / "tta"
D4 = list(VIEWS)


def picture(height, width, batch=2):
    return torch.arange(batch * 3 * height * width, dtype=torch.float32).view(batch, 3, height, width) % 251


def corners(x):
    """Where the four corners' values went, which tells the eight views of a picture apart."""
    return tuple(x[0, 0, row, column].item() for row in (0, -1) for column in (0, -1))


@pytest.mark.parametrize("size", [(5, 7), (7, 5), (4, 4), (1, 3)])
@pytest.mark.parametrize("name", D4)
def test_inverse_turns_back_exactly(name, size):
    x, view = picture(*size), VIEWS[name]
    assert torch.equal(view.inverse(view.forward(x)), x)
    assert torch.equal(view.forward(view.inverse(x)), x)
    assert (view.forward(x).shape[-2:] == size) == (not view.swaps or size[0] == size[1])


def test_the_views_are_the_eight_of_the_square_by_name():
    x = torch.tensor([[1, 2], [3, 4]]).float()[None, None]
    assert {name: corners(view.forward(x)) for name, view in VIEWS.items()} == {
        "identity": (1, 2, 3, 4),
        "hflip": (2, 1, 4, 3),
        "vflip": (3, 4, 1, 2),
        "rot180": (4, 3, 2, 1),
        "rot90": (2, 4, 1, 3),  # counterclockwise
        "rot270": (3, 1, 4, 2),
        "transpose": (1, 3, 2, 4),
        "antitranspose": (4, 2, 3, 1),
    }


def pixelwise(x):
    """A network that is equivariant by construction: a function of each pixel alone."""
    return torch.stack([x.sum(1) / 251, x[:, 0].sin(), x[:, 1].cos()], dim=1).softmax(1)


@pytest.mark.parametrize("size", [(5, 7), (7, 4), (6, 6)])
@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_an_equivariant_network_gives_the_same_map(size, mean):
    x = picture(*size)
    torch.testing.assert_close(TTA(D4, mean).predict(pixelwise, x, True), pixelwise(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in D4 if name != "identity"])
def test_a_map_that_is_not_turned_back_would_show(name):
    x = picture(5, 5)
    assert not torch.allclose(pixelwise(VIEWS[name].forward(x)), pixelwise(x), atol=1e-3)


def test_views_of_one_shape_are_one_batch_and_the_images_stay_in_order():
    shapes = []

    def network(x):
        shapes.append(tuple(x.shape))
        return x.mean((2, 3)).softmax(1)

    x = torch.rand(3, 2, 4, 6)
    result = TTA(D4).predict(network, x, True)
    assert shapes == [(12, 2, 4, 6), (12, 2, 6, 4)]
    torch.testing.assert_close(result, x.mean((2, 3)).softmax(1))
    shapes.clear()
    TTA(D4).predict(network, torch.rand(3, 2, 4, 4), True)
    assert shapes == [(24, 2, 4, 4)]


def test_arithmetic_mean_weighs_views_alike_over_both_shapes():
    def first_pixel(x):
        return torch.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], 1)

    x = torch.rand(2, 1, 3, 4)
    views = ["identity", "rot90", "transpose", "rot180"]
    expected = torch.stack([x[:, 0, 0, 0], x[:, 0, 0, -1], x[:, 0, 0, 0], x[:, 0, -1, -1]]).mean(0)
    torch.testing.assert_close(TTA(views).predict(first_pixel, x, True)[:, 0], expected)


def test_geometric_mean_of_exclusive_classes_is_the_softmax_of_the_mean_log():
    probabilities = torch.randn(5, 4, 3).softmax(-1)
    result = average(list(probabilities), "geometric", True)
    torch.testing.assert_close(result, probabilities.log().mean(0).softmax(-1))


def test_geometric_mean_of_labels_is_the_sigmoid_of_the_mean_logit():
    logits = torch.randn(5, 4, 3)
    result = average(list(logits.sigmoid()), "geometric", False)
    torch.testing.assert_close(result, logits.mean(0).sigmoid(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_geometric_mean_is_finite_at_zero_and_one(exclusive):
    first, second = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    result = average([first, second], "geometric", exclusive)
    assert result.isfinite().all() and (result >= 0).all() and (result <= 1).all()
    torch.testing.assert_close(result[0, :2], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    assert result[0, 2] < 1e-3


def test_bad_choices_are_refused_with_the_good_ones():
    for views in ([], ["hflip", "hflip"], "hflip"):
        with pytest.raises(ValueError, match="list of different views"):
            TTA(views)
    with pytest.raises(ValueError, match="tta.views has rot45; there are identity, "):
        TTA(["identity", "rot45"])
    with pytest.raises(ValueError, match="arithmetic, geometric"):
        TTA(mean="harmonic")


def test_every_config_loads_without_hydra(tmp_path):
    found = {path.stem: load_tta(path).views for path in CONFIGS.glob("*.yaml")}
    assert found["none"] == ("identity",) and found["flips"] == ("identity", "hflip") and found["d4"] == tuple(D4)
    with pytest.raises(ValueError, match="there is no TTA .*/d5.yaml; .* has d4, flips, none"):
        load_tta(CONFIGS / "d5.yaml")
    (tmp_path / "bad.yaml").write_text("views: [identity]\nmeans: arithmetic\n")
    with pytest.raises(ValueError, match="keys views and mean"):
        load_tta(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("views: [5]\nmean: arithmetic\n")
    with pytest.raises(ValueError, match=r"bad.yaml: tta.views has 5"):
        load_tta(tmp_path / "bad.yaml")
