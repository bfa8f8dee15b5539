"""Dataset, sampler, loader: what a sample is depends on (seed, epoch, id) and on nothing else."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pandas as pd
import pytest
import torch
from items import item_dataset, read_one
from PIL import Image

from foldwise.data.augmentation import Augmentation, sample_seed
from foldwise.data.batches import unpack
from foldwise.data.dataset import EpochTransform, ItemDataset, make_loader
from foldwise.data.fields import Field
from foldwise.data.samples import Samples
from foldwise.data.sampling import Balanced, EpochSampler, Pool, SampleKey, Sampling, balanced_weights
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal

ROWS = 10
FIELDS = {"image": Field("image"), "target": Field("mask")}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Noisy pictures: red rises with the row number, green is 100, blue 30."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for row in range(ROWS):
        picture = rng.integers(0, 8, (20, 24, 3), np.uint8) + np.array([150 + 10 * row, 100, 30], np.uint8)
        Image.fromarray(picture).save(root / f"{row}.png")
    frame = pd.DataFrame({"id": [f"{row:03}" for row in range(ROWS)], "image": [f"{row}.png" for row in range(ROWS)]})
    frame["label"] = ["a", "b"] * (ROWS // 2)
    frame["weight"] = np.linspace(1, 2, ROWS)
    frame.to_csv(root / "train.csv", index=False)
    return read_table(root / "train.csv", "multiclass", root, Columns(weight="weight"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """16 bit pictures of one channel, bright where the mask is 1."""
    root = tmp_path_factory.mktemp("masked")
    for row in range(2):
        mask = np.zeros((32, 40), np.uint8)
        mask[4:16, 6 : 16 + 8 * row] = 1
        Image.fromarray(mask).save(root / f"mask{row}.png")
        Image.fromarray(mask.astype(np.uint16) * 40000 + 10000).save(root / f"{row}.png")
    frame = pd.DataFrame({"id": ["x", "y"], "image": ["0.png", "1.png"], "mask": ["mask0.png", "mask1.png"]})
    frame.to_csv(root / "train.csv", index=False)
    return read_table(root / "train.csv", "segmentation", root, Columns(), ["background", "thing"])


def noisy() -> Augmentation:
    return Augmentation(
        [
            A.OneOf([A.HorizontalFlip(), A.VerticalFlip()], p=0.5),
            A.Affine(rotate=(-30, 30), p=0.8),
            A.GaussNoise(p=0.5),
        ],
        {"image": FIELDS["image"]},
    )


def batches(table: Table, workers: int, epochs: int = 2, seed: int = 1) -> list[bytes]:
    sampler = EpochSampler(Pool(range(ROWS)), seed=7, batch_size=2)
    loader = make_loader(item_dataset(table, [EpochTransform(noisy(), (16, 24))], seed=seed), sampler, 2, workers)
    result = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in map(unpack, loader):
            result.append(b"".join(batch[key].numpy().tobytes() for key in ("image", "target", "weight", "row")))
    return result


def test_item_of_a_classification_table(labelled: Table) -> None:
    item = read_one(item_dataset(labelled, [EpochTransform(None, (10, 12))]), (4, 0))
    assert item["image"].dtype == torch.uint8 and item["image"].shape == (3, 10, 12)
    assert item["image"].is_contiguous()
    red, green, blue = item["image"].float().mean((1, 2)).tolist()
    assert red == pytest.approx(193.5, abs=2) and green == pytest.approx(103.5, abs=2)  # and not BGR
    assert blue == pytest.approx(33.5, abs=2)
    assert item["target"].tolist() == [1.0, 0.0] and item["target"].dtype == torch.float32
    assert item["weight"].item() == pytest.approx((1 + 4 / 9) / 1.5) and item["weight"].dtype == torch.float32
    assert item["row"] == 4


def test_item_of_a_segmentation_table(masked: Table) -> None:
    item = read_one(item_dataset(masked, [EpochTransform(None, (32, 40))]), SampleKey(1, 0))
    assert item["image"].dtype == torch.float32 and item["image"].shape == (1, 32, 40)
    assert item["target"].dtype == torch.int64 and item["target"].shape == (32, 40)
    assert torch.allclose(item["image"][0], (item["target"] * 40000 + 10000) / 65535)
    scaled = read_one(item_dataset(masked, [EpochTransform(None, (32, 40))], scales={"image": 50000}), (1, 0))["image"]
    assert scaled.max().item() == pytest.approx(1.0)
    rgb = item_dataset(masked, [EpochTransform(None, (16, 16))], samples=Samples("rgb"))
    assert read_one(rgb, (0, 0))["image"].shape == (3, 16, 16)


def test_mask_follows_the_image_through_augmentation_and_resize(masked: Table) -> None:
    dataset = item_dataset(
        masked, [EpochTransform(Augmentation([A.D4(p=1), A.Affine(rotate=(-40, 40), p=1)], FIELDS), (48, 48))]
    )
    for epoch in range(6):
        item = read_one(dataset, (0, epoch))
        seen = item["target"] != 255
        bright = item["image"][0] > 30000 / 65535
        assert item["target"].unique().tolist() in ([0, 1, 255], [0, 1])
        assert ((item["target"] == 1) != bright)[seen].float().mean() < 0.04
        assert ((item["target"] == 1) & seen).sum() > 50


def test_stream_differs_by_seed_epoch_id_and_repeat(labelled: Table) -> None:
    dataset = item_dataset(labelled, [EpochTransform(noisy(), (16, 24))], seed=1)
    other = item_dataset(labelled, [EpochTransform(noisy(), (16, 24))], seed=2)

    def image(source: ItemDataset, *draw: int) -> bytes:
        return read_one(source, SampleKey(*draw))["image"].numpy().tobytes()

    assert len({image(dataset, 0, epoch) for epoch in range(8)}) == 8
    assert len({image(dataset, 0, 0, repeat) for repeat in range(8)}) == 8
    assert image(dataset, 3, 5) == image(dataset, 3, 5) != image(other, 3, 5)
    seeds = {sample_seed(s, e, f"{i:03}", r) for s in range(4) for e in range(5) for i in range(30) for r in range(2)}
    assert len(seeds) == 4 * 5 * 30 * 2


def test_two_ids_are_not_augmented_alike(tmp_path: Path) -> None:
    """The same picture under two ids comes out differently."""
    Image.fromarray(np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "t.csv").write_text("id,image,label\n1,a.png,x\n2,b.png,y\n")
    dataset = item_dataset(
        read_table(tmp_path / "t.csv", "multiclass", tmp_path, Columns()), [EpochTransform(noisy(), (20, 24))]
    )
    same = [
        torch.equal(read_one(dataset, (0, epoch))["image"], read_one(dataset, (1, epoch))["image"])
        for epoch in range(10)
    ]
    assert sum(same) <= 2


def test_sample_seed_is_the_same_everywhere() -> None:
    """Not Python's hash(), which differs from process to process; the value is fixed for good."""
    assert sample_seed(1, 2, "é") == 382930082
    assert 0 <= sample_seed(1, 2, "é") < 2**32


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # fewer cores than workers
def test_workers_do_not_change_a_byte(labelled: Table) -> None:
    alone = batches(labelled, workers=0)
    assert len(alone) == 10 and len(set(alone)) == 10
    assert batches(labelled, workers=1) == alone
    assert batches(labelled, workers=4) == alone
    assert batches(labelled, workers=0, seed=2) != alone


