"""Networks over stacks of pictures and metadata: padding takes no part, and a pool is what its formula says."""

import pytest
import torch
from torch import Tensor, nn

from foldwise.errors import Refusal
from foldwise.models.networks import ImageNetwork
from foldwise.models.pooled import FUSIONS, Fusion, PooledNetwork
from foldwise.models.pools import POOLS, Pool, build_pool, encode_stack

CHANNELS, OUTPUTS = {"image": 3}, {"logits": 4}
OPTIONS = {"slots": {"slots": 3}, "gru": {"hidden": 5}, "both_gru": {"hidden": 5}, "transformer": {"width": 8}}
OPTIONS |= {"recurrent_attention": {"width": 5}}
LENGTHS = torch.tensor([1, 3, 2])


def make(name: str, features: int = 8) -> Pool:
    torch.manual_seed(0)
    return build_pool(name, features, **OPTIONS.get(name, {})).eval()


def stack() -> tuple[Tensor, Tensor, Tensor]:
    """Features of three items of 1, 3 and 2 pictures, padded with large numbers; which are real; their slots."""
    torch.manual_seed(1)
    features, valid = torch.randn(3, 3, 8), torch.arange(3) < LENGTHS[:, None]
    slot = torch.tensor([[1, 0, 0], [0, 1, 2], [2, 0, 0]])
    return torch.where(valid.unsqueeze(-1), features, 1e3), valid, slot


@pytest.mark.parametrize("name", POOLS)
def test_an_item_alone_equals_itself_in_a_padded_batch(name: str) -> None:
    pool, (features, valid, slot) = make(name), stack()
    found = pool(features, valid, slot)
    assert found.shape == (3, pool.width)
    for row, length in enumerate(LENGTHS):
        alone = pool(features[row : row + 1, :length], None, slot[row : row + 1, :length])
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-6, atol=1e-6)


def test_a_networks_answer_for_an_item_is_the_same_in_a_padded_batch() -> None:
    torch.manual_seed(0)
    net = PooledNetwork(CHANNELS, OUTPUTS, "test_resnet", "attention", numbers=["a"]).eval()
    nn.init.normal_(net.classifier.weight)
    images, valid, numbers = torch.randn(3, 3, 3, 32, 32), torch.arange(3) < LENGTHS[:, None], torch.randn(3, 2)
    found = net({"image": images, "image_valid": valid, "numbers": numbers})["logits"]
    for row, length in enumerate(LENGTHS):
        alone = net({"image": images[row : row + 1, :length], "numbers": numbers[row : row + 1]})["logits"]
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_the_order_of_pictures_matters_only_where_it_should(name: str) -> None:
    pool, (features, _, slot) = make(name), stack()
    for parameter in pool.parameters():
        nn.init.normal_(parameter)
    order = torch.tensor([2, 0, 1])
    before, after = pool(features, None, slot), pool(features[:, order], None, slot[:, order])
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4) == (
        name not in ("gru", "both_gru", "recurrent_attention", "transformer")
    )


def test_pools_by_their_formulas() -> None:
    features, valid, slot = stack()
    real = [features[row, :length] for row, length in enumerate(LENGTHS)]
    by_hand = {
        "mean": torch.stack([x.mean(0) for x in real]),
        "max": torch.stack([x.amax(0) for x in real]),
        "max_min": torch.stack([torch.cat([x.amax(0), x.amin(0)]) for x in real]),
        "range": torch.stack([x.amax(0) - x.amin(0) for x in real]),
    }
    for name, expected in by_hand.items():
        torch.testing.assert_close(make(name)(features, valid), expected)
    attention = make("attention")
    score = attention.gate(features).squeeze(-1).exp() * valid
    expected = (features * (score / score.sum(1, keepdim=True)).unsqueeze(-1)).sum(1)
    torch.testing.assert_close(attention(features, valid), expected)

    gru = make("both_gru")
    outputs, last = gru.gru(real[2].unsqueeze(0))
    expected = torch.cat([last[0], last[1], outputs.amax(1)], 1)
    torch.testing.assert_close(gru(features, valid)[2:], expected)

    recurrent = make("recurrent_attention")
    first = recurrent.layers[0](real[1][None])[0]
    both = torch.cat([real[1][None], first, recurrent.layers[1](first)[0]], 2)
    expected = (both * recurrent.gate(both).softmax(1)).sum(1)
    torch.testing.assert_close(recurrent(features, valid)[1:2], expected)

    beside = build_pool(["range", "gru"], 8, gru={"hidden": 5})
    expected = torch.cat([pool(features, valid) for pool in beside.pools], 1)
    assert torch.equal(beside(features, valid), expected) and beside.width == 8 + 10

    zero = torch.zeros(8)
    expected = torch.stack(
        [
            torch.cat([zero, real[0][0], zero, torch.tensor([0.0, 1, 0])]),
            torch.cat([*real[1], torch.ones(3)]),
            torch.cat([real[2][1], zero, real[2][0], torch.tensor([1.0, 0, 1])]),
        ]
    )
    torch.testing.assert_close(make("slots")(features, valid, slot), expected)
    both = make("slots")(features[2:], valid[2:], torch.tensor([[1, 1, 0]]))  # two pictures of one view: their mean
    torch.testing.assert_close(both[0, 8:16], real[2].mean(0))


