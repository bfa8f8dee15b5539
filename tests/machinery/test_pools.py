"""Networks over stacks of pictures: padding takes no part, and a pool is what its formula says."""

import pytest
import torch

from foldwise.errors import Refusal
from foldwise.models.networks import PooledNetwork
from foldwise.models.pools import AttentionPool, MeanPool


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_padding_takes_no_part(pool: str) -> None:
    """A batch of three things, of 1, 3 and 2 pictures, says of each what a batch of it alone says."""
    torch.manual_seed(0)
    net = PooledNetwork("test_resnet", {"image": 3}, {"logits": 4}, pool).eval()
    images = torch.randn(3, 3, 3, 32, 32)
    lengths = [1, 3, 2]
    valid = torch.arange(3) < torch.tensor(lengths)[:, None]
    found = net({"image": images, "image_valid": valid})["logits"]
    assert found.shape == (3, 4)
    for row, length in enumerate(lengths):
        alone = net({"image": images[row : row + 1, :length]})["logits"]
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_pools_are_weighted_means() -> None:
    torch.manual_seed(0)
    features, valid = torch.randn(2, 3, 8), torch.tensor([[True, True, False], [True, True, True]])
    mean, attention = MeanPool(), AttentionPool(8)
    torch.testing.assert_close(mean(features, valid)[0], features[0, :2].mean(0))
    torch.testing.assert_close(mean(features), features.mean(1))
    weights = attention.weights(features, valid)
    assert weights[0, 2] == 0 and torch.allclose(weights.sum(1), torch.ones(2))
    score = attention.gate(features).squeeze(-1).exp() * valid
    by_hand = (features * (score / score.sum(1, keepdim=True)).unsqueeze(-1)).sum(1)
    torch.testing.assert_close(attention(features, valid), by_hand)


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(Refusal, match="model.pool is 'max'; it must be mean or attention"):
        PooledNetwork("test_resnet", {"image": 3}, {"logits": 4}, "max")
