"""Weights kept along the way: at the ends of annealing cycles, of the best epochs, and the best to begin again from."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from foldwise.inference.weights import ModelSpec, save_model
from foldwise.models.module import TrainingModule
from foldwise.schedule.phases import Schedule
from foldwise.training.validation import Validation


class Snapshots(pl.Callback):
    """Saves a model for each phase with `snapshot: true` at its end, where its rate is lowest, before the next begins
    (Huang et al., arXiv:1704.00109); or for each of the best epochs.

    Args:
        folder: of the fold; models go to `<folder>/snapshots/<name>`.
        spec: of the models.
        validation: it has the score of each epoch; it must run before this callback.
        greater_is_better: of the score.
        top_k: keep so many of the best epochs; 0: none. They are chosen by the fold that they are scored on.
    """

    def __init__(
        self, folder: Path, spec: ModelSpec, validation: Validation, greater_is_better: bool, top_k: int = 0
    ) -> None:
        self.folder, self.spec, self.validation, self.top_k = folder / "snapshots", spec, validation, top_k
        self.sign = 1 if greater_is_better else -1
        self.top: list[tuple[float, int]] = []  # (score, epoch), the best first
        self.best_score, self.best_of = -math.inf, ""  # among the epochs that train what the last one trained
        self.best: dict[str, torch.Tensor] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        phase, start = pl_module.schedule.locate(trainer.current_epoch)
        if phase.start == "best" and trainer.current_epoch == start and self.best:
            pl_module.network.load_state_dict(self.best)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()  # the momentum of other weights would carry these away

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        epoch, score = trainer.current_epoch, self.sign * self.validation.score
        phase, start = pl_module.schedule.locate(epoch)
        if phase.snapshot and epoch == start + phase.epochs - 1:
            self._save(trainer, pl_module, phase.name)
        if self.top_k and math.isfinite(score):
            self._keep_top(trainer, pl_module, score, epoch)
        if phase.trainable != self.best_of:
            # A head fits the network as it came. With everything in training, batch norms take other statistics, and
            # what begins again from such a head has lost it within a few steps (measured).
            self.best_score, self.best_of = -math.inf, phase.trainable
        if restarts(pl_module.schedule) and score > self.best_score:
            self.best_score = score
            self.best = {key: value.detach().cpu().clone() for key, value in pl_module.network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        top = [list(pair) for pair in self.top]
        return {"top": top, "best_score": self.best_score, "best_of": self.best_of, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.top = [(float(score), int(epoch)) for score, epoch in state_dict["top"]]
        self.best_score, self.best_of = state_dict["best_score"], state_dict["best_of"]
        self.best = state_dict["best"]

    def _keep_top(self, trainer: pl.Trainer, module: TrainingModule, score: float, epoch: int) -> None:
        # Of equal scores the earlier epoch stays: Python's sort keeps the order.
        ranked = sorted([*self.top, (score, epoch)], key=lambda pair: -pair[0])
        self.top = ranked[: self.top_k]
        if (score, epoch) in self.top:
            self._save(trainer, module, _epoch_name(epoch))
        if trainer.is_global_zero:
            for _, dropped in ranked[self.top_k :]:
                shutil.rmtree(self.folder / _epoch_name(dropped), ignore_errors=True)

    def _save(self, trainer: pl.Trainer, module: TrainingModule, name: str) -> None:
        if trainer.is_global_zero:
            save_model(self.folder / name, module.network, self.spec)


def restarts(schedule: Schedule) -> bool:
    """Whether a phase begins again from the best weights so far."""
    return any(phase.start == "best" for phase in schedule.phases)


def _epoch_name(epoch: int) -> str:
    return f"epoch{epoch + 1:03d}"
