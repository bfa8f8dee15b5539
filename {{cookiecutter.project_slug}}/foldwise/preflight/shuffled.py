"""Training on shuffled labels: what is learnt must be worth nothing on the held-out items."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from foldwise.data.batches import collate, to_device
from foldwise.preflight.subject import ITEMS, ShortTraining, Subject, shuffle
from foldwise.tasks.outputs import activate

STEPS = 100  # per phase
HELD = 200  # items at most
SHUFFLES = 999
SIDE = 16  # pixels of the maps that are compared


def check_shuffled(subject: Subject) -> Iterator[str]:
    """Trained on labels that are shuffled among all items, the network predicts the held-out ones no better than
    chance: than it predicts the same labels in other orders."""
    output, prepared = subject.outputs[0], subject.prepared
    held = subject.part.held(prepared.fold_of_items)[:HELD]
    if output.meaning.kind == "vectors" or prepared.pseudo or not len(held):
        return
    other = Subject(subject.config, shuffle(subject.config, prepared), subject.part, subject.code)
    short = ShortTraining(other, STEPS).run()
    network = (short.ema.network if short.ema else short.module.network).to(other.device).eval()
    samples = other.plain(other.reader(targets=True))
    predicted, targets = [], []
    for start in range(0, len(held), ITEMS):
        rows = held[start : start + ITEMS]
        batch = to_device(collate([samples[int(row), 0] for row in rows], samples.fields), other.device)
        with torch.no_grad():
            values = activate(network(batch), [replace(output, transform=None)])[output.name]
        target = batch[output.target]
        if output.meaning.kind == "maps":
            ignored = target == subject.config["data"]["ignore_index"]
            target = torch.where(ignored, 0, target)
            if output.meaning.exclusive:
                target = nn.functional.one_hot(target, len(output.columns)).movedim(-1, 1)
            values, target = (nn.functional.adaptive_avg_pool2d(each.float(), SIDE) for each in (values, target))
        predicted.append(values.flatten(1).cpu().numpy())
        targets.append(target.flatten(1).cpu().numpy())
    chance = chance_of(np.concatenate(predicted), np.concatenate(targets))
    if chance <= 1 / (SHUFFLES + 1):
        yield (
            f"trained on shuffled labels, the network predicts the held-out ones better than in {SHUFFLES} other "
            "orders: an input gives the target away, or the training sees the targets of held-out items"
        )


def chance_of(predicted: np.ndarray, targets: np.ndarray) -> float:
    """How often targets (N, K) in another order fit the predictions (N, K) as well: a permutation test of their
    covariance, in (0, 1]."""
    rng = np.random.default_rng(0)
    x, y = (np.nan_to_num(each - np.nanmean(each, axis=0)) for each in (predicted, targets))
    products = x @ y.T  # (N, N): each prediction with each target
    rows = np.arange(len(x))
    found = products[rows, rows].sum()
    others = [products[rows, rng.permutation(len(x))].sum() for _ in range(SHUFFLES)]
    return (1 + sum(other >= found for other in others)) / (1 + SHUFFLES)
