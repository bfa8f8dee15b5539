"""A reader of several pictures and metadata by names of columns."""

from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
import pytest

from foldwise.data.decoding import noting
from foldwise.data.image_problems import damage_notes
from foldwise.data.images import ImageError
from foldwise.data.samples import Rows, TableItems
from foldwise.data.scan import scan_items
from foldwise.data.table import Columns, read_table
from foldwise.data.units import CODES, Neighbours, Units, check_answers, choose_frames
from foldwise.errors import Refusal


@pytest.fixture
def world(tmp_path):
    """Three houses of 2, 5 and 1 pictures; the level of a picture is its row."""
    frame = pd.DataFrame({"house": ["b"] * 2 + ["a"] * 5 + ["c"], "label": ["x"] * 2 + ["y"] * 5 + ["x"]})
    frame = frame.assign(id=[f"r{row}" for row in range(8)], image=[f"{row}.png" for row in range(8)])
    frame["number"] = [1, 0, 4, 3, 2, 1, 0, 0]
    frame["side"] = ["left", "right", "left", "left", "right", "left", "right", "left"]
    frame["age"] = ["2", "4", "", "", "", "", "", "9"]
    frame["site"] = ["north", "north", "south", "", "", "", "", "north"]
    for row in range(8):
        cv2.imwrite(str(tmp_path / f"{row}.png"), np.full((4, 4), row, np.uint8))
    frame.to_csv(tmp_path / "train.csv", index=False)
    return tmp_path


def opened(world, samples, targets=True):
    table = read_table(world / "train.csv", "multiclass", world, Columns(), has_target=targets)
    rows = Rows(table, samples, targets)
    return rows, samples.items(rows)


def levels(sample):
    return [int(image[0, 0, 0]) for image in sample["image"]]


def test_rows_of_a_unit_are_an_item_in_order(world):
    samples = Units(unit="house", order="number", view="side", views=["right", "left"])
    rows, items = opened(world, samples)
    assert [item.id for item in items] == ["b", "a", "c"]
    found = [samples.read(rows, item, {}, None) for item in items]
    assert [levels(sample) for sample in found] == [[1, 0], [6, 5, 4, 3, 2], [7]]
    assert [sample["slot"] for sample in found] == [[0, 1], [0, 1, 0, 1, 1], [1]]


