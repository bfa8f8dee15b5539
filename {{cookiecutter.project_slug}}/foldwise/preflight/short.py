"""A training of a few steps by the run's own module, optimizer and schedule."""

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from foldwise.data.dataset import make_loader
from foldwise.errors import Refusal
from foldwise.preflight.subject import ITEMS, Subject, loss_of

STEPS = 4


class ShortTraining(pl.Callback):
    """A training by the run's own module, optimizer and schedule, with `steps` steps a phase, on new items at each.

    Attributes:
        states: of the network at first, then after each phase.
        losses: of the steps.
        learning: names of the parameters that got a gradient, for each phase.
    """

    def __init__(self, subject: Subject, steps: int = STEPS) -> None:
        self.subject, self.steps = subject, steps
        self.module = copy.deepcopy(subject.training.module)
        self.module.schedule = replace(self.module.schedule, steps_per_epoch=steps)
        self.ema = copy.deepcopy(subject.training.ema)
        self.losses: list[float] = []
        self.learning: list[set[str]] = []
        self.optimized: set[int] = set()
        self.states = [self._state()]

    def run(self) -> "ShortTraining":
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        rows = np.resize(self.subject.rows, self.steps * ITEMS)
        loader = make_loader(self.subject.dataset, [(int(row), 0) for row in rows], ITEMS, 0)
        callbacks = [*([self.ema] if self.ema else []), self]
        epochs = self.module.schedule.epochs
        settings = {"precision": "32-true", "limit_train_batches": self.steps}
        self.subject.trainer(epochs, callbacks, **settings).fit(self.module, loader)
        return self

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.learning.append(set())

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise Refusal("the loss has no gradient: a `detach` or `no_grad` between the network and the loss")

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        self.optimized |= {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self.learning[-1] |= {
            name
            for name, parameter in self.module.network.named_parameters()
            if parameter.grad is not None and bool(parameter.grad.any())
        }

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(loss_of(outputs)))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.states.append(self._state())

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.module.network.state_dict().items()}