def test_chunks_change_nothing_and_wait_for_batch_norms() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images, valid = torch.randn(3, 3, 3, 8, 8), torch.arange(3) < LENGTHS[:, None]
    passes = []
    encoder.register_forward_hook(lambda *given: passes.append(len(given[1][0])))
    for training, sizes in ((False, [6, 2, 2, 2]), (True, [6, 6])):
        passes.clear()
        encoder.train(training)
        whole = encode_stack(encoder, images, valid)
        torch.testing.assert_close(encode_stack(encoder, images, valid, chunk=2), whole)
        assert passes == sizes


def test_chunks_keep_few_activations_and_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = []
    for images in torch.randn(2, 2, 3, 8, 8), torch.randn(2, 20, 3, 8, 8):
        for chunk in (None, 2):
            kept: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
            ):
                encoded = encode_stack(encoder, images, chunk=chunk)
            encoder.zero_grad()
            encoded.square().sum().backward()
            found.append((sum(kept), [parameter.grad.clone() for parameter in encoder.parameters()]))
    for (whole, gradients), (few, same) in (found[:2], found[2:]):
        assert few < whole / 4
        torch.testing.assert_close(same, gradients)


def test_one_picture_with_the_mean_is_the_plain_network() -> None:
    torch.manual_seed(0)
    plain = ImageNetwork("timm", "test_resnet", CHANNELS, OUTPUTS).eval()
    nn.init.normal_(plain.net.fc.weight)
    pooled = PooledNetwork(CHANNELS, OUTPUTS, "test_resnet", "mean").eval()
    pooled.encoder.load_state_dict({n: t for n, t in plain.net.state_dict().items() if not n.startswith("fc")})
    pooled.classifier.load_state_dict(plain.net.fc.state_dict())
    images = torch.randn(2, 3, 32, 32)
    expected = plain({"image": images})["logits"]
    assert torch.equal(pooled({"image": images.unsqueeze(1)})["logits"], expected)


@pytest.mark.parametrize("pool", [*POOLS, None])
@pytest.mark.parametrize("fusion", [None, *FUSIONS])
def test_every_pool_with_every_fusion(pool: str | None, fusion: str | None) -> None:
    if pool in ("max", "max_min", "both_gru") and fusion not in (None, "gated"):
        return
    metadata = {"numbers": ["a"], "categories": ["b", "c"], "fusion": fusion} if fusion else {}
    torch.manual_seed(0)
    net = PooledNetwork(CHANNELS, OUTPUTS, "test_resnet", pool, OPTIONS.get(pool or ""), **metadata).train()
    batch = {"image": torch.randn(4, 3, 32, 32)}
    batch |= {"numbers": torch.randn(4, 2), "categories": torch.zeros(4, 2).long()} if fusion else {}
    if pool:
        batch |= {"image": torch.randn(4, 2, 3, 32, 32), "slot": torch.tensor([[0, 1]] * 4)}
        batch["image_valid"] = torch.tensor([[True, True], [True, False]] * 2)
    logits = net(batch)["logits"]
    assert not logits.any()  # a new network says the same of every item
    logits.square().sum().backward()
    untouched = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert not untouched


def test_metadata_is_left_out_for_some_training_samples_only() -> None:
    torch.manual_seed(0)
    fusion = Fusion(2, 1, 0, "concat", dropout=0.4)
    batch, features = {"numbers": torch.randn(2000, 2)}, torch.randn(2000, 2)
    nn.init.ones_(fusion.metadata[2].bias)
    dropped = (fusion.train()(features, fusion.encode(batch))[:, 2:] == 0).all(1)
    assert 0.36 < dropped.float().mean() < 0.44
    assert not (fusion.eval()(features, fusion.encode(batch))[:, 2:] == 0).all(1).any()


