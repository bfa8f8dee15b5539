"""The console line and the history.csv row of each epoch."""

import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from tqdm import tqdm

from foldwise.files import write_csv
from foldwise.training.epoch_losses import EpochLosses
from foldwise.training.validation import Validation


class Progress(pl.Callback):
    """Prints and logs each epoch, and writes history.csv.

    The history is part of the checkpoint, so a resume does not repeat an epoch.
    """

    def __init__(self, folder: Path, part: str, losses: EpochLosses, validation: Validation) -> None:
        self.folder, self.part, self.losses, self.validation = folder, part, losses, validation
        self.history: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        means = dict(self.losses.means)
        loss = means.pop("loss")
        row = {
            "epoch": trainer.current_epoch + 1,
            "lr": module.optimizers().param_groups[-1]["lr"],
            "train_loss": loss,
            **{f"train_{name}": value for name, value in means.items()},
            "val_loss": self.validation.loss,
            "score": self.validation.score,
            **{f"score_{name}": score for name, score in self.validation.others.items()},
            "seconds": round(time.monotonic() - self.started, 2),
        }
        self.history.append(row)
        logged = {name: value for name, value in row.items() if name != "epoch" and not math.isnan(value)}
        module.log_dict(logged, rank_zero_only=True)
        if not trainer.is_global_zero:
            return
        write_csv(self.folder / "history.csv", pd.DataFrame(self.history))
        phase, _ = module.schedule.locate(trainer.current_epoch)
        metric = self.validation.metric.name
        validated = "" if math.isnan(row["val_loss"]) else f"  validation {row['val_loss']:.4f}"
        scored = "" if math.isnan(row["score"]) else f"  {metric} {row['score']:.4f}"
        tqdm.write(  # above the bar, not through it
            f"{self.part}  epoch {row['epoch']:>3}/{module.schedule.epochs} ({phase.name})  "
            f"loss {loss:.4f}{validated}{scored}  lr {row['lr']:.1e}  {row['seconds']:.0f} s"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = list(state["history"])
