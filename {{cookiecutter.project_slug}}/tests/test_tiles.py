"""Large pictures in tiles: nothing is lost at seams and borders."""

import numpy as np
import pytest
import torch

from foldwise.inference.tiles import predict_tiled, tiled_logits


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

    result = predict_tiled(image, network, (32, 32), 2, batch_size)
    assert shapes == {(1, 32, 32)} and result.dtype == np.uint8
    expected = np.rint(pixelwise(torch.from_numpy(image)[None])[0].numpy() * 255)
    np.testing.assert_allclose(result, expected, atol=1)


def test_the_softmax_of_tiled_logits_is_that_of_the_logits():
    image = torch.rand((1, 1, 40, 70), generator=torch.Generator().manual_seed(0))

    def network(x):
        return torch.stack([x[:, 0], 2 - 30 * x[:, 0], torch.zeros_like(x[:, 0])], dim=1)

    logits = tiled_logits(network, image, (32, 32), 3)
    torch.testing.assert_close(logits.softmax(1), network(image).softmax(1), atol=0.01, rtol=0)


def test_the_middle_of_a_tile_counts_more_than_its_border():
    """A network that is wrong at its border, as those with padding are, is hardly heard there."""

    def network(x):
        wrong = torch.zeros(len(x), 1, 32, 32)
        wrong[..., 2:-2, 2:-2] = 1
        return torch.cat([wrong, 1 - wrong], 1)

    result = predict_tiled(np.zeros((1, 128, 128), np.float32), network, (32, 32), 2, 8)
    assert result[0, 16:-16, 16:-16].min() > 0.9 * 255


def test_memory_does_not_hold_the_whole_picture_in_floats():
    """The sums are of one row of tiles: for 5 classes, far below the picture's 4 bytes a class and pixel."""
    import tracemalloc

    image = np.zeros((3, 2000, 400), np.uint8)
    tracemalloc.start()
    predict_tiled(image, lambda x: torch.full((len(x), 5, 32, 32), 0.2), (32, 32), 5, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 2000 * 400 * 2