def test_frames_are_one_of_each_segment():
    assert choose_frames(range(10, 30), 4, None) == [12, 17, 22, 27]
    assert choose_frames([5], 3, None) == [5, 5, 5]
    assert choose_frames([5, 6], 4, None) == [5, 5, 6, 6]
    drawn = np.array([choose_frames(range(20), 4, np.random.default_rng(seed)) for seed in range(300)])
    assert (drawn // 5 == np.arange(4)).all()
    assert all(set(drawn[:, segment]) == set(range(segment * 5, segment * 5 + 5)) for segment in range(4))


def test_sets_of_frames_have_an_offset_each():
    offsets = (np.arange(3) + 0.5) / 3
    for rows in (range(20), range(50, 57)):
        edges = np.linspace(0, len(rows), 5)
        sets = [choose_frames(rows, 12, None)[number::3] for number in range(3)]
        expected = [[rows[int(a + x * (b - a) + 1e-9)] for a, b in pairwise(edges)] for x in offsets]
        assert sets == expected


def test_no_set_of_frames_is_empty(world):
    for name in (3, 4, 5, 6):
        (world / f"{name}.png").write_bytes(b"broken")
    samples = Units(unit="house", frames=2, view="side", views=["left", "right"]).with_sets(4)
    rows, items = opened(world, samples, targets=False)
    with noting():
        sample = samples.read(rows, items[1], {}, None)
    assert levels(sample) == [2] * 4 and len(sample["slot"]) == 4
    one = Units(unit="house", frames=1)  # would read the third of five
    with noting():
        assert levels(one.read(rows, items[1], {}, None)) == [2]


def test_metadata_has_the_statistics_of_the_training_items(world):
    samples = Units(unit="house", numbers=["age", "number"], categories=["site"], rare=1)
    rows, items = opened(world, samples)
    state = samples.fit(rows, items[:2])  # b and a
    assert state == {
        "numbers": {"age": [3.0, 1e-6], "number": [1.25, 0.75]},
        "categories": {"site": ["north", "south"]},
    }
    state["numbers"]["age"][1] = 2.0
    found = [samples.read(rows, item, state, None) for item in items]
    np.testing.assert_allclose(found[0]["numbers"], [0, -1, 0, 0])
    np.testing.assert_allclose(found[1]["numbers"], [0, 1, 1, 0])  # no age
    np.testing.assert_allclose(found[2]["numbers"], [3, -1.25 / 0.75, 0, 0])
    assert [sample["categories"] for sample in found] == [[1], [2], [1]]
    rare = Units(unit="house", categories=["site"], rare=2)
    assert rare.fit(*opened(world, rare))["categories"] == {"site": ["north"]}
    with pytest.raises(Refusal, match="'age' is empty in the training items"):
        samples.fit(rows, items[1:2])


def test_more_values_than_codes_are_other(world):
    frame = pd.read_csv(world / "train.csv")
    frame = pd.concat(
        [
            frame[:1].assign(id=f"{i}-{k}", site=f"s{i:03}", label="xy"[k % 2])
            for i in range(80)
            for k in range(2 + (i < 9))
        ]
    )
    frame.to_csv(world / "train.csv", index=False)
    samples = Units(categories=["site"], rare=2)
    rows, items = opened(world, samples)
    state = samples.fit(rows, items)
    codes = [samples.read(rows, item, state, None)["categories"][0] for item in items]
    assert max(codes) == CODES - 1 and len(state["categories"]["site"]) == CODES - 1
    assert all(code > 0 for item, code in zip(items, codes, strict=True) if int(item.id.split("-")[0]) < 9)


def test_a_bad_picture_costs_itself(world):
    (world / "3.png").write_bytes(b"broken")
    samples = Units(unit="house", order="number", view="side", views=["left", "right"])
    rows, items = opened(world, samples, targets=False)
    with noting() as notes:
        sample = samples.read(rows, items[1], {}, None)
    assert levels(sample) == [6, 5, 4, 2] and sample["slot"] == [1, 0, 1, 0]
    assert [(note.path.name, note.item) for note in notes] == [("3.png", "a")] and "3.png" in notes[0].left_out
    rows, items = opened(world, samples)  # in training, where nobody collects notes
    with pytest.warns(UserWarning, match=r"3\.png is .*; it is left out of a"):
        assert levels(samples.read(rows, items[1], {}, np.random.default_rng(0))) == [6, 5, 4, 2]
    data = {"prepared": str(world / "prepared"), "scale": None}
    table = read_table(world / "train.csv", "multiclass", world, Columns())
    scan = scan_items(TableItems.of(table, samples, targets=True), data)
    assert damage_notes(scan) == ["1 pictures cannot be read and are left out of their items: 3.png"]
    (world / "7.png").write_bytes(b"broken")
    rows, items = opened(world, samples, targets=False)
    with pytest.raises(ImageError, match=r"7\.png"):
        samples.read(rows, items[2], {}, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "number"}, "samples.order without samples.unit"),
        ({"unit": "house", "view": "side"}, "samples.view and samples.views belong together"),
        ({"unit": "house", "frames": 0}, "samples.frames is 0"),
        ({"unit": "house", "frames": "a"}, "samples.frames is 'a'"),
        ({"unit": "house", "augment": "frame"}, "samples.augment is 'frame'; it must be one of unit, picture"),
        ({"numbers": "age", "categories": "site"}, r"samples.numbers is 'age': write \[age\]"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(Refusal, match=message):
        Units(**arguments)


def test_an_unknown_view_is_named(world):
    samples = Units(unit="house", view="side", views=["left"])
    rows, items = opened(world, samples)
    with pytest.raises(Refusal, match="side of id 'r1' is 'right'; samples.views has left"):
        samples.read(rows, items[0], {}, None)


def test_the_order_of_neighbours_is_whole_numbers_and_their_reach_one(world):
    with pytest.raises(Refusal, match="samples.reach is -1; it must be a whole number from 0"):
        Neighbours(reach=-1)
    for bad in ("0.5", ""):
        frame = pd.read_csv(world / "train.csv").astype({"number": str})
        frame.loc[3, "number"] = bad
        frame.to_csv(world / "train.csv", index=False)
        with pytest.raises(Refusal, match="column 'number' must have a whole number in each row: r3 has (0.5|nan)"):
            opened(world, Neighbours(unit="house", order="number"))


def test_rows_of_an_item_share_their_target_and_none_lacks_its_name(world):
    frame = pd.read_csv(world / "train.csv")
    for change, message in (
        ({"label": ["x", "y", *frame["label"][2:]]}, "1 items have rows with different targets: b"),
        ({"house": ["", *frame["house"][1:]]}, "column 'house', which makes the items, is empty: ids r0"),
    ):
        frame.assign(**change).to_csv(world / "train.csv", index=False)
        table = read_table(world / "train.csv", "multiclass", world, Columns())
        with pytest.raises(Refusal, match=message):
            check_answers(TableItems.of(table, Units(unit="house"), targets=True))


@pytest.mark.parametrize("name", ["unit", "weight"])
def test_a_column_with_a_name_of_data_columns_is_explained(world, name):
    frame = pd.read_csv(world / "train.csv").assign(**{name: 1})
    frame.to_csv(world / "train.csv", index=False)
    with pytest.raises(Refusal, match=f"'{name}', which is read under this name only if data.columns.{name} has"):
        opened(world, Units(numbers=[name]))


def test_neighbours_are_channels(world):
    samples = Neighbours(unit="house", order="number")
    rows, items = opened(world, samples)
    assert [item.id for item in items] == [f"r{row}" for row in range(8)]
    found = [samples.read(rows, item, {}, None)["image"][0, 0].tolist() for item in items]
    # a has the numbers 0 to 4 in the rows 6 to 2
    assert found == [[1, 0, 0], [1, 1, 0], [3, 2, 2], [4, 3, 2], [5, 4, 3], [6, 5, 4], [6, 6, 5], [7, 7, 7]]
    frame = pd.read_csv(world / "train.csv").assign(number=1)
    frame.to_csv(world / "train.csv", index=False)
    with pytest.raises(Refusal, match="5 rows repeat a series"):
        opened(world, samples)
