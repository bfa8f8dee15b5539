"""Validation loss and metric on the held-out rows at the end of epochs."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from foldwise.data.batches import to_device
from foldwise.data.fields import seen_spatial
from foldwise.data.prepare import Prepared
from foldwise.errors import Refusal
from foldwise.inference.spec import ModelSpec
from foldwise.inference.tiles import tiled_outputs
from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.scoring import score_rows
from foldwise.tasks.outputs import Output, activate
from foldwise.training.distributed import gather, share_norms
from foldwise.training.ema import EMA


class Validation(pl.Callback):
    """Monitors training at the network's resolution, without TTA; the reported score comes from the OOF predictions.

    Not Lightning's validation loop, which repeats rows under DDP to pad the shards.

    Args:
        loader: this rank's held-out items, without augmentation.
        metrics: see `build_metrics`.
        every: epochs between validations; the last epoch is always validated. 0 for never (nothing is held out).
    """

    def __init__(
        self,
        loader: DataLoader,
        spec: ModelSpec,
        outputs: Sequence[Output],
        prepared: Prepared,
        metrics: Mapping[str, Any],
        every: int,
        ema: EMA | None,
    ) -> None:
        self.loader, self.outputs, self.metrics, self.every, self.ema = loader, outputs, metrics, every, ema
        self.tables, self.spatial = prepared.tables, seen_spatial(prepared.samples.fields)
        self.metric = metrics[""]
        self.tile = spec.image_size if spec.fit == "tiles" else None  # for fit=tiles, which reads whole images
        self.loss = self.score = math.nan
        self.others = dict.fromkeys([output.name for output in self.outputs[1:]], math.nan)  # scores by name

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if not self.every or (epoch % self.every and epoch != module.schedule.epochs):
            self.loss = self.score = math.nan
            self.others = dict.fromkeys(self.others, math.nan)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes missing in a fold: reported once, with the OOF score
            self.loss, scores = self.evaluate(module)
        self.score = scores.pop("")
        self.others = scores
        module.schedule.observe(trainer.current_epoch, self.loss)

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        del self.loader  # ends its workers before the predictor starts others

    @torch.no_grad()
    def evaluate(self, module: TrainingModule) -> tuple[float, dict[str, float]]:
        """Mean loss per item and the metric of each output by name, over all ranks."""
        network = self.ema.network if self.ema else module.network
        share_norms(network)
        network.eval()
        module.training = False  # `losses` may check it
        predict: Callable[[Batch], Batch] = network
        if self.tile:
            predict = partial(tiled_outputs, network, spatial=self.spatial, outputs=self.outputs, tile=self.tile)
        total, rows = torch.zeros((), device=module.device), []
        results: dict[str, list[Any]] = {output.name: [] for output in self.outputs}
        for packed in self.loader:
            batch = to_device(packed, module.device)
            with module.trainer.precision_plugin.forward_context():
                outputs = {name: value.float() for name, value in predict(batch).items()}
            # Unweighted: batch losses such as Dice take no weights.
            losses = module.losses(outputs, batch | {"weight": torch.ones_like(batch["weight"])})
            total += losses["loss"] * len(batch["row"])
            rows += batch["row"].tolist()
            for output in self.outputs:
                values = activate(outputs, [output])[output.name].cpu().numpy()
                if output.meaning.kind == "maps":
                    masks, metric = batch[output.target].cpu().numpy(), self.metrics[output.name]
                    results[output.name] += [metric.measure(*pair) for pair in zip(masks, values, strict=True)]
                else:
                    results[output.name] += list(values)
        module.training = True
        shares = gather((float(total), rows, results))
        order = np.array([row for share in shares for row in share[1]])
        loss = sum(share[0] for share in shares) / len(order)
        found = {name: np.stack([value for share in shares for value in share[2][name]]) for name in results}
        return loss, {output.name: self._score(output, order, found[output.name]) for output in self.outputs}

    def _score(self, output: Output, rows: np.ndarray, results: np.ndarray) -> float:
        """The metric of the rows with a target; NaN if there are none."""
        metric, table = self.metrics[output.name], self.tables[output.target]
        known = table.known[rows]
        if not known.any():
            return math.nan
        if output.meaning.kind == "maps":
            return float(metric.reduce(results[known]))
        return score_rows(metric, table, rows[known], results[known])


def build_metrics(config: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """The metric of each trained output by name; raise a Refusal for one that does not suit its output."""
    metrics = {}
    for output in prepared.trained:
        metric = config["outputs"][output.name]["metric"] if output.name else config["metric"]
        try:
            table = prepared.tables[output.target]
            metrics[output.name] = build_metric(metric, output.task, output.columns, table, prepared.alias)
        except Refusal as error:
            raise Refusal(f"outputs.{output.name}: {error}" if output.name else str(error)) from error
    return metrics
