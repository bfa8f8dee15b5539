"""Training on shuffled labels: what is learnt must be worth nothing on the held-out items."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from foldwise.data.batches import collate, to_device
from foldwise.data.prepare import Prepared
from foldwise.preflight.short import ShortTraining
from foldwise.preflight.subject import ITEMS, Subject
from foldwise.tasks import find_task
from foldwise.tasks.outputs import activate

STEPS = 100  # per phase
HELD = 200  # items at most
SHUFFLES = 999
SIDE = 16  # pixels of the maps that are compared


def shuffle(config: Mapping[str, Any], prepared: Prepared) -> Prepared:
    """Give each item the targets of another one; masks those of an image of the same size."""
    rng, frame = np.random.default_rng(0), prepared.source.frame
    masks = any("mask" in table.frame for table in prepared.tables.values())
    sizes = prepared.scan[["height", "width"]].to_numpy() if masks else np.zeros((len(prepared.items), 1))
    _, alike = np.unique(sizes, axis=0, return_inverse=True)
    order = np.arange(len(alike))
    for number in range(alike.max() + 1):
        among = np.flatnonzero(alike == number)
        order[among] = rng.permutation(among)
    tables = {}
    for field, table in prepared.tables.items():
        cells = {name: table.frame[name].to_numpy()[order] for name in ("mask",) if name in table.frame}
        target = None if table.target is None else table.target[order]
        tables[field] = replace(table, frame=table.frame.assign(**cells), target=target)
    columns = {}
    for name in [name for name in target_columns(config) if name in frame]:
        columns[name] = frame[name].to_numpy(object).copy()
        for item, other in zip(prepared.items, order, strict=True):
            columns[name][list(item.rows)] = frame[name].iat[prepared.items[int(other)].rows[0]]
    source = replace(prepared.source, frame=frame.assign(**columns))
    return replace(prepared, tables=tables, table=tables[prepared.outputs[0].target], source=source)


def target_columns(config: Mapping[str, Any]) -> list[str]:
    """Columns of the table that the targets of all outputs are read from."""
    main = config["data"]["columns"]["target"] or find_task(config["task"]).column
    columns = [main, *(entry["target"] for entry in config["outputs"].values()), "mask"]
    return [name for each in columns for name in (each if isinstance(each, list) else [each])]


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
