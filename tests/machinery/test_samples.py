"""Readers: what they see of a table, what makes an item, and that a sample is what the reader declares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from items import item_dataset, read_one, training_reader

from foldwise.data.crops import crop_sample
from foldwise.data.dataset import EpochTransform
from foldwise.data.fields import Field, Item
from foldwise.data.problems import TableError
from foldwise.data.reading import Reader
from foldwise.data.samples import Rows, Sample, Samples, group_items, item_table
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal

COLUMNS = Columns(group="site", fold="part")


def write_table(root: Path, **columns: Any) -> Table:
    """Six rows of three patients, with a picture each; columns replace others."""
    root.mkdir(exist_ok=True)
    for row in range(6):
        cv2.imwrite(str(root / f"{row}.png"), np.full((8, 10 + row, 3), 10 * row, np.uint8))
    frame = {
        "id": [f"r{row}" for row in range(6)],
        "image": [f"{row}.png" for row in range(6)],
        "label": list("xyxyxy"),
        "patient": ["b", "a", "b", "c", "a", "b"],
        "slice": ["3", "1", "1", "", "0.5", "2"],
        "age": ["40", "", "1e1", "7", "-3", "40"],
        "site": list("sttuts"),
        "part": list("011110"),
    }
    frame |= {"site": ["s", "t", "s", "u", "t", "s"], "part": ["0", "1", "0", "1", "1", "0"]}
    pd.DataFrame(frame | columns).to_csv(root / "train.csv", index=False)
    return read_table(root / "train.csv", "multiclass", root, COLUMNS)


def declaring(columns: Sequence[str], targets: Sequence[str] = ()) -> Samples:
    """A reader that declares columns."""
    samples = Samples()
    samples.columns, samples.target_columns = columns, targets
    return samples


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return write_table(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Two pictures with masks."""
    root = tmp_path_factory.mktemp("masked")
    for row in range(2):
        cv2.imwrite(str(root / f"{row}.png"), np.full((8, 12, 3), 10 * row, np.uint8))
        cv2.imwrite(str(root / f"m{row}.png"), np.full((8, 12), row, np.uint8))
    frame = pd.DataFrame({"id": ["a", "b"], "image": ["0.png", "1.png"], "mask": ["m0.png", "m1.png"]})
    frame.to_csv(root / "train.csv", index=False)
    return read_table(root / "train.csv", "segmentation", root, Columns(), ["x", "y"])


def test_a_reader_sees_what_it_declares_and_nothing_else(table: Table) -> None:
    rows = Rows(table, declaring(["age"]))
    assert len(rows) == 6 and rows["age"].tolist() == ["40", "", "1e1", "7", "-3", "40"]  # as the file has it
    assert "age" in rows and "patient" not in rows and "label" not in rows
    assert rows["id"].tolist() == table.ids and rows.path(2) == table.root / "2.png"
    for name in ("patient", "label", "site", "nonsense"):
        with pytest.raises(Refusal, match=rf"column '{name}'.*`columns`"):
            rows[name]
    with pytest.raises(TableError, match=r"no column 'agee', which the reader declares.*patient"):
        Rows(table, declaring(["agee", "age"]))


def test_targets_are_there_in_training_alone(table: Table, masked: Table) -> None:
    assert "mask" in Rows(masked, Samples(), targets=True) and "mask" not in Rows(masked, Samples())
    assert "mask" not in Rows(table, Samples(), targets=True)
    reader = declaring([], ["age"])
    assert "age" in Rows(table, reader, targets=True) and "age" not in Rows(table, reader)

    class WithTargets(Samples):
        fields: Mapping[str, Field] = {"image": Field("image"), "seen": Field("mask", train_only=True)}

        def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
            seen = {"seen": np.zeros((8, 12), np.uint8)} if rows.targets else {}
            return super().read(rows, item, state, rng) | seen

    training = training_reader(masked, WithTargets())
    assert list(training.read(0)) == list(training.fields) == ["image", "seen", "target"]
    rows = Rows(masked, Samples())
    predicting = Reader(WithTargets(), rows, WithTargets().items(rows), {})
    assert list(predicting.read(0)) == list(predicting.fields) == ["image"]