def test_heads_see_what_the_classifier_sees() -> None:
    heads = {"tags": {"kind": "rows", "at": None, "keep": False, "detach": False}}
    net = PooledNetwork(CHANNELS, OUTPUTS | {"tags": 2}, "test_resnet", numbers=["a"], fusion="gated", heads=heads)
    nn.init.normal_(net.heads["tags_head"].classifier.weight)
    nn.init.normal_(net.classifier.weight)
    batch = {"image": torch.randn(4, 3, 32, 32), "numbers": torch.randn(4, 2)}
    seen = []
    net.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    outputs = net.eval()(batch)
    torch.testing.assert_close(outputs["tags"], net.heads["tags_head"].classifier(seen[0]))
    assert list(outputs) == ["logits", "tags"]
    assert not any(name.startswith("heads") for name in net.lasting_state())
    for head in ({"kind": "maps"}, {"at": "layer1"}):
        with pytest.raises(Refusal, match="outputs.tags: this network has heads of one row per item, without `at`"):
            PooledNetwork(CHANNELS, OUTPUTS | {"tags": 2}, "test_resnet", heads={"tags": heads["tags"] | head})


def test_standardised_features_and_hidden_layers_are_what_plain_layers_give() -> None:
    features, valid, _ = stack()
    encoders = [{"widths": [5]}, {"widths": [2, 1]}]
    metadata = {"categories": ["a"], "fusion_options": {"hidden": 6, "embedding": None}}
    settings = {"normalize": True, "hidden": [7], "dropout": 0.5, "weights": [], "encoders": encoders}
    torch.manual_seed(0)
    net = PooledNetwork(CHANNELS, OUTPUTS, pool="mean", **settings, **metadata)
    nn.init.normal_(net.classifier.weight)
    batch = {"features": features, "features_valid": valid, "categories": torch.tensor([[1], [0], [3]])}
    net.train()(batch)["logits"].sum().backward()
    mean, var = features[valid].mean(0), features[valid].var(0)  # padding takes no part
    torch.testing.assert_close(net.normalize.running_mean, 0.1 * mean)
    torch.testing.assert_close(net.normalize.running_var, 0.9 + 0.1 * var)
    net.eval()
    pooled = torch.stack([net.normalize(features[row, :length]).mean(0) for row, length in enumerate(LENGTHS)])
    codes = nn.functional.one_hot(batch["categories"][:, 0], 64).float()
    fused = torch.cat([pooled, net.fusion.metadata(codes)], 1)
    norm, _, dense, second, relu = net.hidden
    expected = net.classifier(relu(second(dense(norm(fused)))))
    torch.testing.assert_close(net(batch)["logits"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "median"}, "model.pool is 'median'; it must be one of mean, max"),
        ({"pool": ["mean", "median"]}, "model.pool is 'median'; it must be one of mean, max"),
        ({"pool": ["mean", "max"], "pool_options": {"hidden": 2}}, r"model.pool=\['mean', 'max'\] needs names"),
        ({"pool": "gru", "pool_options": {"depth": 2}}, "model.pool=gru cannot be built with model.pool_options"),
        ({"numbers": ["a"], "fusion": "sum"}, "model.fusion is 'sum'; it must be one of concat, film, gated"),
        ({"chunk": 0}, "model.chunk is 0; it must be a whole number from 1, or null"),
        ({"numbers": ["a"], "metadata_dropout": 1.0}, "model.metadata_dropout is 1.0"),
    ],
)
def test_unknown_choices_are_refused(change: dict, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        PooledNetwork(CHANNELS, OUTPUTS, "test_resnet", **change)


def test_items_that_do_not_fit_the_pool_are_refused() -> None:
    image = torch.zeros(2, 3, 32, 32)
    with pytest.raises(Refusal, match="model.pool is set, but items have one picture: set null"):
        PooledNetwork(CHANNELS, OUTPUTS, "test_resnet", "mean")({"image": image})
    with pytest.raises(Refusal, match="model.pool is null, but items have stacks of pictures: choose one"):
        PooledNetwork(CHANNELS, OUTPUTS, "test_resnet")({"image": image.unsqueeze(1)})
    with pytest.raises(Refusal, match=r"set samples\.view and samples\.views"):
        PooledNetwork(CHANNELS, OUTPUTS, "test_resnet", "slots", {"slots": 2})({"image": image.unsqueeze(1)})
    three = {"image": image.unsqueeze(1).expand(2, 3, 3, 32, 32), "slot": torch.tensor([[0, 1, 2]] * 2)}
    with pytest.raises(Refusal, match="model.pool_options.slots is 2, and samples.views has more"):
        PooledNetwork(CHANNELS, OUTPUTS, "test_resnet", "slots", {"slots": 2})(three)


@pytest.mark.parametrize(("name", "declared"), [("numbers", []), ("numbers", ["a"]), ("categories", ["a"])])
def test_metadata_that_the_network_does_not_expect_is_refused(name: str, declared: list) -> None:
    network = PooledNetwork(CHANNELS, OUTPUTS, "test_resnet", None, **{name: declared})
    batch = {"image": torch.zeros(2, 3, 32, 32), name: torch.zeros(2, 4)}
    with pytest.raises(Refusal, match=f"model.{name} and samples.{name} differ"):
        network(batch)
