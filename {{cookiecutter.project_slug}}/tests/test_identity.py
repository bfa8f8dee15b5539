"""What makes another run, and what does not."""

import ast

import numpy as np
import pandas as pd
import pytest

from foldwise.data.table import Columns, read_table
from foldwise.training.identity import (
    _tokens,
    describe_differences,
    hash_code,
    hash_identity,
    hash_table,
    make_identity,
)

CONFIG = {
    "seed": 1,
    "fold": "all",
    "logger": {"_target_": "x"},
    "optimizer": {"lr": 0.1},
    "phases": {"train": {"epochs": 3}},
    "data": {"workers": 2, "root": "a", "image_size": 64},
    "callbacks": {},
}
CONTENTS = {"table": "t", "folds": "f", "images": "i", "weights": "none"}


def changed(path, value):
    config = {key: dict(inner) if isinstance(inner, dict) else inner for key, inner in CONFIG.items()}
    *parents, last = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[last] = value
    return make_identity(config, 1, CONTENTS)


@pytest.mark.parametrize(
    ("path", "value"),
    [("fold", 0), ("logger", {"_target_": "y"}), ("data.workers", 8), ("data.root", "elsewhere")],
)
def test_what_cannot_change_the_result_is_left_out(path, value):
    assert hash_identity(changed(path, value)) == hash_identity(make_identity(CONFIG, 1, CONTENTS))


@pytest.mark.parametrize(
    ("path", "value"),
    [("seed", 2), ("optimizer.lr", 0.2), ("data.image_size", 96), ("callbacks", {"ema": {"decay": 0.9}})],
)
def test_what_can_change_the_result_makes_another_run(path, value):
    assert hash_identity(changed(path, value)) != hash_identity(make_identity(CONFIG, 1, CONTENTS))


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_and_processes_count(name):
    same = hash_identity(make_identity(CONFIG, 1, CONTENTS))
    assert hash_identity(make_identity(CONFIG, 1, CONTENTS | {name: "other"})) != same
    assert hash_identity(make_identity(CONFIG, 2, CONTENTS)) != same


def tokens(source):
    return list(_tokens(ast.parse(source)))


def test_code_is_its_syntax_tree():
    source = 'def f(x):\n    """Doc."""\n    return x + 1\n'
    assert tokens(source) == tokens("def f(x):  # a comment\n\n    return (x + 1)\n")
    assert tokens(source) != tokens(source.replace("+ 1", "+ 2"))
    assert tokens(source) != tokens(source.replace("x + 1", "x - 1"))
    assert tokens(source) != tokens(source.replace("f(x)", "f(x, y=0)"))
    assert tokens("x = 1") != tokens("x = '1'")
    assert tokens("if a:\n    b\nc") != tokens("if a:\n    b\n    c")


def test_a_changed_loss_line_changes_the_code_hash(tmp_path):
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "losses.py"
    file.write_text("loss = a * b\n")
    before = hash_code(tmp_path)
    file.write_text("loss = a * b  # the same\n")
    assert hash_code(tmp_path) == before
    file.write_text("loss = a + b\n")
    assert hash_code(tmp_path) != before
    assert hash_code()["models/losses.py"]


def test_table_hash_sees_labels_and_weights_and_not_other_columns(tmp_path):
    (tmp_path / "i.png").touch()
    frame = pd.DataFrame({"id": ["a", "b"], "image": "i.png", "label": ["x", "y"], "w": ["1", "2"], "note": "n"})

    def hashed(frame):
        frame.to_csv(tmp_path / "t.csv", index=False)
        return hash_table(read_table(tmp_path / "t.csv", "multiclass", tmp_path, Columns(weight="w")))

    same = hashed(frame)
    assert hashed(frame.assign(note="other")) == same
    assert hashed(frame.assign(label=["y", "x"])) != same
    assert hashed(frame.assign(w=["1", "3"])) != same
    assert hashed(frame.iloc[::-1]) != same  # the order of rows decides which images share a batch


def test_differences_name_keys_and_hide_hashes():
    old = make_identity(CONFIG, 1, CONTENTS)
    new = changed("optimizer.lr", 0.2) | {"content table": "other"}
    assert describe_differences(new, old) == ["optimizer.lr: 0.1 -> 0.2", "content table: changed"]
    assert describe_differences(old, old) == []
    assert np.all([isinstance(value, str) for value in old.values()])