def test_numbers_of_a_column(table: Table, tmp_path: Path) -> None:
    np.testing.assert_array_equal(Rows(table, declaring(["age"])).numbers("age"), [40, np.nan, 10, 7, -3, 40])
    assert Rows(table, declaring(["age"])).numbers("age").dtype == np.float64
    bad = write_table(tmp_path, age=["40", "", "old", "7", "1,5", "40"])
    with pytest.raises(TableError, match=r"'age' must have numbers or be empty: .*r2 has 'old'.*r4 has '1,5'"):
        Rows(bad, declaring(["age"])).numbers("age")
    with pytest.raises(Refusal, match="`columns`"):
        Rows(table, Samples()).numbers("age")


@pytest.mark.parametrize("text", ["", "/etc/passwd", "../0.png", "a/../../0.png", ".."])
def test_paths_stay_under_the_root(text: str, tmp_path: Path) -> None:
    table = write_table(tmp_path, front=[text, *["0.png"] * 5])
    rows = Rows(table, declaring(["front"]))
    assert rows.path(1, "front") == table.root / "0.png"
    with pytest.raises(Refusal, match=r"front .* of id 'r0' must be a path under"):
        rows.path(0, "front")


def test_rows_are_grouped_in_the_order_of_the_table(table: Table) -> None:
    rows = Rows(table, declaring(["patient", "slice"]))
    assert group_items(rows, "patient") == [Item("b", (0, 2, 5)), Item("a", (1, 4)), Item("c", (3,))]
    assert group_items(rows, "patient", order="slice") == [Item("b", (2, 5, 0)), Item("a", (4, 1)), Item("c", (3,))]


def test_the_table_of_items_has_a_row_each(table: Table) -> None:
    items = group_items(Rows(table, declaring(["patient", "slice"])), "patient", order="slice")
    own = item_table(table, items)
    assert own.ids == ["b", "a", "c"] and len(own) == 3
    assert own.frame["label"].tolist() == ["x", "x", "y"] and own.frame["site"].tolist() == ["s", "t", "u"]
    assert table.target is not None and own.target is not None
    np.testing.assert_array_equal(own.target, table.target[[2, 4, 3]])
    single = [Item(id, (row,)) for row, id in enumerate(table.ids)]
    assert item_table(table, single) is table


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([Item("a", (0,)), Item("b", (1,)), Item("a", (2,))], r"1 item ids come more than once: .*a"),
        ([Item("a", (0,)), Item("b", ())], r"item 'b' has no rows"),
        ([Item("a", (0, 2)), Item("b", (1, 3))], r"1 items have rows in several groups: .*b"),
        ([Item("a", (0, 1))], r"several groups(.|\n)*several folds"),
    ],
)
def test_items_that_cannot_be_are_refused(table: Table, items: list[Item], message: str) -> None:
    with pytest.raises(TableError, match=message):
        item_table(table, items)


