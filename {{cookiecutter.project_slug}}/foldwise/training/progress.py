"""What a fold says while it trains: a line and a row of history.csv at the end of each epoch."""

import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from tqdm import tqdm

from foldwise.files import write_atomic
from foldwise.models.module import TrainingModule, scalars
from foldwise.training.distributed import gather
from foldwise.training.validation import Validation


class Progress(pl.Callback):
    """Prints, logs and keeps the figures of each epoch.

    The history is part of the checkpoint, so after a kill and a resume no epoch appears twice.
    """

    def __init__(self, folder: Path, part: str, validation: Validation, metric_name: str) -> None:
        self.folder, self.part, self.validation, self.metric_name = folder, part, validation, metric_name
        self.history: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()
        self.totals: dict[str, torch.Tensor] = {}
        self.batches = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in scalars(outputs).items():
            # stays on the device: reading it here would wait for every step
            self.totals[name] = self.totals.get(name, 0) + value.detach()
        self.batches += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        own = {name: float(total) / self.batches for name, total in self.totals.items()}
        own["loss"] *= trainer.accumulate_grad_batches  # by which Lightning has divided it
        shares = gather(own)
        means = {name: sum(share[name] for share in shares) / len(shares) for name in own}
        loss = means.pop("loss")
        row = {
            "epoch": trainer.current_epoch + 1,
            "lr": pl_module.optimizers().param_groups[-1]["lr"],  # type: ignore[union-attr]
            "train_loss": loss,
            **{f"train_{name}": value for name, value in means.items()},
            "val_loss": self.validation.loss,
            "score": self.validation.score,
            "seconds": round(time.monotonic() - self.started, 2),
        }
        self.history.append(row)
        pl_module.log_dict(
            {key: value for key, value in row.items() if key != "epoch" and not math.isnan(value)}, rank_zero_only=True
        )
        if not trainer.is_global_zero:
            return
        with write_atomic(self.folder / "history.csv") as temporary:
            pd.DataFrame(self.history).to_csv(temporary, index=False)
        phase, _ = pl_module.schedule.locate(trainer.current_epoch)
        validated = "" if math.isnan(row["val_loss"]) else f"  validation {row['val_loss']:.4f}"
        scored = "" if math.isnan(row["score"]) else f"  {self.metric_name} {row['score']:.4f}"
        tqdm.write(  # above the bar, not through it
            f"{self.part}  epoch {row['epoch']:>3}/{pl_module.schedule.epochs} ({phase.name})  "
            f"loss {loss:.4f}{validated}{scored}  lr {row['lr']:.1e}  {row['seconds']:.0f} s"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
