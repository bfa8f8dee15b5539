"""A training that is about to start, with a few of its items, as the checks look at it."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from foldwise.code.source import Code
from foldwise.data.batches import Packed, collate, to_device
from foldwise.data.dataset import EpochTransform, ItemDataset
from foldwise.data.holdout import Holdout
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared, present_classes
from foldwise.data.reading import Reader
from foldwise.data.samples import Rows
from foldwise.models.mixing import Mix
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch
from foldwise.processes.group import Rank
from foldwise.reporting.pictures import choose_samples
from foldwise.tasks.outputs import Output
from foldwise.training.build import build_trainer, build_training
from foldwise.training.dry_run import attach_trainer
from foldwise.training.ema import reestimate_batch_norm
from foldwise.training.fold import initial_seed

ITEMS = 8  # of a batch
SURE = 1e-3  # distance from 0 and 1 of a perfect prediction
LEARNT = 0.4  # of its first value: the loss of a batch that has been learnt; 0.45 is the best after two softmaxes
SINGLE: dict[str, Any] = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "accumulate_grad_batches": 1,
    "sync_batchnorm": False,
    "detect_anomaly": False,
}


class Subject:
    """A training in which every phase has one epoch, and `items` of its training items, of the classes in turn."""

    def __init__(self, config: Mapping[str, Any], prepared: Prepared, part: Holdout, code: Code) -> None:
        phases = {name: phase | {"epochs": min(phase["epochs"], 1)} for name, phase in config["phases"].items()}
        self.config = {**config, "phases": phases, "data": {**config["data"], "workers": 0}}
        self.prepared, self.part, self.code = prepared, part, code
        pl.seed_everything(initial_seed(config["seed"], part), verbose=False)
        self.training = build_training(self.config, prepared, part, Rank())
        self.outputs, dataset = self.training.outputs, self.training.loader.dataset
        assert isinstance(dataset, ItemDataset)
        self.dataset = dataset
        rows = part.trained(prepared.fold_of_items)
        chosen = choose_samples(present_classes(prepared.table, prepared.scan)[rows], 4 * ITEMS)
        self.rows = [int(rows[number]) for number in chosen]
        self.items = self.rows[:ITEMS]
        self.device = self.trainer(1).strategy.root_device

    def trainer(self, epochs: int, callbacks: Any = (), **settings: Any) -> pl.Trainer:
        """A trainer of one process, without logs and checkpoints."""
        trainer = self.config["trainer"] | SINGLE | settings
        return build_trainer(
            self.config | {"trainer": trainer},
            Rank(),
            epochs,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            plugins=LightningEnvironment(),  # whatever torchrun or srun set
        )

    def module(self) -> TrainingModule:
        """A copy of the module on the device, in training mode, with all parameters trainable and without mixing."""
        module = copy.deepcopy(self.training.module).to(self.device)
        module.mixes = dict.fromkeys(module.mixes, Mix(0.0, 0.0, {}, []))
        attach_trainer(module)
        return module.train()

    def reader(self, targets: bool = False, root: Path | None = None) -> Reader:
        """Read items as training does, or without targets as prediction does; files under another `root`."""
        reader, source = self.dataset.reader, self.prepared.source
        rows = Rows(replace(source, root=root or source.root), self.prepared.reader, targets)
        return replace(reader, rows=rows, items=self.prepared.items, targets=reader.targets if targets else {})

    def plain(self, reader: Reader) -> ItemDataset:
        """Samples as the network gets them, without augmentation."""
        data = self.config["data"]
        fit = "stretch" if data["fit"] == "tiles" else data["fit"]
        transform = EpochTransform(None, image_hw(data["image_size"]))
        return ItemDataset(reader, self.prepared.table.weights, [transform], fit, None, data["ignore_index"])

    def augmented(self, reader: Reader | None = None) -> ItemDataset:
        """Samples as training gets them."""
        dataset = copy.copy(self.dataset)
        dataset.reader = reader or dataset.reader
        return dataset

    @cached_property
    def packed(self) -> Packed:
        """`items` with targets, without augmentation."""
        samples = self.plain(self.reader(targets=True))
        return collate([samples[item, 0] for item in self.items], samples.fields)

    @property
    def batch(self) -> Batch:
        return to_device(self.packed, self.device)

    @cached_property
    def least(self) -> float:
        """Loss of a perfect prediction, as a share of a constant one's: above 0 for smoothed or soft targets."""
        output, batch, loss = self.outputs[0], self.batch, self.training.module.loss
        if not output.meaning.probabilities:
            return 0.0
        target, weight = batch[output.target], batch["weight"]
        ideal = ideal_outputs(output, target, self.config["data"]["ignore_index"])
        costs = [float(loss(scale * ideal, target, weight)) for scale in (0, 0.3, 0.6, 1)]
        return max(0.0, min(costs) / costs[0])

    @cached_property
    def learnt(self) -> tuple[TrainingModule, list[float]]:
        """A module, in eval mode, that was trained on `batch` until it was learnt, and the losses of the steps."""
        for lr in (2e-3, 2e-4):
            module = self.module()
            losses = _learn(module, self.batch, lr, self.least + 0.75 * LEARNT * (1 - self.least))
            if np.median(losses[-3:]) < self.limit * losses[0]:
                break
        reestimate_batch_norm(module.network, [self.packed], self.device)
        return module.eval(), losses

    @property
    def limit(self) -> float:
        """Share of its first value that the loss of a batch goes below when it is learnt."""
        return self.least + LEARNT * (1 - self.least)


def ideal_outputs(output: Output, target: Tensor, ignored: int) -> Tensor:
    """Raw outputs that predict a target of class probabilities, but for `SURE`; 0 where it is ignored or unknown."""
    if output.meaning.kind == "maps":
        target = torch.where(target == ignored, 0, target)
        if output.meaning.exclusive:
            target = torch.nn.functional.one_hot(target, len(output.columns)).movedim(-1, 1)
    target = target.float().nan_to_num().clamp(SURE, 1 - SURE)
    return target.log() if output.meaning.exclusive else target.logit()


def _learn(module: TrainingModule, batch: Batch, lr: float, enough: float) -> list[float]:
    """Losses of the steps, until they are below `enough` times the first."""
    optimizer, losses = torch.optim.Adam(module.network.parameters(), lr=lr), list[float]()
    while len(losses) < 100 and (len(losses) < 5 or max(losses[-3:]) > enough * losses[0]):
        with kept_buffers(module):
            loss = loss_of(module.training_step(dict(batch), len(losses)))
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]) or not loss.requires_grad:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@contextmanager
def kept_buffers(module: TrainingModule) -> Iterator[None]:
    """Restore the buffers of the losses afterwards, such as targets that they change."""
    buffers = [buffer for name, buffer in module.named_buffers() if not name.startswith("network.")]
    before = [buffer.clone() for buffer in buffers]
    yield
    for buffer, value in zip(buffers, before, strict=True):
        buffer.data = value


def loss_of(result: Any) -> Tensor:
    """The loss that `training_step` returns, alone or in a dict."""
    return result["loss"] if isinstance(result, dict) else result
