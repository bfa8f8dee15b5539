"""What makes another run, and what does not."""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from foldwise.code.runs import all_targets
from foldwise.code.source import Code
from foldwise.code.syntax import tokens
from foldwise.data.fields import Item
from foldwise.data.samples import Samples
from foldwise.data.table import Columns, read_table
from foldwise.training.identity import (
    describe_differences,
    hash_code,
    hash_data,
    hash_identity,
    make_identity,
    trained_targets,
)

CONFIG = {
    "seed": 1,
    "fold": "all",
    "logger": {"_target_": "x"},
    "optimizer": {"lr": 0.1},
    "scheduler": {"_target_": "constant"},
    "phases": {"train": {"epochs": 3}},
    "data": {"workers": 2, "root": "a", "image_size": 64},
    "callbacks": {},
    "top_k": 0,
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
    [("seed", 2), ("optimizer.lr", 0.2), ("data.image_size", 96), ("callbacks", {"ema": {"_target_": "x"}})],
)
def test_what_can_change_the_result_makes_another_run(path, value):
    assert hash_identity(changed(path, value)) != hash_identity(make_identity(CONFIG, 1, CONTENTS))


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_and_processes_count(name):
    same = hash_identity(make_identity(CONFIG, 1, CONTENTS))
    assert hash_identity(make_identity(CONFIG, 1, CONTENTS | {name: "other"})) != same
    assert hash_identity(make_identity(CONFIG, 2, CONTENTS)) != same


def test_code_is_its_syntax_tree():
    def text(source):
        return list(tokens(ast.parse(source)))

    source = 'def f(x):\n    """Doc."""\n    return x + 1\n'
    assert text(source) == text("def f(x):  # a comment\n\n    return (x + 1)\n")
    assert text(source) != text(source.replace("+ 1", "+ 2"))
    assert text(source) != text(source.replace("x + 1", "x - 1"))
    assert text(source) != text(source.replace("f(x)", "f(x, y=0)"))
    assert text("x = 1") != text("x = '1'")
    assert text("if a:\n    b\nc") != text("if a:\n    b\n    c")


def write(root, **files):
    for name, text in files.items():
        path = root / "foldwise" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def machinery(tmp_path):
    """A small foldwise; file names have __ for slashes."""
    write(
        tmp_path,
        training__fold="from foldwise.predictions.metrics.building import build\nfrom ..models import net as n\n"
        "from foldwise.reporting import figures\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import foldwise.typing_only\n",
        training__other="",
        models__net="def f():\n    import foldwise.late.x as x",
        late__x="x = 1",
        typing_only="",
        schedulers="",
        predictions__metrics__building="from foldwise.predictions import scores",
        predictions__scores="",
        reporting__figures="from foldwise import palette",
        palette="",
    )
    for folder in ("", "models", "late"):
        (tmp_path / "foldwise" / folder / "__init__.py").touch()
    return tmp_path


REACHED = ["__init__", "late/__init__", "late/x", "models/__init__", "models/net", "training/fold"]
METRICS = ["predictions/metrics/building", "predictions/scores"]


def reached(root, *arguments):
    return sorted(name.removeprefix("foldwise/").removesuffix(".py") for name in hash_code(*arguments, root=root))


def test_the_machinery_counts_as_far_as_a_training_reaches_it(machinery):
    assert reached(machinery) == REACHED
    assert reached(machinery, ["foldwise.schedulers:Cosine", "torch.nn.Module"]) == sorted([*REACHED, "schedulers"])
    assert reached(machinery, ["foldwise.predictions.metrics.building.F"]) == REACHED
    assert reached(machinery, [], True) == sorted([*REACHED, *METRICS])


def test_only_edits_of_what_is_reached_change_its_hash(machinery):
    before = hash_code(root=machinery)
    write(machinery, training__other="x = 2", new="", predictions__scores="x = 2", palette="x = 2", late__unused="")
    write(machinery, late__x='"""Doc."""\n\nx = 1  # the same\n')
    assert hash_code(root=machinery) == before
    write(machinery, late__x="x = 2")
    after = hash_code(root=machinery)
    assert {name for name in before if before[name] != after[name]} == {"foldwise/late/x.py"}


