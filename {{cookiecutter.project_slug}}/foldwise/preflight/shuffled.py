"""Training on shuffled labels: what is learnt must be worth nothing on the held-out items."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from foldwise.data.batches import collate, to_device
from foldwise.data.prepare import Prepared
from foldwise.preflight.subject import ITEMS, ShortTraining, Subject
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
    other = Subject(subject.config, shuffle(prepared, subject.config), subject.part, subject.code)
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


def shuffle(prepared: Prepared, config) -> Prepared:  # type: ignore[no-untyped-def]
    """Give each item the targets of another one; masks those of an image of the same size."""
    rng, count = np.random.default_rng(0), len(prepared.items)
    sizes = prepared.scan[["height", "width"]].astype(str).agg("x".join, axis=1).to_numpy()
    masks = any("mask" in table.frame for table in prepared.tables.values())
    order = np.arange(count)
    for size in np.unique(sizes) if masks else [None]:
        among = np.flatnonzero(sizes == size) if masks else np.arange(count)
        order[among] = rng.permutation(among)
    tables = {}
    for name, table in prepared.tables.items():
        frame = table.frame
        if "mask" in frame:
            frame = frame.assign(mask=frame["mask"].to_numpy()[order])
        tables[name] = replace(table, frame=frame, target=None if table.target is None else table.target[order])
    frame = prepared.source.frame.copy()
    targets = [config["data"]["columns"]["target"], *(entry["target"] for entry in config["outputs"].values())]
    names = {name for each in targets for name in (each if isinstance(each, list) else [each])} | {"mask"}
    for name in [name for name in names if name in frame]:
        old, new = prepared.source.frame[name].to_numpy(object), frame[name].to_numpy(object).copy()
        for item, source in zip(prepared.items, order, strict=True):
            new[list(item.rows)] = old[prepared.items[int(source)].rows[0]]
        frame[name] = new
    main = prepared.outputs[0].target
    return replace(prepared, tables=tables, table=tables[main], source=replace(prepared.source, frame=frame))


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
