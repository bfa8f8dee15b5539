"""A dense network of all classes for stacking, as in that of Pri-matrix's third place (DrivenData 2017).

Batch norm, two hidden layers with ReLU and dropout. Trained with torch, and turned into arrays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from foldwise.tasks import Task

HIDDEN, DROPOUT, LR, BATCH = 512, 0.25, 1e-3, 256
EPOCHS = (5, 10, 20, 40, 80)  # tried in this order until the loss of the held-out parts rises


def fit_network(
    inputs: np.ndarray, target: np.ndarray, parts: np.ndarray, sample: np.ndarray, task: Task
) -> tuple[tuple[np.ndarray, ...], str]:
    """Choose the number of epochs by cross-validation over `parts` (N,) of the `sample` of rows, and train on all rows.

    Args:
        inputs: (N, F) with mean 0 and variance 1.
        target: (N, C), NaN where unknown.

    Returns:
        `layers` and `link` of `Dense`.
    """
    import torch

    offset, unit = np.zeros(target.shape[1]), np.ones(target.shape[1])
    if not task.probabilities:
        offset, unit = np.nanmean(target, axis=0), np.nanstd(target, axis=0)
        unit = np.where(unit > 0, unit, 1)
    values, aim = torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy((target - offset) / unit).float()
    *_, net = _train(values, aim, task, _choose_epochs(values[sample], aim[sample], parts[sample], task))
    norm, *dense = (net[index] for index in (0, 1, 4, 7))
    weights = [each.weight.detach().numpy().T.copy() for each in dense]
    biases = [each.bias.detach().numpy().copy() for each in dense]
    biases[0] += norm.bias.detach().numpy() @ weights[0]
    weights[0] *= norm.weight.detach().numpy()[:, None] / (1 + norm.eps) ** 0.5
    weights[0][inputs.std(axis=0) < 1e-6] = 0  # untrained: a constant input must not matter if it changes later
    weights[-1], biases[-1] = (weights[-1] * unit).astype(np.float32), (biases[-1] * unit + offset).astype(np.float32)
    link = ("softmax" if task.exclusive else "sigmoid") if task.probabilities else "identity"
    return tuple(layer for pair in zip(weights, biases, strict=True) for layer in pair), link


def _choose_epochs(inputs: Any, aim: Any, parts: np.ndarray, task: Task) -> int:
    import torch

    held = [torch.from_numpy(parts == part) for part in np.unique(parts)]
    if len(held) < 2:
        return EPOCHS[0]
    trained = [_train(inputs[~rows], aim[~rows], task, EPOCHS[-1]) for rows in held]
    best, lowest = EPOCHS[0], np.inf
    for epochs, nets in zip(EPOCHS, zip(*trained, strict=True), strict=True):
        with torch.no_grad():
            losses = [_loss(net(inputs[rows]), aim[rows], task).item() for net, rows in zip(nets, held, strict=True)]
        if np.mean(losses) >= lowest:
            break
        best, lowest = epochs, float(np.mean(losses))
    return best


def _train(inputs: Any, aim: Any, task: Task, epochs: int) -> Iterator[Any]:
    """Train for `epochs`; yield the network in eval mode after each number of epochs in EPOCHS."""
    import torch
    from torch import nn

    def hidden(width: int) -> list[nn.Module]:
        return [nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT)]

    with _seeded(0):
        width = inputs.shape[1]
        last = nn.Linear(HIDDEN, aim.shape[1])
        # Without momentum it keeps mean 0 and variance 1, which the inputs have.
        net = nn.Sequential(nn.BatchNorm1d(width, momentum=0), *hidden(width), *hidden(HIDDEN), last)
    optimizer, size = torch.optim.Adam(net.parameters(), LR), min(BATCH, len(inputs))
    for epoch in range(1, epochs + 1):
        with _seeded(epoch):  # several trainings take turns
            net.train()
            order = torch.randperm(len(inputs))
            for rows in order[: len(order) // size * size].view(-1, size):
                optimizer.zero_grad()
                _loss(net(inputs[rows]), aim[rows], task).backward()
                optimizer.step()
        if epoch in EPOCHS:
            yield net.eval()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _loss(outputs: Any, aim: Any, task: Task) -> Any:
    from torch.nn import functional

    if task.exclusive:
        return functional.cross_entropy(outputs, aim)
    known = ~aim.isnan()
    if task.probabilities:
        return functional.binary_cross_entropy_with_logits(outputs[known], aim[known])
    return functional.mse_loss(outputs[known], aim[known])
