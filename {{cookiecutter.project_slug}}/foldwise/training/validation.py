"""Validation at the end of epochs: the loss and the competition's metric over the fold's held-out rows."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from foldwise.data.table import Table
from foldwise.inference.tiles import tiled_logits
from foldwise.models.module import TrainingModule
from foldwise.models.segmentation import SegmentationModule
from foldwise.predictions.scoring import score_rows
from foldwise.training.distributed import gather, share_norms
from foldwise.training.ema import EMA


class Validation(pl.Callback):
    """Watches the training at the network's own resolution, without TTA; the score of record is the OOF's.

    A plain loop over this rank's share of the rows and not Lightning's validation loop, which repeats rows under DDP
    to make the shares equal.

    Args:
        loader: this rank's held-out rows as items of an `ImageDataset` without augmentation.
        every: epochs from one validation to the next; the last epoch always has one. 0: never, nothing is held out.
        tile: (height, width) of the tiles that whole pictures are predicted in; None: pictures of the network's size.
    """

    def __init__(
        self,
        loader: DataLoader,
        table: Table,
        metric: Any,
        every: int = 1,
        ema: EMA | None = None,
        tile: Sequence[int] | None = None,
    ) -> None:
        self.loader, self.table, self.metric, self.every, self.ema, self.tile = loader, table, metric, every, ema, tile
        self.loss = self.score = math.nan

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        epoch = trainer.current_epoch + 1
        if not self.every or (epoch % self.every and epoch != pl_module.schedule.epochs):
            self.loss = self.score = math.nan
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that a fold lacks: said once, with the score of record
            self.loss, self.score = self.evaluate(pl_module)
        pl_module.schedule.observe(trainer.current_epoch, self.loss)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del self.loader  # its workers end here, and do not stay beside those of the predictor

    @torch.no_grad()
    def evaluate(self, module: TrainingModule) -> tuple[float, float]:
        """Mean loss a row and the metric, over the rows of all ranks."""
        network = self.ema.network if self.ema else module.network
        segmentation = isinstance(module, SegmentationModule)
        share_norms(network)
        network.eval()
        predict: Callable[[torch.Tensor], torch.Tensor] = network
        if self.tile:
            predict = partial(tiled_logits, network, tile=self.tile, classes=len(self.table.classes))
        total, rows, results = 0.0, [], []
        for batch in self.loader:
            batch = {key: value.to(module.device, non_blocking=True) for key, value in batch.items()}
            with module.trainer.precision_plugin.forward_context():
                logits = predict(batch["image"])
            logits = logits.float()
            # Rows count alike here: batch losses such as Dice take no weights.
            total += float(module.loss(logits, batch["target"], torch.ones_like(batch["weight"]))) * len(logits)
            probability = module.probabilities(logits).cpu().numpy()
            rows += batch["row"].tolist()
            if segmentation:
                masks = batch["target"].cpu().numpy()
                results += [self.metric.measure(*pair) for pair in zip(masks, probability, strict=True)]
            else:
                results += list(probability)
        shares = gather((total, rows, results))
        rows = [row for share in shares for row in share[1]]
        result = np.stack([value for share in shares for value in share[2]])
        loss = sum(share[0] for share in shares) / len(rows)
        if segmentation:
            return loss, float(self.metric.reduce(result))
        return loss, score_rows(self.metric, self.table, np.array(rows), result)
