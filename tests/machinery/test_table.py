"""Tables: what is read, and that every problem is listed with its line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import MultiLabelBinarizer

from foldwise.data.problems import TableError
from foldwise.data.table import Columns, read_table
from foldwise.errors import Refusal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "images").mkdir(parents=True)
    for name in "abcdef":
        (folder / "images" / f"{name}.png").touch()
    return folder


def write(root: Path, text: str) -> Path:
    path = root / "train.csv"
    path.write_text(text, encoding="utf-8")
    return path


def problems(root: Path, text: str, task: str = "multiclass", columns: Columns | None = None, **options) -> list[str]:
    with pytest.raises(TableError) as error:
        read_table(write(root, text), task, root, columns or Columns(), **options)
    return error.value.problems


def test_ids_and_labels_are_text_as_written(root):
    table = read_table(write(root, "id,image,label\n007,images/a.png,NA\n1e3,images/b.png,null\n"), "multiclass", root,
                       Columns())  # fmt: skip
    assert table.ids == ["007", "1e3"]
    assert table.classes == ("NA", "null")
    assert table.target.tolist() == [[1, 0], [0, 1]]
    assert table.target.dtype == np.float32
    assert table.image_path(1) == root / "images/b.png"


def test_whole_numbers_sort_as_numbers_and_given_classes_keep_their_order(root):
    path = write(root, "id,image,label\n1,images/a.png,10\n2,images/b.png,9\n3,images/c.png,2\n")
    assert read_table(path, "multiclass", root, Columns()).classes == ("2", "9", "10")
    table = read_table(path, "multiclass", root, Columns(), classes=[10, 9, 2, 3])
    assert table.classes == ("10", "9", "2", "3")
    assert table.target.argmax(axis=1).tolist() == [0, 1, 2]


def test_empty_labels_are_no_labels(root):
    table = read_table(write(root, "id,image,labels\n1,images/a.png,\n2,images/b.png,y x\n3,images/c.png,x\n"),
                       "multilabel", root, Columns())  # fmt: skip
    assert table.classes == ("x", "y")
    assert table.target.tolist() == [[0, 0], [1, 1], [1, 0]]


def test_numbers_of_all_kinds_sort_as_numbers(root):
    labels = ["10.0", "-1.5", "9.0", "2", "02", ".5"]
    rows = "".join(f"{row},images/a.png,{label}\n" for row, label in enumerate(labels))
    path = write(root, f"id,image,label\n{rows}")
    assert read_table(path, "multiclass", root, Columns()).classes == ("-1.5", ".5", "02", "2", "9.0", "10.0")
    path = write(root, f"id,image,label\n{rows}7,images/a.png,x\n")
    assert read_table(path, "multiclass", root, Columns()).classes == tuple(sorted([*labels, "x"]))


SETS = [set(), {"cat"}, {"dog"}, {"cat", "dog"}, {"bird", "cat"}, {"bird", "cat", "dog"}]
WRITTEN = {
    "comma": (",", ",".join),
    "comma and space": (",", ", ".join),
    "bar": ("|", "|".join),
    "semicolon": (";", "; ".join),
    "Python": (",", lambda names: str(list(names))),
    "JSON": (",", json.dumps),
    "numpy": (" ", lambda names: str(np.array(list(names), object))),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("names", [None, ["dog", "cat", "bird"]])
def test_another_separator_is_found_and_read_when_declared(root, kind, names):
    separator, text = WRITTEN[kind]
    frame = pd.DataFrame({"id": range(6), "image": "images/a.png", "labels": [text(sorted(labels)) for labels in SETS]})
    frame.to_csv(root / "train.csv", index=False)
    (problem,) = problems(root, (root / "train.csv").read_text(), "multilabel", classes=names)
    assert f'label_separator: "{separator}"' in problem
    table = read_table(root / "train.csv", "multilabel", root, Columns(), names, separator=separator)
    assert table.classes == tuple(names or ["bird", "cat", "dog"])
    expected = MultiLabelBinarizer(classes=table.classes).fit_transform(SETS)
    assert np.array_equal(table.target, expected) and table.target.dtype == np.float32


def test_lists_of_a_parquet_table_are_sets_of_labels(root):
    frame = pd.DataFrame({"id": range(7), "image": "images/a.png", "labels": [*map(sorted, SETS), None]})
    frame.to_parquet(root / "train.parquet")
    for separator in (None, ","):
        table = read_table(root / "train.parquet", "multilabel", root, Columns(), separator=separator)
        assert table.classes == ("bird", "cat", "dog")
        assert np.array_equal(table.target, MultiLabelBinarizer().fit_transform([*SETS, set()]))
    pd.DataFrame({"id": [1, 2], "image": "images/a.png", "labels": [["a b", "c"], ["c", "c"]]}).to_parquet(
        root / "train.parquet"
    )
    with pytest.raises(TableError, match="a label occurs twice"):
        read_table(root / "train.parquet", "multilabel", root, Columns())
    with pytest.raises(TableError, match="is a list: is the task multilabel"):
        read_table(root / "train.parquet", "multiclass", root, Columns(target="labels"))


def test_names_with_spaces_need_another_separator(root):
    path = write(root, "id,image,labels\n1,images/a.png,No Finding\n2,images/b.png,Mass|No Finding\n")
    table = read_table(path, "multilabel", root, Columns(), separator="|")
    assert table.classes == ("Mass", "No Finding") and table.target.tolist() == [[0, 1], [1, 1]]
    text = "id,image,labels\n1,images/a.png,a||b\n"
    assert "a label is empty" in problems(root, text, "multilabel", separator="|")[0]


@pytest.mark.parametrize(
    "cells", [["n/a", "n/a cat", "cat"], ["a,b", "c,d"], ["road clear", "haze road", ""], ["R&B jazz", "jazz", "R&B"]]
)
def test_other_signs_in_labels_are_part_of_them(root, cells):
    rows = "".join(f'{row},images/a.png,"{cell}"\n' for row, cell in enumerate(cells))
    table = read_table(write(root, "id,image,labels\n" + rows), "multilabel", root, Columns())
    assert set(table.classes) == {name for cell in cells for name in cell.split()}


def test_a_space_declares_that_other_signs_are_part_of_labels(root):
    rows = "".join(f"{row},images/a.png,{cell}\n" for row, cell in enumerate(["a/b", "a", "b"]))
    text = "id,image,labels\n" + rows
    assert 'label_separator: " "' in problems(root, text, "multilabel")[0]
    table = read_table(write(root, text), "multilabel", root, Columns(), separator=" ")
    assert table.classes == ("a", "a/b", "b")


def test_soft_targets(root):
    columns = Columns(target=["cat", "dog"])
    text = "id,image,cat,dog\n1,images/a.png,0.25,0.75\n2,images/b.png,1,0\n"
    table = read_table(write(root, text), "multiclass", root, columns)
    assert table.classes == ("cat", "dog")
    assert table.target.tolist() == [[0.25, 0.75], [1, 0]]
    assert read_table(write(root, text), "multiclass", root, columns, classes=["dog", "cat"]).target[1].tolist() == [
        0,
        1,
    ]
    bad = "id,image,cat,dog\n1,images/a.png,0.25,0.7\n2,images/b.png,-0.1,1.1\n3,images/c.png,,1\n"
    found = problems(root, bad, columns=columns)
    assert [problem.partition(": ")[2] for problem in found] == [
        "cat is '-0.1', not within 0 to 1",
        "cat is '', not within 0 to 1",
        "dog is '1.1', not within 0 to 1",
        "the class probabilities sum to 0.95, not to 1",
    ]
    assert (
        len(read_table(write(root, bad.splitlines()[0] + "\n1,images/a.png,0.9,0.7\n"), "multilabel", root, columns))
        == 1
    )


def test_weights_have_mean_one(root):
    table = read_table(write(root, "id,image,label,w\n1,images/a.png,x,1\n2,images/b.png,y,3\n"), "multiclass", root,
                       Columns(weight="w"))  # fmt: skip
    assert table.weights.tolist() == [0.5, 1.5]
    assert read_table(table.path, "multiclass", root, Columns()).weights.tolist() == [1, 1]


def test_only_declared_columns_get_a_meaning(root):
    path = write(root, "id,image,label,fold,scene,place\n1,images/a.png,x,5,s,sea\n2,images/b.png,y,-1,s,sky\n")
    frame = read_table(path, "multiclass", root, Columns(group="scene")).frame
    assert "fold" not in frame and frame["group"].tolist() == ["s", "s"] and frame["place"].tolist() == ["sea", "sky"]
    assert read_table(path, "multiclass", root, Columns(fold="fold")).frame["fold"].tolist() == [5, -1]


def test_a_test_table_needs_no_target_fold_weight_or_group(root):
    columns = Columns(group="scene", weight="w", fold="f", unit="case")
    table = read_table(write(root, "id,image,case\n1,images/a.png,7\n"), "multiclass", root, columns, ["x", "y"], False)
    assert table.target is None and table.classes == ("x", "y") and table.frame["unit"].tolist() == ["7"]


def test_parquet_equals_csv(root):
    frame = pd.DataFrame({"id": [1, 2], "image": ["images/a.png", "images/b.png"], "label": [3, 12], "fold": [0, 1]})
    frame.to_parquet(root / "train.parquet")
    table = read_table(root / "train.parquet", "multiclass", root, Columns(fold="fold"))
    assert table.ids == ["1", "2"] and table.classes == ("3", "12") and table.frame["fold"].tolist() == [0, 1]
    frame.assign(id=[1, 1]).to_parquet(root / "train.parquet")
    with pytest.raises(TableError, match=r"more than once: '1' \(rows 1, 2\)"):
        read_table(root / "train.parquet", "multiclass", root, Columns())


def test_segmentation_needs_masks_and_classes(root):
    text = "id,image,mask\n1,images/a.png,images/b.png\n2,images/b.png,images/zz.png\n"
    found = problems(root, text, "segmentation", classes=["sky", "road"])
    assert len(found) == 1 and "zz.png does not exist" in found[0]
    assert "needs data.classes" in problems(root, text.replace("zz", "c"), "segmentation")[0]


def test_everything_wrong_is_listed_at_once_with_its_line(root):
    text = (
        "id,image,label,group,w,fold\n"
        "1,images/a.png,cat,g,1,0\n"
        "\n"  # a blank line counts
        "1,images/a.png,dog,g,1,0\n"
        "2,images/none.png,cat,,1,0\n"
        "3,images/b.png,bird,g,-1,0\n"
        "4,images/c.png,,g,nan,0\n"
        "5,images/d.png,cat ,g,1,1.5\n"
        "6,/etc/passwd,cat,g,1,-2\n"
        "7,images/../../x.png,cat,g,1,0\n"
    )
    found = problems(root, text, columns=Columns(group="group", weight="w", fold="fold"), classes=["cat", "dog"])
    expected = [
        "1 id occurs more than once: '1' (lines 2, 4). A table has one row per image",
        "line 5 (id '2'): column 'group' is empty",
        "none.png does not exist",
        "line 9 (id '6'): the image path '/etc/passwd' must be relative",
        "line 10 (id '7'): the image path 'images/../../x.png' must be relative",
        "line 6 (id '3'): the weight '-1'",
        "line 7 (id '4'): the weight 'nan'",
        "line 8 (id '5'): the fold '1.5'",
        "line 9 (id '6'): the fold '-2'",
        "line 8 (id '5'): the label 'cat ' has whitespace",
        "line 7 (id '4'): the label is empty",
        "line 6 (id '3'): unknown label 'bird'; the classes are cat, dog: correct it, or add it to data.classes",
    ]
    for part in expected:
        assert sum(part in problem for problem in found) == 1, part
    # The stray space is the one problem of line 8's label: 'cat ' is not an unknown class, and '' neither.
    assert len(found) == len(expected)


def test_rows_that_share_a_problem_are_one_line(root):
    rows = [f"{row},images/a.png,{'a bird' if row % 2 else 'fish'},{row - 1}" for row in range(1, 1201)]
    text = "\n".join(["id,image,labels,w", *rows])
    found = problems(root, text, "multilabel", columns=Columns(weight="w"), classes=["a", "b"])
    assert found == [
        "600 rows, lines 2, 4, 6, 8, 10 and 595 more (the first id is '1'): "
        "unknown label 'bird'; the classes are a, b: correct it, or add it to data.classes",
        "600 rows, lines 3, 5, 7, 9, 11 and 595 more (the first id is '2'): "
        "unknown label 'fish'; the classes are a, b: correct it, or add it to data.classes",
    ]


def test_a_column_that_holds_no_labels_is_asked_about_once(root):
    text = "\n".join(["id,image,label", *(f"{row},images/a.png,masks/{row:03d}.png" for row in range(468))])
    found = problems(root, text, classes=["road", "sky"])
    assert found == [
        "468 rows, lines 2, 3, 4, 5, 6 and 463 more (the first id is '0'): 468 unknown labels, such as "
        "'masks/000.png', 'masks/001.png', 'masks/002.png' and 465 more; the classes are road, sky: "
        "is data.columns.target the column of the labels, and the task multiclass?"
    ]


@pytest.mark.parametrize("labels", [" x", "x ", "x  y", "x\ty", "x\u00a0y"])
def test_stray_spaces_in_labels(root, labels):
    text = f"id,image,labels\n1,images/a.png,x y\n2,images/b.png,{labels}\n"
    assert any("line 3" in problem and "whitespace" in problem for problem in problems(root, text, "multilabel"))


def test_repeated_labels_in_a_row(root):
    found = problems(root, "id,image,labels\n1,images/a.png,x y\n2,images/b.png,y x y\n", "multilabel")
    assert len(found) == 1 and "line 3" in found[0] and "twice" in found[0]


def test_links_must_not_leave_the_root(root, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.png").touch()
    (root / "images" / "inside.png").symlink_to(root / "images" / "a.png")
    (root / "images" / "link.png").symlink_to(tmp_path / "outside" / "x.png")
    (root / "elsewhere").symlink_to(tmp_path / "outside")
    found = problems(root, "id,image,label\n1,images/inside.png,x\n2,images/link.png,y\n3,elsewhere/x.png,y\n")
    assert ["line 3" in problem or "line 4" in problem for problem in found] == [True, True]
    # The root itself may be a link: pictures often lie on another disk.
    (tmp_path / "linked").symlink_to(root)
    path = write(root, "id,image,label\n1,images/a.png,x\n2,images/b.png,y\n")
    assert len(read_table(path, "multiclass", tmp_path / "linked", Columns())) == 2


def test_units_share_a_target(root):
    text = "id,image,label,case\n1,images/a.png,x,A\n2,images/b.png,y,A\n3,images/c.png,x,B\n4,images/d.png,x,B\n"
    found = problems(root, text, columns=Columns(unit="case"))
    assert found == ["the unit 'A' has different targets: lines 2, 3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("id,image,label\n", "no rows"),
        ("id,image,label\n\n\n", "no rows"),
        ("id,picture,label\n1,images/a.png,x\n", "no column 'image'; the columns are id, picture, label"),
        ("id,image,label,label\n1,images/a.png,x,y\n", "'label' occurs more than once"),
        ("id,image,label\n1,images/a.png,x,extra\n", "line 2"),
        ("id,image,label\n1,images/a.png,x\n2,images/b.png,x\n", "the number of classes in the table is 1"),
        ("id,image,label\n1,images/a.png,x\n,images/b.png,y\n", "id is empty"),
        ("id,image,label\n1,images/a.png,x\n2 ,images/b.png,y\n", "whitespace"),
        ("id,image,label\n1,images\\a.png,x\n2,images/b.png,y\n", "write / for"),
        ("id,image,label\n1,images,x\n2,images/b.png,y\n", "does not exist"),
        ("id,image,label\n1,images/a.png,fold\n2,images/b.png,y\n", "cannot be called 'fold'"),
    ],
)
def test_bad_tables(root, text, message):
    assert any(message in problem for problem in problems(root, text))


def test_missing_file_wrong_suffix_and_encoding(root):
    with pytest.raises(TableError, match="does not exist"):
        read_table(root / "none.csv", "multiclass", root, Columns())
    (root / "table.dat").touch()
    with pytest.raises(TableError, match="suffix"):
        read_table(root / "table.dat", "multiclass", root, Columns())
    (root / "latin.csv").write_bytes("id,image,label\n1,images/a.png,café\n".encode("latin-1"))
    with pytest.raises(TableError, match="UTF-8"):
        read_table(root / "latin.csv", "multiclass", root, Columns())
    (root / "bom.csv").write_bytes(b"\xef\xbb\xbfid,image,label\n1,images/a.png,x\n2,images/b.png,y\n")
    assert len(read_table(root / "bom.csv", "multiclass", root, Columns())) == 2


def test_classes_that_yaml_took_for_something_else(root):
    found = problems(root, "id,image,label\n1,images/a.png,no\n2,images/b.png,yes\n", classes=[False, True])
    assert any("quotes" in problem for problem in found)


def test_a_long_list_of_problems_is_cut_in_the_message_only():
    error = TableError("t.csv", [f"problem {number}" for number in range(45)])
    assert len(error.problems) == 45
    assert str(error).count("problem ") == 20 and str(error).endswith("and 25 more")


def test_columns_are_names(root):
    assert Columns.from_config({"id": 0, "target": [1, "b"]}) == Columns(id="0", target=["1", "b"])
    for key, value in (("id", ["a"]), ("target", True), ("target", [None])):
        with pytest.raises(Refusal, match=f"data.columns.{key} is .*; it must be the name of a column"):
            Columns.from_config({key: value})


def test_unknown_keys_of_columns_are_named():
    with pytest.raises(Refusal, match="grup"):
        Columns.from_config({"id": "id", "grup": "scene"})
