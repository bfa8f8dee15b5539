"""solution/samples.py, networks.py and module.py: the checks before a training, and that a training repeats."""

import numpy as np
import pytest
import torch
from conftest import World

from foldwise.preflight.checks import LEARNING, READING
from foldwise.preflight.short import ShortTraining
from foldwise.preflight.subject import Subject


@pytest.fixture(scope="module")
def short(subject: Subject) -> ShortTraining:
    return ShortTraining(subject).run()


@pytest.mark.parametrize("check", (*READING, *LEARNING), ids=lambda check: check.__name__)
def test_nothing_is_found(check, subject: Subject):
    """Where channels mean something else than red, green and blue on purpose, leave out check_channels."""
    assert not [*check(subject)]


def moved(before, after, names) -> list[str]:
    return [name for name in names if not torch.equal(before[name], after[name])]


def test_batch_norm_learns_and_the_ema_follows(short: ShortTraining):
    """`on_train_epoch_start` without `super()`, or a module that trains another network than `self.network`."""
    start, *_, frozen, end = short.states
    statistics = [name for name in end if "running_" in name]
    assert moved(frozen, end, statistics) == statistics, "BatchNorm never learns its statistics"
    average, names = short.ema.network.state_dict(), [name for name, _ in short.module.network.named_parameters()]
    assert moved(start, average, names) and moved(end, average, names), "the EMA is the network as it began or ended"


def test_a_training_repeats(world: World, subject: Subject, short: ShortTraining):
    """A random generator without a seed, or `on_train_batch_start` without `super()`."""
    again, draws = subject.module(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        again.on_train_batch_start({}, 0)
        draws.append((float(torch.rand(())), np.random.random()))
    assert draws[0] == draws[1], "the random numbers of a step depend on what came before"
    end = short.states[-1]
    assert not moved(end, ShortTraining(world.subject()).run().states[-1], end)
