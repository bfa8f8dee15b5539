"""A few items of your data, read and trained by your classes as the configuration names them.

    make test                                                  # the sample; data=competition once its table is there
    make test CHOICES="experiment=metadata data=competition"   # as for train.py

A test that finds a bug says in its first line what most often causes it.
"""

import shlex
from copy import copy
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
from foldwise.data.samples import Rows
from foldwise.processes.group import Rank
from foldwise.training.build import build_trainer, build_training
from foldwise.training.loaders import make_reader
from foldwise.training.targets import fit_outputs, transform_targets

ITEMS, BATCH = 32, 8
FOLD = Holdout((0,))  # that is not trained
SMALL = [
    *("trainer=cpu", "trainer.precision=32-true", "trainer.accumulate_grad_batches=1"),
    *("trainer.limit_train_batches=null", "batch_size=4", "epochs=20"),
    *("model.pretrained=false", "model.weights=null", "model.compile=false"),
    *("logger=none", "data.workers=0", "data.folds=2", "data.columns.fold=null", "data.pseudo=null"),
    *("mixing=none", "experiment_name=test"),
]  # fmt: skip
# In place of the configuration's phases, an epoch each.
PHASES: dict[str, dict[str, Any]] = {"head": {"trainable": "head"}, "frozen": {"freeze_bn": True}, "train": {}}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--choices", default="", help='as for train.py, such as "experiment=metadata data=competition"')


@pytest.fixture(scope="session")
def config(request) -> dict[str, Any]:
    """The resolved configuration of a training of seconds."""
    choices = shlex.split(request.config.getoption("--choices"))
    own = compose_config(["data=competition", "experiment_name=test"]).data.table
    if Path(own).exists() and not any(choice.startswith("data=") for choice in choices):
        choices.append("data=competition")
    found = resolve_config(compose_config([*choices, *SMALL]))
    found["phases"] = {name: {"epochs": 1} | phase for name, phase in PHASES.items()}
    found["ema"] = found["ema"] or 0.9
    return found


@pytest.fixture(scope="session")
def code(config):
    """The owner's code, imported from a copy as a run has it."""
    with pytest.MonkeyPatch.context() as patch, working_code(config) as found:
        patch.setenv("FOLDWISE_TRUSTED", found.digest)
        yield found


@pytest.fixture(scope="session")
def whole(config, code):
    """The whole table with its items; of the files only the names are looked at."""
    data = config["data"]
    return read_items(data, config["task"], make(config["samples"], code.alias, "samples"))


@dataclass(frozen=True)
class World:
    """`ITEMS` of the owner's items in a table of their own; the files are where they are."""

    config: dict[str, Any]
    code: Code
    prepared: Prepared
    state: dict[str, Any]

    def reader(self, targets: bool = False, root: Path | None = None) -> Reader:
        """Reads items as training does, or as prediction, which sees no targets; files under another `root`."""
        moved, trained = {"root": root or self.prepared.source.root}, FOLD.trained(self.prepared.fold_of_items)
        fitted = fit_outputs(self.config["data"], self.prepared, trained)
        source, tables = self.prepared.source, transform_targets(self.prepared, fitted).tables
        source, tables = replace(source, **moved), {name: replace(table, **moved) for name, table in tables.items()}
        reader = make_reader(replace(self.prepared, source=source, tables=tables), self.state)
        rows = Rows(source, self.prepared.samples)
        return reader if targets else replace(reader, rows=rows, targets={})

    def samples(self, reader: Reader) -> ItemDataset:
        """Samples as a network gets them, without augmentation."""
        data = self.config["data"]
        plain = EpochTransform(None, image_hw(data["image_size"]))
        fit = "stretch" if data["fit"] == "tiles" else data["fit"]
        return ItemDataset(reader, self.prepared.table.weights, [plain], fit, None, data["ignore_index"])

    def batch(self) -> dict[str, torch.Tensor]:
        """The first items."""
        samples = self.samples(self.reader(targets=True))
        return unpack(collate([samples[item, 0] for item in range(BATCH)], samples.fields))


@pytest.fixture(scope="session")
def world(config, code, whole, tmp_path_factory) -> World:
    """Items of the classes in turn."""
    path, folder = Path(config["data"]["table"]), tmp_path_factory.mktemp("world")
    order = np.random.default_rng(0).permutation(len(whole.items))
    if whole.table.target is not None:
        classes = pd.Series(whole.table.target[order].argmax(axis=1))
        order = order[np.lexsort([classes, classes.groupby(classes).cumcount()])]
    rows = sorted({row for item in order[:ITEMS] for row in whole.items[item].rows})
    table = folder / f"train{path.suffix}"
    if path.suffix == ".parquet":
        pd.read_parquet(path).iloc[rows].to_parquet(table)
    else:
        raw = pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8-sig")
        raw[(raw != "").any(axis=1)].iloc[rows].to_csv(table, index=False)
    own = {"name": "test", "table": str(table), "prepared": str(folder), "classes": list(whole.table.classes)}
    config = config | {"data": config["data"] | own}
    prepared = prepare(config, code.alias, progress=False)
    trained = [prepared.items[row] for row in FOLD.trained(prepared.fold_of_items)]
    return World(config, code, prepared, prepared.samples.fit(Rows(prepared.source, prepared.samples), trained))


class Training(pl.Callback):
    """A training of the items outside fold 0 through `PHASES`; it keeps the network's states: at first, of each epoch.

    Attributes:
        least, most: of each weight, after any step.
    """

    def __init__(self, world: World) -> None:
        config = world.config
        pl.seed_everything(0, verbose=False)
        self.spec, _, self.module, self.loader, self.ema = build_training(config, world.prepared, FOLD, Rank())
        callbacks = [self.ema, *(make(callback, world.code.alias) for callback in config["callbacks"].values())]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        epochs = self.module.schedule.epochs
        self.module.trainer = build_trainer(config, Rank(), epochs, callbacks=[*callbacks, self], **quiet)
        self.states, self.least, self.most = [self.state()], self.state(), self.state()

    def run(self) -> "Training":
        self.module.trainer.fit(self.module, self.loader)
        return self

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.module.network.net.state_dict().items()}

    def augmented(self, reader: Reader) -> ItemDataset:
        """The samples of the training, read by another reader."""
        samples = copy(self.loader.dataset)
        samples.reader = reader
        return samples

    def on_train_batch_end(self, *_: Any) -> None:
        for name, tensor in self.state().items():
            self.least[name] = torch.minimum(self.least[name], tensor)
            self.most[name] = torch.maximum(self.most[name], tensor)

    def on_train_epoch_end(self, *_: Any) -> None:
        self.states.append(self.state())
