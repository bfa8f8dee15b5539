"""A few items of your data, read and trained by your classes as the configuration names them.

    make test                                       # the sample, or configs/data/competition.yaml once its table is there
    make test CHOICES="experiment=metadata data=competition"                                            # as for train.py
"""

import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
os.chdir(ROOT)  # where configs/ and data/ are
os.environ.setdefault("FOLDWISE_STATE", tempfile.mkdtemp(prefix="foldwise-state-"))  # trust nothing beyond the tests

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from foldwise.code.build import make
from foldwise.code.runs import OwnerCode, working_code
from foldwise.config import compose_config, resolve_config
from foldwise.data.batches import collate, unpack
from foldwise.data.dataset import EpochTransform, ItemDataset
from foldwise.data.holdout import Holdout
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared, prepare, read_items
from foldwise.data.reading import Reader
from foldwise.data.sample import sample_classes, write_sample
from foldwise.data.samples import Rows
from foldwise.inference.weights import ModelSpec
from foldwise.models.module import TrainingModule
from foldwise.processes.group import Place
from foldwise.training.build import build_module, build_network, build_spec, build_trainer, fit_reader
from foldwise.training.ema import EMA
from foldwise.training.loaders import make_reader, training_items, training_loader

ITEMS, BATCH = 32, 8
# No pretrained weights, no other devices and processes, no mixed labels.
SMALL = [
    *("model.pretrained=false", "model.weights=null", "model.compile=false", "trainer=cpu", "trainer.precision=32-true"),
    *("trainer.accumulate_grad_batches=1", "trainer.limit_train_batches=null", f"batch_size={BATCH}", "epochs=20"),
    *("logger=none", "data.workers=0", "data.folds=2", "data.columns.fold=null", "data.pseudo=null"),
    *("augmentation.mixup=0", "augmentation.cutmix=0", "experiment_name=test"),
]
# In place of the configuration's phases, an epoch each.
PHASES: dict[str, dict[str, Any]] = {"head": {"trainable": "head"}, "frozen": {"freeze_bn": True}, "train": {}}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The choices of the configuration."""
    parser.addoption("--choices", default="", help='as for train.py, such as "experiment=metadata data=competition"')


@pytest.fixture(scope="session")
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The resolved configuration, of a training of seconds; the data is the owner's as soon as it is there."""
    choices = shlex.split(request.config.getoption("--choices"))
    own = Path(compose_config(["data=competition", "experiment_name=test"]).data.table)
    if own.exists() and not any(choice.startswith("data=") for choice in choices):
        choices.append("data=competition")
    found = resolve_config(compose_config([*choices, *SMALL]))
    found["phases"] = {name: {"epochs": 1} | phase for name, phase in PHASES.items()}
    found["callbacks"].setdefault("ema", {"_target_": "foldwise.training.ema.EMA", "decay": 0.9})
    return found


@pytest.fixture(scope="session")
def code(config: dict[str, Any]) -> Iterator[OwnerCode]:
    """The owner's code, imported from a copy, as in a run."""
    with working_code(config) as found:
        yield found


@dataclass(frozen=True)
class World:
    """Items of the owner's data: a small table of its own, and the files where they are."""

    config: dict[str, Any]
    code: OwnerCode
    prepared: Prepared
    state: dict[str, Any]

    def read(self, item: int, rng: np.random.Generator | None = None, targets: bool = False) -> dict[str, Any]:
        """The arrays of an item, images in [0, 1] or uint8; as prediction reads it, or as training does."""
        return self.reader(targets).read(item, rng)

    def reader(self, targets: bool = False, root: Path | None = None) -> Reader:
        """A reader of the items, with their targets or without; of files under `root`."""
        prepared, root = self.prepared, root or self.prepared.source.root
        tables = {name: replace(table, root=root) for name, table in prepared.tables.items()}
        reader = make_reader(prepared, self.state, replace(prepared.source, root=root), None, tables)
        if targets:
            return reader
        rows = Rows(replace(prepared.source, root=root), prepared.samples)
        return replace(reader, rows=rows, targets={}, target_fields={})

    def dataset(self, reader: Reader, **changes: Any) -> ItemDataset:
        """Samples as a network gets them, without augmentation."""
        data = self.config["data"]
        size = [EpochTransform(None, image_hw(data["image_size"]))]
        fit = "stretch" if data["fit"] == "tiles" else data["fit"]
        return ItemDataset(reader, self.prepared.table.weights, size, fit, None, data["ignore_index"])

    @cached_property
    def batch(self) -> dict[str, torch.Tensor]:
        """The first items as a batch with targets."""
        dataset = self.dataset(self.reader(targets=True))
        return unpack(collate([dataset[item, 0] for item in range(BATCH)], dataset.fields))

    def files(self, item: int) -> list[Path]:
        """The files of an item that its reader declares."""
        return self.reader().files(item)


