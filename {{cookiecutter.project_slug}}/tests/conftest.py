"""A few items of your data, read and trained by your classes as the configuration names them.

    make test                                                  # the sample; data=competition once its table is there
    make test CHOICES="experiment=metadata data=competition"   # as for train.py

The checks are those that `train.py` makes before the first fold (docs/training.md), on a small copy of the data.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foldwise.code.build import make
from foldwise.code.runs import working_code
from foldwise.code.source import Code
from foldwise.config import compose_config, resolve_config
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared, prepare, read_items
from foldwise.data.samples import TableItems
from foldwise.data.table_file import read_file
from foldwise.preflight.subject import Subject

ITEMS = 32
SMALL = [
    *("trainer=cpu", "trainer.precision=32-true", "trainer.accumulate_grad_batches=1"),
    *("trainer.limit_train_batches=null", "batch_size=4", "epochs=20", "mixing=none", "logger=none"),
    *("model.pretrained=false", "model.weights=null", "model.compile=false", "experiment_name=test"),
    *("data.workers=0", "data.folds=2", "data.columns.fold=null", "data.pseudo=null"),
]  # fmt: skip
# In place of the configuration's phases.
PHASES: dict[str, dict[str, Any]] = {"head": {"trainable": "head"}, "frozen": {"freeze_bn": True}, "train": {}}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--choices", default="", help='as for train.py, such as "experiment=metadata data=competition"')


@dataclass(frozen=True)
class World:
    """`whole`: your table; `prepared`: `ITEMS` of its items in a table of their own, with the same files."""

    config: dict[str, Any]
    code: Code
    whole: TableItems
    prepared: Prepared

    def subject(self) -> Subject:
        return Subject(self.config, self.prepared, Holdout((0,)), self.code)


@pytest.fixture(scope="session")
def world(request, tmp_path_factory) -> Iterator[World]:
    """A training of seconds, with the code from a copy as a run has it."""
    choices = shlex.split(request.config.getoption("--choices"))
    own = compose_config(["data=competition", "experiment_name=test"]).data.table
    if Path(own).exists() and not any(choice.startswith("data=") for choice in choices):
        choices.append("data=competition")
    config = resolve_config(compose_config([*choices, *SMALL]))
    config |= {"phases": {name: {"epochs": 1} | phase for name, phase in PHASES.items()}, "ema": config["ema"] or 0.9}
    with pytest.MonkeyPatch.context() as patch, working_code(config) as code:
        patch.setenv("FOLDWISE_TRUSTED", code.digest)
        whole = read_items(config["data"], config["task"], make(config["samples"], code.alias, "samples"))
        small = {"name": "test", "prepared": str(tmp_path_factory.mktemp("world")), "classes": [*whole.table.classes]}
        small["table"] = write_some(whole, Path(config["data"]["table"]), Path(small["prepared"]))
        config["data"] |= small
        yield World(config, code, whole, prepare(config, code.alias, progress=False))


@pytest.fixture(scope="session")
def subject(world: World) -> Subject:
    return world.subject()


def write_some(whole: TableItems, path: Path, folder: Path) -> str:
    """Write the rows of `ITEMS` items, of the classes in turn."""
    order = np.random.default_rng(0).permutation(len(whole.items))
    if whole.table.target is not None:
        classes = pd.Series(whole.table.target[order].argmax(axis=1))
        order = order[np.lexsort([classes, classes.groupby(classes).cumcount()])]
    rows = sorted({row for item in order[:ITEMS] for row in whole.items[item].rows})
    some, table = read_file(path).iloc[rows], folder / ("train.parquet" if path.suffix == ".parquet" else "train.csv")
    (some.to_parquet if table.suffix == ".parquet" else some.to_csv)(table, index=False)
    return str(table)
