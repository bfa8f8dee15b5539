"""A few items of your data, read and trained by your classes as the configuration names them.

    make test                                                  # the sample; data=competition once its table is there
    make test CHOICES="experiment=metadata data=competition"   # as for train.py

The first line of each test says what most often makes it fail.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from foldwise.code.build import make
from foldwise.code.runs import working_code
from foldwise.code.source import Code
from foldwise.config import compose_config, resolve_config
from foldwise.data.batches import collate, unpack
from foldwise.data.dataset import EpochTransform, ItemDataset
from foldwise.data.holdout import Holdout
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared, prepare, read_items
from foldwise.data.reading import Reader
from foldwise.data.samples import Rows, TableItems
from foldwise.data.table_file import read_file
from foldwise.processes.group import Rank
from foldwise.training.build import build_trainer, build_training
from foldwise.training.loaders import make_reader
from foldwise.training.targets import fit_outputs, transform_targets

ITEMS, BATCH = 32, 8
HELD_OUT = Holdout((0,))
SMALL = [
    *("trainer=cpu", "trainer.precision=32-true", "trainer.accumulate_grad_batches=1"),
    *("trainer.limit_train_batches=null", "batch_size=4", "epochs=20", "mixing=none", "logger=none"),
    *("model.pretrained=false", "model.weights=null", "model.compile=false", "experiment_name=test"),
    *("data.workers=0", "data.folds=2", "data.columns.fold=null", "data.pseudo=null"),
]  # fmt: skip
# In place of the configuration's phases, an epoch each.
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

    def reader(self, targets: bool = False, root: Path | None = None) -> Reader:
        """Reads items as training does, or without targets as prediction does; files under another `root`."""
        samples, source = self.prepared.samples, self.prepared.source
        trained = HELD_OUT.trained(self.prepared.fold_of_items)
        state = samples.fit(Rows(source, samples), [self.prepared.items[row] for row in trained])
        outputs = fit_outputs(self.config["data"], self.prepared, trained)
        reader = make_reader(transform_targets(self.prepared, outputs), state)
        rows = Rows(replace(source, root=root or source.root), samples, targets)
        return replace(reader, rows=rows, targets=reader.targets if targets else {})

    def samples(self, reader: Reader) -> ItemDataset:
        """Samples as a network gets them, without augmentation."""
        data = self.config["data"]
        fit = "stretch" if data["fit"] == "tiles" else data["fit"]
        plain = EpochTransform(None, image_hw(data["image_size"]))
        return ItemDataset(reader, self.prepared.table.weights, [plain], fit, None, data["ignore_index"])

    def batch(self) -> dict[str, torch.Tensor]:
        """The first items."""
        samples = self.samples(self.reader(targets=True))
        return unpack(collate([samples[item, 0] for item in range(BATCH)], samples.fields))


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


class Training(pl.Callback):
    """A training through `PHASES`; `states` of the network: at first, then after each epoch."""

    def __init__(self, world: World) -> None:
        config = world.config
        pl.seed_everything(0, verbose=False)
        training = build_training(config, world.prepared, HELD_OUT, Rank())
        self.spec, self.module, self.loader, self.ema = training.spec, training.module, training.loader, training.ema
        callbacks = [self.ema, *(make(callback, world.code.alias) for callback in config["callbacks"].values()), self]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        self.module.trainer = build_trainer(config, Rank(), len(PHASES), callbacks=callbacks, **quiet)
        self.states: list[dict[str, torch.Tensor]] = []
        self.on_train_epoch_end()

    def run(self) -> "Training":
        self.module.trainer.fit(self.module, self.loader)
        return self

    def on_train_epoch_end(self, *_: Any) -> None:
        self.states.append({name: tensor.clone() for name, tensor in self.module.network.net.state_dict().items()})