@pytest.fixture(scope="session")
def whole(config: dict[str, Any], code: OwnerCode) -> Any:
    """The whole table with its items; of the files only the names are looked at."""
    data, classes = config["data"], config["data"]["classes"]
    if data["name"] == "sample":
        classes = classes or sample_classes(config["task"])
        if not Path(data["table"]).exists():
            write_sample(Path(data["root"]), config["task"])
    return read_items(data, config["task"], make(config["samples"], code.alias, "samples"), classes)


@pytest.fixture(scope="session")
def world(config: dict[str, Any], code: OwnerCode, whole: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Some items of each class."""
    path, folder = Path(config["data"]["table"]), tmp_path_factory.mktemp("world")
    order = np.random.default_rng(0).permutation(len(whole.items))
    if whole.table.target is not None:  # the classes in turn
        classes = pd.Series(whole.table.target[order].argmax(axis=1))
        order = order[np.lexsort([classes, classes.groupby(classes).cumcount()])]
    rows = sorted({row for item in order[:ITEMS] for row in whole.items[item].rows})
    if path.suffix == ".parquet":
        pd.read_parquet(path).iloc[rows].to_parquet(folder / "train.parquet")
    else:
        raw = pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8-sig")
        raw[(raw != "").any(axis=1)].iloc[rows].to_csv(folder / "train.csv", index=False)
    places = {"name": "test", "table": str(folder / f"train{path.suffix}"), "prepared": str(folder / "prepared")}
    config = config | {"data": config["data"] | places | {"classes": list(whole.table.classes)}}
    prepared = prepare(config, code.alias, progress=False)
    return World(config, code, prepared, fit_reader(prepared, np.arange(len(prepared.items))))


class Recorder(pl.Callback):
    """The network before the training and after each epoch, and how far its weights came."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.least = self._state(pl_module)
        self.most = self._state(pl_module)
        self.states.append(self._state(pl_module))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        for name, tensor in self._state(pl_module).items():
            self.least[name] = torch.minimum(self.least[name], tensor)
            self.most[name] = torch.maximum(self.most[name], tensor)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.states.append(self._state(pl_module))

    @staticmethod
    def _state(module: Any) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in module.network.net.state_dict().items()}


@dataclass
class Training:
    """A training that is ready to begin: of the items outside fold 0, through `PHASES`."""

    world: World
    spec: ModelSpec = field(init=False)
    module: TrainingModule = field(init=False)
    recorder: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        config, prepared, alias = self.world.config, self.world.prepared, self.world.code.alias
        part, place = Holdout((0,)), Place()
        pl.seed_everything(0, verbose=False)
        rows = part.trained(prepared.fold_of_items)
        items = training_items(prepared, rows, self.world.state)
        self.spec = build_spec(config, prepared, self.world.state, alias)
        network = build_network(config, self.spec, alias)
        self.loader, steps = training_loader(config, prepared, items, place, alias)
        self.module = build_module(config, prepared, items, network, part, steps, alias)
        callbacks = [make(callback, alias) for callback in config["callbacks"].values()]
        self.ema = next(callback for callback in callbacks if isinstance(callback, EMA))
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        epochs = self.module.schedule.epochs
        self.trainer = build_trainer(config, place, epochs, callbacks=[*callbacks, self.recorder], **quiet)
        self.module.trainer = self.trainer

    def run(self) -> "Training":
        """Train."""
        self.trainer.fit(self.module, self.loader)
        return self


@pytest.fixture(scope="session")
def trained(world: World) -> Training:
    """A training through all phases."""
    return Training(world).run()


@pytest.fixture
def fresh(world: World) -> Training:
    """A training that has not begun."""
    return Training(world)


def augmented(training: Training, reader: Reader) -> ItemDataset:
    """The samples of the training, augmentation included, read by another reader."""
    dataset = copy(training.loader.dataset)
    dataset.reader = reader
    return dataset


def equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The names under which two samples differ."""
    different = [name for name in first if name not in second]
    for name in first.keys() & second.keys():
        one, other = (value if isinstance(value, list) else [value] for value in (first[name], second[name]))
        same = len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        different += [] if same else [name]
    return different
