"""Saves snapshots at the ends of phases and of the best epochs, and restarts phases from the best weights."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from foldwise.inference.spec import ModelSpec
from foldwise.inference.weights import save_model
from foldwise.training.validation import Validation


class Snapshots(pl.Callback):
    """Saves a model to `<folder>/snapshots/<name>` at the end of each phase with `snapshot: true`, where the learning
    rate is lowest (Huang et al., arXiv:1704.00109), and for the best epochs.

    Args:
        validation: must run before this callback.
        top_k: number of best epochs to keep, chosen on the fold that is scored; 0 for none.
    """

    def __init__(self, folder: Path, spec: ModelSpec, validation: Validation, top_k: int = 0) -> None:
        self.folder, self.spec, self.validation, self.top_k = folder / "snapshots", spec, validation, top_k
        self.top: list[tuple[float, int]] = []  # (score, epoch), best first
        self.best_score, self.best_of = -math.inf, ""  # since `trainable` last changed
        self.best: dict[str, torch.Tensor] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        phase, start = module.schedule.locate(trainer.current_epoch)
        if phase.start == "best" and trainer.current_epoch == start and self.best:
            module.network.load_state_dict(self.best)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()  # it belongs to other weights

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epoch = trainer.current_epoch
        score = self.validation.score if self.validation.metric.greater_is_better else -self.validation.score
        phase, start = module.schedule.locate(epoch)
        if phase.snapshot and epoch == start + phase.epochs - 1:
            self._save(trainer, module, phase.name)
        if self.top_k and math.isfinite(score):
            # The sort is stable: of equal scores the earlier epoch stays.
            ranked = sorted([*self.top, (score, epoch)], key=lambda pair: -pair[0])
            self.top = ranked[: self.top_k]
            if (score, epoch) in self.top:
                self._save(trainer, module, _epoch_name(epoch))
            if trainer.is_global_zero:
                for _, dropped in ranked[self.top_k :]:
                    shutil.rmtree(self.folder / _epoch_name(dropped), ignore_errors=True)
        if phase.trainable != self.best_of:
            # A head trained on frozen features does not fit once BatchNorm statistics change: restarts from it lost
            # the score within a few steps (measured).
            self.best_score, self.best_of = -math.inf, phase.trainable
        if score > self.best_score and any(phase.start == "best" for phase in module.schedule.phases):
            self.best_score = score
            self.best = {key: value.detach().cpu().clone() for key, value in module.network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        top = [list(pair) for pair in self.top]
        return {"top": top, "best_score": self.best_score, "best_of": self.best_of, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.top = [(float(score), int(epoch)) for score, epoch in state["top"]]
        self.best_score, self.best_of, self.best = state["best_score"], state["best_of"], state["best"]

    def _save(self, trainer: pl.Trainer, module: Any, name: str) -> None:
        if trainer.is_global_zero:
            save_model(self.folder / name, module.network, self.spec)


def _epoch_name(epoch: int) -> str:
    return f"epoch{epoch + 1:03d}"
