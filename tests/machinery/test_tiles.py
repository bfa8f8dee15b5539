"""Large pictures in tiles: nothing is lost at seams and borders."""

import numpy as np
import pytest
import torch

from foldwise.inference.tiles import predict_tiled, tiled_outputs
from foldwise.tasks.outputs import Output


def in_tiles(image, network, tile, columns, batch_size):
    """The map of one picture (C, H, W) from a function of tiles."""
    batch = {"image": torch.from_numpy(image)[None]}
    return predict_tiled(
        batch, ["image"], lambda tiles: {"": network(tiles["image"])}, tile, {"": columns}, batch_size
    )[""]


def pixelwise(x):
    """Probabilities of a pixel from that pixel alone: in tiles it must come out as without."""
    return torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (32, 32), (20, 100), (7, 9), (200, 33)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pixelwise_network_gives_the_same_in_tiles(size, batch_size):
    image = np.random.default_rng(0).random((1, *size), np.float32)
    shapes = set()

    def network(x):
        shapes.add(tuple(x.shape[1:]))
        assert len(x) <= batch_size
        return pixelwise(x)

    result = in_tiles(image, network, (32, 32), 2, batch_size)
    assert shapes == {(1, 32, 32)} and result.dtype == np.uint8
    expected = np.rint(pixelwise(torch.from_numpy(image)[None])[0].numpy() * 255)
    np.testing.assert_allclose(result, expected, atol=1)


def test_the_softmax_of_tiled_logits_is_that_of_the_logits():
    image = torch.rand((1, 1, 40, 70), generator=torch.Generator().manual_seed(0))

    def network(x):
        return torch.stack([x[:, 0], 2 - 30 * x[:, 0], torch.zeros_like(x[:, 0])], dim=1)

    outputs = [Output("", "first", "target", ("a", "b", "c"), "segmentation")]
    outputs += [Output("other", "second", "target_other", ("a", "b"), "segmentation")]
    both = tiled_outputs(
        lambda batch: {"first": network(batch["image"]), "second": network(batch["image"])[:, :2], "more": None},
        {"image": image},
        ["image"],
        outputs,
        (32, 32),
    )
    assert list(both) == ["first", "second"]
    torch.testing.assert_close(both["first"].softmax(1), network(image).softmax(1), atol=0.01, rtol=0)
    torch.testing.assert_close(both["second"].softmax(1), network(image)[:, :2].softmax(1), atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [(65, 97), (20, 100)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_tiles_have_all_fields(size, batch_size):
    """Spatial fields are cut together, whatever their dtype; the rest goes with each tile."""
    image = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(0))
    batch = {
        "image": image,
        "stack": torch.stack([image, 1 - image], dim=1),
        "seen": (100 * image[:, 0]).long(),
        "age": torch.tensor([0.25]),
        "words": torch.tensor([[1, 2, 3]]),
    }

    def network(tiles):
        x = tiles["image"]
        assert torch.equal(tiles["stack"], torch.stack([x, 1 - x], dim=1))
        assert torch.equal(tiles["seen"], (100 * x[:, 0]).long())
        assert tiles["age"].tolist() == [0.25] * len(x) and tiles["words"].tolist() == [[1, 2, 3]] * len(x)
        return {"first": x * tiles["age"].view(-1, 1, 1, 1), "more": 1, "second": torch.cat([1 - x, x], 1)}

    columns = {"first": 1, "second": 2}
    result = predict_tiled(batch, ["image", "stack", "seen"], network, (32, 32), columns, batch_size)
    assert list(result) == ["first", "second"]
    for name, expected in (("first", image * 0.25), ("second", torch.cat([1 - image, image], 1))):
        np.testing.assert_allclose(result[name], np.rint(expected[0].numpy() * 255), atol=1)


def test_the_middle_of_a_tile_counts_more_than_its_border():
    """A network that is wrong at its border, as those with padding are, is hardly heard there."""

    def network(x):
        wrong = torch.zeros(len(x), 1, 32, 32)
        wrong[..., 2:-2, 2:-2] = 1
        return torch.cat([wrong, 1 - wrong], 1)

    result = in_tiles(np.zeros((1, 128, 128), np.float32), network, (32, 32), 2, 8)
    assert result[0, 16:-16, 16:-16].min() > 0.9 * 255


def test_memory_does_not_hold_the_whole_image_in_floats():
    """The sums are of one row of tiles: for 5 classes, far below the picture's 4 bytes a class and pixel."""
    import tracemalloc

    image = np.zeros((3, 2000, 400), np.uint8)
    tracemalloc.start()
    in_tiles(image, lambda x: torch.full((len(x), 5, 32, 32), 0.2), (32, 32), 5, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 2000 * 400 * 2
