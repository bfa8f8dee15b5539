"""Validation loss and metric on the held-out rows at the end of epochs."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from foldwise.data.batches import to_device
from foldwise.data.fields import seen_spatial
from foldwise.data.prepare import Prepared
from foldwise.inference.spec import ModelSpec
from foldwise.inference.tiles import tiled_outputs
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch
from foldwise.predictions.scoring import score_rows
from foldwise.tasks.outputs import activate
from foldwise.training.distributed import gather, share_norms
from foldwise.training.ema import EMA


class Validation(pl.Callback):
    """Monitors training at the network's resolution, without TTA; the reported score comes from the OOF predictions.

    Not Lightning's validation loop, which repeats rows under DDP to pad the shards.

    Args:
        loader: this rank's held-out items, without augmentation.
        every: epochs between validations; the last epoch is always validated. 0 for never (nothing is held out).
    """

    def __init__(
        self, loader: DataLoader, spec: ModelSpec, prepared: Prepared, metric: Any, every: int, ema: EMA | None
    ) -> None:
        self.loader, self.outputs, self.metric, self.every, self.ema = loader, spec.outputs, metric, every, ema
        self.table, self.spatial = prepared.table, seen_spatial(prepared.samples.fields)
        self.tile = spec.image_size if spec.fit == "tiles" else None  # for fit=tiles, which reads whole images
        self.loss = self.score = math.nan

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if not self.every or (epoch % self.every and epoch != module.schedule.epochs):
            self.loss = self.score = math.nan
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes missing in a fold: reported once, with the OOF score
            self.loss, self.score = self.evaluate(module)
        module.schedule.observe(trainer.current_epoch, self.loss)

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        del self.loader  # ends its workers before the predictor starts others

    @torch.no_grad()
    def evaluate(self, module: TrainingModule) -> tuple[float, float]:
        """Mean loss per item and the metric of the main output, over all ranks."""
        network = self.ema.network if self.ema else module.network
        share_norms(network)
        network.eval()
        module.training = False  # `losses` may check it
        output, task = self.outputs[0], self.outputs[0].meaning
        predict: Callable[[Batch], Batch] = network
        if self.tile:
            predict = partial(tiled_outputs, network, spatial=self.spatial, outputs=self.outputs, tile=self.tile)
        total, rows, results = torch.zeros((), device=module.device), [], []
        for packed in self.loader:
            batch = to_device(packed, module.device)
            with module.trainer.precision_plugin.forward_context():
                outputs = {name: value.float() for name, value in predict(batch).items()}
            # Unweighted: batch losses such as Dice take no weights.
            losses = module.losses(outputs, batch | {"weight": torch.ones_like(batch["weight"])})
            total += losses["loss"] * len(batch["row"])
            values = activate(outputs, [output])[output.name].cpu().numpy()
            rows += batch["row"].tolist()
            if task.kind == "maps":
                masks = batch[output.target].cpu().numpy()
                results += [self.metric.measure(*pair) for pair in zip(masks, values, strict=True)]
            else:
                results += list(values)
        module.training = True
        shares = gather((float(total), rows, results))
        rows = [row for share in shares for row in share[1]]
        result = np.stack([value for share in shares for value in share[2]])
        loss = sum(share[0] for share in shares) / len(rows)
        if task.kind == "maps":
            return loss, float(self.metric.reduce(result))
        return loss, score_rows(self.metric, self.table, np.array(rows), result)
