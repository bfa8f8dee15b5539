"""Fitted stacking as arrays, predicted with numpy alone, and saved without pickles.

stack.safetensors    arrays of each fold's models
stack.json           kinds of the models, and how their inputs are made
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from foldwise.files import read_json, write_json
from foldwise.predictions.ensembles.blending import EDGE
from foldwise.predictions.ensembles.extra import Encoder, Extra
from foldwise.tasks import Task, find_task

ARRAYS, DESCRIPTION = "stack.safetensors", "stack.json"


@dataclass(frozen=True)
class Inputs:
    """How inputs are made of predictions (M, N, C) and `Extra`.

    A class's model gets every source's prediction of the class, the sources' mean prediction of all classes, and the
    extra values; a joint model gets every source's predictions of all classes, and the extra values.

    Attributes:
        joint: one model of all classes.
        odds: log-odds instead of probabilities.
        chunks: if not 0, rows are units: of each source and class the means of so many equal chunks of the pictures'
            sorted predictions, and the mean extra values.
        relative: add each input's z-score and rank within its group.
    """

    joint: bool = False
    odds: bool = False
    chunks: int = 0
    relative: bool = False

    def make(self, probability: np.ndarray, extra: Extra) -> Callable[[int], np.ndarray]:
        """Return a function from the number of a model to its inputs (N or units, ...) float32."""
        if self.chunks:
            code, first = codes(extra.units)
            probability = chunk_means(probability, code, self.chunks)
            extra = Extra(unit_means(extra.values, code), extra.units[first], extra.groups[first])
        means = np.zeros(probability.shape[1:], np.float32)
        for source in probability:  # one at a time, to save memory
            means += self._link(source) / np.float32(len(probability))
        shared = extra.values if self.joint else np.hstack([means, extra.values])

        def inputs(index: int) -> np.ndarray:
            chosen = probability.transpose(1, 0, 2) if self.joint else probability[:, :, index].T
            values = np.hstack([self._link(chosen).reshape(len(chosen), -1), shared])
            return np.hstack([values, *relative_values(values, extra.groups)]) if self.relative else values

        return inputs

    def _link(self, values: np.ndarray) -> np.ndarray:
        if not self.odds:
            return values
        clipped = values.clip(EDGE, 1 - EDGE)
        return np.log(clipped / (1 - clipped))


@dataclass(frozen=True, kw_only=True)
class Model:
    """Base of the models.

    Attributes:
        fill, gaps: (F,) values for NaN, and the indices of inputs that get an indicator of NaN as a further input.
        link: of the outputs, in `LINKS`.
    """

    fill: np.ndarray
    gaps: np.ndarray
    link: str

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Predict (N, outputs) from (N, F)."""
        missing = np.isnan(inputs)
        values = np.hstack([np.where(missing, self.fill.astype(inputs.dtype), inputs), missing[:, self.gaps]])
        return LINKS[self.link](self._raw(values))

    def _raw(self, values: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Dense(Model):
    """Dense layers with ReLU between them; one layer is a linear model.

    Attributes:
        mean, scale: of the inputs and indicators.
        layers: weights (inputs, outputs) and biases (outputs,), in turns.
    """

    mean: np.ndarray
    scale: np.ndarray
    layers: Sequence[np.ndarray]

    def _raw(self, values: np.ndarray) -> np.ndarray:
        values -= self.mean  # in place, which keeps float32, as scikit-learn does
        values /= self.scale
        for number, (weight, bias) in enumerate(zip(self.layers[::2], self.layers[1::2], strict=True)):
            values = (values if number == 0 else np.maximum(values, 0)) @ weight + bias
        return values


@dataclass(frozen=True, kw_only=True)
class Trees(Model):
    """Boosted trees, node after node.

    Attributes:
        roots: (T,) first node of each tree.
        feature, threshold: (nodes,) input, and the largest value that goes left.
        left, right: (nodes,) next nodes; -1 for a leaf.
        value: (nodes,) of leaves.
        baseline: (1,) added to the sum of the trees.
    """

    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    baseline: np.ndarray

    def _raw(self, values: np.ndarray) -> np.ndarray:
        columns = np.ascontiguousarray(values.T, np.float64)

        def descend(node: int) -> np.ndarray:
            if self.left[node] < 0:
                return self.value[node]
            left = columns[self.feature[node]] <= self.threshold[node]
            return np.where(left, descend(self.left[node]), descend(self.right[node]))

        total = np.full(len(values), self.baseline[0])
        for root in self.roots:
            total += descend(root)
        return total[:, None]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(values))  # without overflow
    return np.where(values >= 0, 1, small) / (1 + small)


def _softmax(values: np.ndarray) -> np.ndarray:
    exponential = np.exp(values - values.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


LINKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda values: values,
    "sigmoid": _sigmoid,
    "softmax": _softmax,
}
KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Dense, Trees)}