class Odd(Samples):
    """A reader that adds what it is told to the picture."""

    def __init__(self, fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
        super().__init__()
        self.fields, self.values = {"image": Field("image"), **fields}, values

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        return super().read(rows, item, state, rng) | dict(self.values)


@pytest.mark.parametrize(
    ("fields", "values", "message"),
    [
        ({}, {"age": 1.0}, "returns image, age, target.*the difference is age"),
        ({"age": Field("values")}, {}, "the difference is age"),
        ({"age": Field("values")}, {"age": "4"}, "age is <U1, not float32"),
        ({"age": Field("values")}, {"age": None}, "age is object, not float32"),
        ({"sex": Field("codes")}, {"sex": 0.5}, "sex is float64, not int64"),
        ({"points": Field("values", ragged=True)}, {"points": 3.0}, "points is ragged, so it must have a first axis"),
        ({"near": Field("image")}, {"near": np.zeros((8, 9), np.uint8)}, r"near has the shape \(8, 9\), not \(H, W"),
        ({"seen": Field("mask")}, {"seen": np.zeros((8, 9, 1, 1), np.uint8)}, r"seen has the shape .*\(H, W\)"),
        ({"seen": Field("mask")}, {"seen": np.zeros((8, 9), np.float32)}, "seen is float32, not uint8 or uint16"),
        ({"near": Field("image")}, {"near": []}, "near of id 'r0' is an empty stack"),
        ({"near": Field("image", ragged=True)}, {"near": np.zeros((8, 9, 3), np.uint8)}, "near is ragged, so it must"),
    ],
)
def test_samples_other_than_declared_are_refused(table: Table, fields: Any, values: Any, message: str) -> None:
    with pytest.raises(Refusal, match=rf"Odd\.read.*{message}"):
        training_reader(table, Odd(fields, values)).read(0)


def test_every_kind_of_field_gets_its_dtype(table: Table) -> None:
    fields = {"age": Field("values"), "sex": Field("codes"), "near": Field("map"), "seen": Field("mask")}
    fields |= {"wide": Field("image")}
    values = {
        "age": True,
        "sex": np.uint8(3),
        "near": np.ones((4, 4, 2), np.float64),
        "seen": np.ones((4, 4), np.uint16),
        "wide": np.full((4, 4, 1), 30000, np.uint16),
    }
    sample = training_reader(table, Odd(fields, values), {"wide": 60000.0}).read(0)
    assert {name: (value.dtype, value.shape) for name, value in sample.items() if name != "image"} == {
        "age": (np.float32, ()),
        "sex": (np.int64, ()),
        "near": (np.float32, (4, 4, 2)),
        "seen": (np.uint16, (4, 4)),
        "wide": (np.float32, (4, 4, 1)),
        "target": (np.float32, (2,)),
    }
    np.testing.assert_allclose(sample["wide"], 0.5)


class Stack(Samples):
    """All pictures of a patient, which differ in width."""

    columns = ("patient", "slice")
    fields: Mapping[str, Field] = {"image": Field("image", ragged=True), "mean": Field("values")}

    def items(self, rows: Rows) -> list[Item]:
        return group_items(rows, "patient", "slice")

    def fit(self, rows: Rows, items: Any) -> dict[str, Any]:
        return {"mean": float(np.nanmean(rows.numbers("slice")[[row for item in items for row in item.rows]]))}

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        pictures = [super(Stack, self).read(rows, Item("", (row,)), state, rng)["image"] for row in item.rows]
        return {"image": pictures, "mean": state["mean"]}


def test_a_stack_of_images_of_different_sizes(table: Table) -> None:
    items = Stack().items(Rows(table, Stack()))
    dataset = item_dataset(item_table(table, items), [EpochTransform(None, (6, 7))])  # only for its weights
    reader = training_reader(table, Stack())
    dataset.reader, dataset.fields = reader, reader.fields
    for number, item in enumerate(items):
        sample = read_one(dataset, (number, 0))
        assert sample["image"].shape == (len(item.rows), 3, 6, 7)
        assert sample["image"][:, 0, 0, 0].tolist() == [10 * row for row in item.rows]
        assert sample["image_valid"].all() and sample["mean"].item() == pytest.approx(1.5)
    assert [picture.shape for picture in reader.read(1)["image"]] == [(8, 14, 3), (8, 11, 3)]
    with pytest.raises(Refusal, match="cannot crop stacks: image"):
        crop_sample(reader.read(0), reader.fields, (4, 4), 255, 0)


def test_images_of_different_sizes_are_not_cropped_together(table: Table) -> None:
    reader = training_reader(table, Odd({"near": Field("map")}, {"near": np.zeros((9, 9, 1), np.float32)}))
    with pytest.raises(Refusal, match=r"image is \(8, 10\), near is \(9, 9\)"):
        crop_sample(reader.read(0), reader.fields, (4, 4), 255, 0)


def test_a_reader_draws_by_seed_epoch_and_id_and_not_in_validation(table: Table) -> None:
    class Drawing(Samples):
        fields: Mapping[str, Field] = {"image": Field("image"), "drawn": Field("values")}

        def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
            return super().read(rows, item, state, rng) | {"drawn": -1.0 if rng is None else rng.random()}

    def drawn(seed: int | None, *keys: tuple[int, ...]) -> list[float]:
        dataset = item_dataset(table, [EpochTransform(None, (8, 8))], seed=seed, samples=Drawing())
        return [read_one(dataset, key)["drawn"].item() for key in keys]  # type: ignore[arg-type]

    keys = [(0, 0), (1, 0), (0, 1), (0, 0, 1)]
    assert drawn(3, *keys) == drawn(3, *keys) != drawn(4, *keys)
    assert len(set(drawn(3, *keys))) == 4 and set(drawn(None, *keys)) == {-1.0}


def test_samples_png(table: Table) -> None:
    reader = training_reader(table, Stack())
    rows = Rows(table, Stack())
    sample = Stack().read(rows, reader.items[0], {"mean": 0}, None)
    np.testing.assert_array_equal(Stack().picture(sample), sample["image"][1])  # the middle one

    class Blind(Samples):
        fields: Mapping[str, Field] = {"age": Field("values")}

    with pytest.raises(Refusal, match="Blind has no image.*`picture`"):
        Blind().picture({"age": np.zeros(1)})