def test_loader_leaves_torchs_random_numbers_alone(labelled: Table) -> None:
    state = torch.get_rng_state()
    batches(labelled, workers=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_starts_no_idle_worker(labelled: Table) -> None:
    dataset = item_dataset(labelled, [EpochTransform(None, (16, 16))])
    assert make_loader(dataset, EpochSampler(Pool(range(ROWS)), 0, 4), 4, workers=8).num_workers == 2
    evaluation = make_loader(dataset, [(row, 0) for row in (5, 1, 2)], 2, workers=0)
    assert [unpack(batch)["row"].tolist() for batch in evaluation] == [[5, 1], [2]]


def batched(draws: Iterable[SampleKey], size: int) -> Iterator[tuple[SampleKey, ...]]:
    """As itertools.batched of Python 3.12."""
    return zip(*[iter(draws)] * size, strict=True)


class Uneven(Sampling):
    """The last 11 of 23 rows are drawn three times as often."""

    def chances(self, epoch: int) -> np.ndarray:
        return np.repeat([1, 3], [12, 11])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        (Sampling(), {}),
        (Uneven(), {}),
        (Sampling(), {"pseudo": Pool(np.arange(200, 209)), "pseudo_shares": [0.5]}),
    ],
    ids=["each", "uneven", "pseudo"],
)
def test_a_step_of_several_ranks_has_the_draws_of_one(sampling: Sampling, options: dict[str, Any], world: int) -> None:
    real = Pool(np.arange(100, 123), sampling)
    samplers = [EpochSampler(real, 3, 6, **options)]
    samplers += [EpochSampler(real, 3, 6 // world, rank, world, **options) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(2)
    alone, *ranks = ([list(draws) for draws in batched(sampler, sampler.step // sampler.world)] for sampler in samplers)
    assert len(alone) == 3 and all(len(each) == 3 for each in ranks)
    for draws, *shares in zip(alone, *ranks, strict=True):
        assert sorted(draw for share in shares for draw in share) == sorted(draws)
        assert len(set(draws)) == 6  # a row that is drawn again is another repeat: no two ranks see the same picture


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[SampleKey]:
        sampler = EpochSampler(Pool(range(50)), seed=seed, batch_size=5)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 4) == order(1, 4)
    rows = [tuple(draw.item for draw in order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)]
    assert len(set(rows)) == 6
    assert {draw.epoch for draw in order(1, 4)} == {4}


def test_short_epochs_are_the_beginnings_of_whole_ones_with_other_items_each() -> None:
    whole, short = (EpochSampler(Pool(range(50)), 1, 5, most=most) for most in (None, 3))
    items = set()
    for epoch in range(8):
        for sampler in (whole, short):
            sampler.set_epoch(epoch)
        assert list(short) == list(whole)[:15] and len(short) == 15
        items |= {draw.item for draw in short}
    assert len(items) > 40
    assert len(EpochSampler(Pool(range(50)), 1, 5, most=100)) == 50


def test_a_batch_that_cannot_be_divided_is_refused_with_its_numbers() -> None:
    with pytest.raises(Refusal, match=r"batch of 8 on each of 2 devices .* 10 training rows.*batch_size=10"):
        EpochSampler(Pool(range(10)), 0, batch_size=8, world=2)


def test_balanced_sampling_evens_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    target = np.eye(3)[labels]
    balanced = Balanced()
    balanced.start(target, np.ones(1000))
    np.testing.assert_array_equal(balanced.chances(0), balanced_weights(target))
    sampler = EpochSampler(Pool(range(1000), balanced), seed=0, batch_size=10)
    draws = list(sampler)
    shares = np.bincount(labels[[draw.item for draw in draws]]) / 1000
    assert np.abs(shares - 1 / 3).max() < 0.05
    assert list(sampler) == draws
    assert len(set(draws)) == len(draws)  # a row that is drawn again is augmented anew
    assert max(draw.repeat for draw in draws) > 10
    sampler.set_epoch(1)
    assert list(sampler) != draws


def test_balanced_weights_by_hand() -> None:
    weights = balanced_weights(np.array([[1, 0], [1, 0], [1, 1], [0, 0]], float))
    # class 0: 1/3 each; class 1: 1; no class: 1
    assert weights == pytest.approx(np.array([1 / 3, 1 / 3, 4 / 3, 1]) / 3)
    soft = balanced_weights(np.array([[0.5, 0.4999999], [1, 0]]))
    assert soft.sum() == pytest.approx(1) and len(soft) == 2
    # chances times the weights in the loss are even
    target, weight = np.array([[1, 0], [1, 0], [0, 1.0]]), np.array([1.0, 3.0, 2.0])
    even = (balanced_weights(target, weight) * weight) @ target
    assert even[0] == pytest.approx(even[1])
