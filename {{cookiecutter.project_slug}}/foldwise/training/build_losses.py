"""Builds the losses of a model's outputs from a configuration and the counts of its training items."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from foldwise.code.build import make
from foldwise.data.holdout import GOLD, Holdout
from foldwise.data.prepare import Prepared
from foldwise.data.targets import check_order
from foldwise.errors import Refusal
from foldwise.models.losses import BALANCES, Ordinal, balanced_class_weights, margins_by_size
from foldwise.models.module import HeadLoss
from foldwise.tasks.outputs import Output


def build_heads(config: Mapping[str, Any], prepared: Prepared, part: Holdout) -> dict[str, HeadLoss]:
    """The losses of further outputs; without a `loss`, your module trains the output."""
    heads = {}
    for output in prepared.trained[1:]:
        entry = config["outputs"][output.name]
        if entry["loss"] is None:
            continue
        loss = build_loss(entry["loss"], prepared, output, part)
        heads[output.name] = HeadLoss(output.key, output.target, loss, float(entry["weight"]))
    return heads


def build_loss(settings: Mapping[str, Any], prepared: Prepared, output: Output, part: Holdout) -> torch.nn.Module:
    """The loss of an output; named `class_weights` (`BALANCES`) and `margin` are computed from the training items."""
    loss: Any = copy.deepcopy(settings)
    by_fold = prepared.class_counts[output.name]
    total = np.sum([values for key, values in by_fold.items() if int(key) not in (*part.folds, GOLD)], axis=0).tolist()
    for term in [loss, *(term["loss"] for term in loss.get("terms", []))]:
        name = term.get("class_weights")
        if isinstance(name, str):
            if name not in BALANCES:
                raise Refusal(f"class_weights is {name!r}; give {', '.join(BALANCES)}, or one number per class")
            term["class_weights"] = balanced_class_weights(total, _examples(prepared, output, part), BALANCES[name])
        if isinstance(term.get("margin"), str):
            if term["margin"] != "by_size":
                raise Refusal(f"margin is {term['margin']!r}; give a number, by_size, or one number per class")
            term["margin"] = margins_by_size(total)
    built = make(loss, prepared.alias)
    if any(isinstance(part, Ordinal) for part in built.modules()):
        check_order("loss=ordinal", prepared.outputs[0].columns, prepared.table.ordered)
    return built


def _examples(prepared: Prepared, output: Output, part: Holdout) -> int | None:
    """Training items with a target, or with masks pixels, of which a class has some; None if classes are exclusive."""
    task, rows = output.meaning, part.trained(prepared.fold_of_items)
    if task.exclusive:
        return None
    rows = rows[prepared.tables[output.target].known[rows]]
    pixels = prepared.scan["height"] * prepared.scan["width"]
    return int(pixels.iloc[rows].sum()) if task.kind == "maps" else len(rows)
