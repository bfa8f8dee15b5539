"""Samples on their way to the device: packed, padded, put together and taken apart again."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from foldwise.data.batches import collate, pack_sample, to_device, unpack
from foldwise.data.fields import Field
from foldwise.errors import Refusal

FIELDS = {
    "image": Field("image"),
    "stack": Field("image", ragged=True),
    "depth": Field("map"),
    "seen": Field("mask"),
    "age": Field("values"),
    "table": Field("values"),
    "nothing": Field("values"),
    "sex": Field("codes"),
    "words": Field("codes", ragged=True),
    "points": Field("values", ragged=True),
}


def sample(number: int, length: int = 2) -> dict[str, Any]:
    """A sample as `fit_sample` gives it, of every kind of field."""
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 256, (3, 4, 5), np.uint8),
        "stack": rng.integers(1, 256, (length, 1, 4, 5), np.uint8),
        "depth": rng.random((2, 4, 5), np.float32),
        "seen": rng.integers(0, 9, (4, 5)),
        "age": np.float32(rng.random()),
        "table": rng.random((2, 3), np.float32),
        "nothing": np.zeros((0,), np.float32),
        "sex": np.int64(2**40 + number),
        "words": rng.integers(1, 9, (length,)),
        "points": rng.random((length, 2), np.float32) + 1,
        "weight": np.float32(number),
        "row": number,
    }


def batch_of(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return unpack(collate([pack_sample(each, FIELDS) for each in samples], FIELDS))


@pytest.mark.parametrize("lengths", [(2,), (1, 3, 2), (4, 4)], ids=str)
def test_every_kind_of_field_arrives_as_it_was(lengths: tuple[int, ...]) -> None:
    samples = [sample(number, length) for number, length in enumerate(lengths)]
    batch = batch_of(samples)
    ragged = {name for name, field in FIELDS.items() if field.ragged}
    assert batch.keys() == samples[0].keys() | {f"{name}_valid" for name in ragged}
    for name, value in batch.items():
        for place, each in enumerate(samples):
            if name.endswith("_valid"):
                assert value[place].tolist() == [at < lengths[place] for at in range(max(lengths))]
            elif name in ragged:
                assert value.shape[1] == max(lengths) and not value[place, lengths[place] :].any()
                np.testing.assert_array_equal(value[place, : lengths[place]], each[name])
            else:
                np.testing.assert_array_equal(value[place], each[name])
    kinds = {"image": torch.uint8, "depth": torch.float32, "seen": torch.int64, "words": torch.int64}
    kinds |= {"age": torch.float32, "sex": torch.int64, "weight": torch.float32, "row": torch.int64}
    assert {name: batch[name].dtype for name in kinds} == kinds
    assert batch["age"].shape == batch["row"].shape == (len(lengths),)
    assert batch["nothing"].shape == (len(lengths), 0)


def test_ragged_fields_may_be_empty() -> None:
    fields = {"points": Field("values", ragged=True)}

    def points(*lengths: int) -> dict[str, torch.Tensor]:
        packed = [pack_sample({"points": np.ones((length, 2), np.float32)}, fields) for length in lengths]
        return unpack(collate(packed, fields))

    assert points(0, 3)["points_valid"].tolist() == [[False] * 3, [True] * 3]
    assert points(0, 3)["points"].sum((1, 2)).tolist() == [0, 6]
    assert points(0)["points"].shape == (1, 0, 2) and points(0)["points_valid"].shape == (1, 0)


def test_eight_bit_images_among_others_are_taken_by_their_share() -> None:
    first, second = sample(0), sample(1)
    second["image"] = second["image"].astype(np.float32) / 255
    batch = batch_of([first, second])
    assert batch["image"].dtype == torch.float32
    np.testing.assert_allclose(batch["image"][0], first["image"] / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("table", np.zeros((3, 2), np.float32), r"table has the shapes \(2, 3\) and \(3, 2\)"),  # as many numbers
        ("table", np.zeros((4, 3), np.float32), "ragged=True"),
        ("age", np.zeros(2, np.float32), "age has the shapes"),
        ("depth", np.zeros((2, 4, 6), np.float32), "depth has the shapes"),
        ("points", np.zeros((2, 3), np.float32), "points has the shapes .* only the first axis"),
        ("stack", np.zeros((5, 2, 4, 5), np.uint8), "stack has the shapes .* only the first axis"),
    ],
)
def test_arrays_that_differ_where_they_must_not_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        batch_of([sample(0), sample(1) | {name: value}])


def test_what_is_unpacked_is_a_view_and_a_device_gets_the_same() -> None:
    packed = collate([pack_sample(sample(number, number + 1), FIELDS) for number in range(3)], FIELDS)
    batch, moved = unpack(packed), to_device(packed, torch.device("cpu"))
    assert batch["table"].untyped_storage().data_ptr() == packed.values.untyped_storage().data_ptr()
    assert batch.keys() == moved.keys() and all(torch.equal(value, moved[name]) for name, value in batch.items())


class Numbers(Dataset[dict[str, Any]]):
    """Samples of one image and so many small fields."""

    def __init__(self, small: int) -> None:
        self.fields = {"image": Field("image")}
        self.fields |= {f"field{number}": Field("values" if number % 2 else "codes") for number in range(small)}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        small = {name: np.full(3, index) for name in self.fields if name != "image"}
        return pack_sample({"image": np.zeros((3, 8, 8), np.uint8), **small, "row": index}, self.fields)

    def collate(self, samples: list[dict[str, Any]]) -> Any:
        return collate(samples, self.fields)


def test_small_fields_make_no_further_tensors() -> None:
    """Each tensor that a worker hands over costs more than the numbers in it."""

    def tensors(small: int) -> int:
        data = Numbers(small)
        (batch,) = DataLoader(data, batch_size=4, num_workers=1, collate_fn=data.collate)
        found = unpack(batch)
        assert len(found) == small + 2 and found["row"].tolist() == [0, 1, 2, 3]
        for name in data.fields.keys() - {"image"}:
            assert found[name].tolist() == [[index] * 3 for index in range(4)]
        handed = [*batch.tensors.values(), batch.values, batch.codes]
        assert all(tensor.is_shared() for tensor in handed if tensor.numel())
        return len(handed)

    assert tensors(0) == tensors(10) == 3