@dataclass(frozen=True)
class Stack:
    """Fitted stacking of one fold's models: a model per class, or a joint one."""

    models: Sequence[Model]
    inputs: Inputs
    task: Task
    weights: None = None

    def predict(self, probability: np.ndarray, extra: Extra) -> np.ndarray:
        """Predict (N, C) from sources (M, N, C); exclusive classes sum to 1. With `chunks`, a unit's rows are equal."""
        inputs = self.inputs.make(probability, extra)
        columns = [model.predict(inputs(index)) for index, model in enumerate(self.models)]
        values = self.task.clip(np.hstack(columns).astype(np.float32))
        if self.task.exclusive:
            values = values.clip(EDGE, 1)
            values /= values.sum(axis=1, keepdims=True)
        return values[codes(extra.units)[0]] if self.inputs.chunks else values


@dataclass(frozen=True)
class Stacks:
    """The stacks of all folds, and where their further inputs come from.

    Attributes:
        encoder: of the columns of the table.
        group: column of the groups that inputs are relative to.
    """

    folds: Mapping[int, Stack]
    encoder: Encoder
    group: str | None = None

    @property
    def columns(self) -> list[str]:
        """Columns of the table that are read, besides the unit."""
        return list(dict.fromkeys([*self.encoder.columns, *([self.group] if self.group else [])]))

    @property
    def of_one_item(self) -> bool:
        """Whether the prediction of an item depends on no other item."""
        return self.group is None and not any(stack.inputs.chunks for stack in self.folds.values())

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        models = {f"{fold}.{n}": model for fold, stack in self.folds.items() for n, model in enumerate(stack.models)}
        arrays = {f"{name}.{key}": value for name, model in models.items() for key, value in _arrays(model)}
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, folder / ARRAYS)
        stack = next(iter(self.folds.values()))
        described = {
            "task": stack.task.name,
            "inputs": asdict(stack.inputs),
            "columns": asdict(self.encoder),
            "relative_to": self.group,
            "folds": list(self.folds),
            "models": {name: {"kind": type(model).__name__, "link": model.link} for name, model in models.items()},
        }
        write_json(folder / DESCRIPTION, described)

    @classmethod
    def load(cls, folder: Path) -> Self:
        from safetensors.numpy import load_file

        described = read_json(folder / DESCRIPTION)
        found: dict[str, dict[str, Any]] = {name: {"link": each["link"]} for name, each in described["models"].items()}
        for path, value in load_file(folder / ARRAYS).items():
            name, key = path.rsplit(".", 1)
            found[name][key] = value
        models: dict[str, list[Model]] = {}
        for name, values in found.items():
            if layers := [key for key in values if key.startswith("layers")]:
                values["layers"] = tuple(values.pop(f"layers{number}") for number in range(len(layers)))
            models.setdefault(name.split(".")[0], []).append(KINDS[described["models"][name]["kind"]](**values))
        inputs, task = Inputs(**described["inputs"]), find_task(described["task"])
        stacks = {fold: Stack(models[str(fold)], inputs, task) for fold in described["folds"]}
        return cls(stacks, Encoder(**described["columns"]), described["relative_to"])


def _arrays(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    for field in fields(model):
        value = getattr(model, field.name)
        if isinstance(value, np.ndarray):
            yield field.name, value
        elif isinstance(value, tuple):
            yield from ((f"{field.name}{number}", each) for number, each in enumerate(value))


def codes(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct names: a number per name, and the first index of each number."""
    _, first, code = np.unique(names, return_index=True, return_inverse=True)
    return code, first


def unit_means(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Mean (U, F) of the values (N, F) of each unit, skipping NaN."""
    return pd.DataFrame(values).groupby(code).mean().to_numpy(values.dtype)


def chunk_means(probability: np.ndarray, code: np.ndarray, chunks: int) -> np.ndarray:
    """Sort each unit's predictions (M, N, C) and average them in equal chunks: (M * chunks, U, C).

    A chunk's border may cut a prediction, which then counts in part on both sides; so any number of pictures will do.
    """
    count, order = np.bincount(code), np.argsort(code, kind="stable")
    start = np.cumsum(count) - count
    means = np.empty((len(probability), chunks, len(count), probability.shape[2]), np.float32)
    for number in np.unique(count):
        units = np.flatnonzero(count == number)
        rows = order[start[units][:, None] + np.arange(number)]  # (units, number)
        borders, edges = np.arange(chunks + 1) / chunks, np.arange(number + 1) / number
        overlap = np.minimum(borders[1:, None], edges[1:]) - np.maximum(borders[:-1, None], edges[:-1])
        share = (overlap.clip(min=0) * chunks).astype(np.float32)  # (chunks, number), of each chunk
        means[:, :, units] = np.einsum("kn,munc->mkuc", share, np.sort(probability[:, rows], axis=2))
    return means.reshape(-1, *means.shape[2:])


def relative_values(values: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """Z-scores and ranks in (0, 1) of values (N, F) within each group; of one row 0 and 0.5."""
    grouped = pd.DataFrame(values).groupby(groups)
    deviation = grouped.transform("std", ddof=0).to_numpy()
    score = (values - grouped.transform("mean").to_numpy()) / np.where(deviation > 0, deviation, 1)
    rank = (grouped.rank().to_numpy() - 0.5) / grouped.transform("count").to_numpy().clip(min=1)
    return [score.astype(np.float32), rank.astype(np.float32)]