def test_the_training_of_this_repository_is_reached():
    names = hash_code(["foldwise.schedule.schedulers.Cosine"])
    assert {"foldwise/training/fold.py", "foldwise/models/losses.py", "foldwise/data/dataset.py"} <= names.keys()
    assert not [name for name in names if name.startswith(("foldwise/reporting", "foldwise/predictions/metrics"))]
    assert "foldwise/predictions/metrics/base.py" in hash_code(followed=True)


SOLUTION = CONFIG | {
    "logger": {"_target_": "solution.log.Logger"},
    "metric": {"_target_": "foldwise.predictions.metrics.Published", "function": "solution.metric.score"},
    "module": {"_target_": "solution.module.Module", "losses": [{"_target_": "solution.losses:Dice"}, {"x": 1}]},
}
FILES = {
    "module": "from foldwise.files import write_text\nclass Module:\n    write = write_text\n",
    "losses": "class Dice: ...\nclass Other: ...\n",
    "metric": "def score(): return 1\n",
    "log": "class Logger: ...\n",
}


def solution_identity(config=SOLUTION, **files):
    code = Code({f"solution/{name}.py": text.encode() for name, text in (FILES | files).items()}, Path())
    return make_identity(config, 1, CONTENTS, code)


def test_targets_are_found_wherever_they_stand():
    assert all_targets(SOLUTION) == [
        *("constant", "foldwise.predictions.metrics.Published", "solution.log.Logger", "solution.losses:Dice"),
        *("solution.metric.score", "solution.module.Module"),
    ]
    assert trained_targets(SOLUTION) == ["constant", "solution.losses:Dice", "solution.module.Module"]


def test_the_owners_code_counts_by_definitions():
    same = solution_identity()
    assert {"code solution/module.py:Module", "code solution/losses.py:Dice", "code foldwise/files.py"} <= same.keys()
    assert solution_identity(losses="class Dice: ...\nclass Third: ...\n", log="x = 1", metric="x = 2") == same
    assert describe_differences(solution_identity(losses="class Dice: x = 1"), same) == [
        "code solution/losses.py:Dice: changed"
    ]


def test_a_metric_counts_if_the_training_follows_it():
    followed = SOLUTION | {"callbacks": {"stop": {"_target_": "pytorch_lightning.callbacks.EarlyStopping"}}}
    same, edited = (solution_identity(followed, metric=f"def score(): return {number}") for number in (1, 2))
    assert describe_differences(edited, same) == ["code solution/metric.py:score: changed"]
    assert "code foldwise/predictions/metrics/base.py" in same


def test_table_hash_sees_labels_and_weights_and_not_other_columns(tmp_path):
    (tmp_path / "i.png").touch()
    frame = pd.DataFrame({"id": ["a", "b"], "image": "i.png", "label": ["x", "y"], "w": ["1", "2"], "note": "n"})

    def hashed(frame):
        frame.to_csv(tmp_path / "t.csv", index=False)
        table = read_table(tmp_path / "t.csv", "multiclass", tmp_path, Columns(weight="w"))
        items = [Item(id, (row,)) for row, id in enumerate(table.ids)]
        return hash_data(
            SimpleNamespace(samples=reader, source=table, items=items, trained=(), tables={"target": table})
        )

    reader = Samples()
    same = hashed(frame)
    assert hashed(frame.assign(note="other")) == same
    assert hashed(frame.assign(label=["y", "x"])) != same
    assert hashed(frame.assign(w=["1", "3"])) != same
    assert hashed(frame.iloc[::-1]) != same  # the order of rows decides which images share a batch
    for name in ("columns", "target_columns"):  # what the reader declares counts
        reader = Samples()
        setattr(reader, name, ("note",))
        assert hashed(frame.assign(note="one")) != hashed(frame.assign(note="other"))


def test_differences_name_keys_and_hide_hashes():
    old = make_identity(CONFIG, 1, CONTENTS)
    new = changed("optimizer.lr", 0.2) | {"content table": "other"}
    assert describe_differences(new, old) == ["optimizer.lr: 0.1 -> 0.2", "content table: changed"]
    assert describe_differences(old, old) == []
    assert np.all([isinstance(value, str) for value in old.values()])
