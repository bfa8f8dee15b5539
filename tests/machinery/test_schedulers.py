"""Learning-rate schedulers against torch's own."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from foldwise.schedule.phases import Phase, Schedule
from foldwise.schedule.schedulers import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    OneCycle,
    Plateau,
    Poly,
    Step,
)

STEPS, EPOCHS = 7, 4
TOTAL = STEPS * EPOCHS


def factors(scheduler, steps=TOTAL):
    schedule = Schedule((Phase("train", EPOCHS),), {"train": scheduler}, STEPS)
    return [schedule.factor(step) for step in range(steps)]


def torch_factors(make, every=1):
    """The rates of a torch scheduler that is stepped after each `every` steps, for a base rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for step in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("scheduler", "oracle", "every"),
    [
        (Cosine(floor=0.01), lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL - 1, eta_min=0.01), 1),
        (Poly(0.9), lambda o: lr_scheduler.PolynomialLR(o, TOTAL - 1, power=0.9), 1),
        (Step(every=2, gamma=0.1), lambda o: lr_scheduler.StepLR(o, 2, 0.1), STEPS),
        (Exponential(0.8), lambda o: lr_scheduler.ExponentialLR(o, 0.8 ** (1 / STEPS)), 1),
        (
            Exponential(0.33, every=30),
            lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.33 ** (epoch / 30 / STEPS)),
            1,
        ),
        (
            # torch rounds the length of the rise: 1 + 0.3 * 27 steps is not whole, 1/3 of 27 is
            OneCycle(rise=1 / 3, start=0.04, floor=0.04 / 1e4),
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, TOTAL, pct_start=10 / TOTAL, div_factor=25, final_div_factor=1e4, cycle_momentum=False
            ),
            1,
        ),
    ],
)
def test_schedulers_equal_torch(scheduler, oracle, every):
    assert factors(scheduler) == pytest.approx(torch_factors(oracle, every), rel=1e-6, abs=1e-9)


def test_every_curve_starts_above_zero_and_stays_in_0_to_1():
    for scheduler in (Constant(), Cosine(0.2, 0.01), OneCycle(), Step(1), Poly(), Exponential(), CosineRestarts()):
        values = factors(scheduler)
        assert values[0] > 0
        assert all(0 <= value <= 1 for value in values), scheduler


def test_a_phase_ends_exactly_at_its_lowest_rate():
    for scheduler in (Cosine(0.1, 0.02), OneCycle(floor=0.02), Poly(floor=0.02), CosineRestarts(floor=0.02)):
        values = factors(scheduler)
        assert values[-1] == pytest.approx(0.02)
        assert min(values) == pytest.approx(0.02)


def test_each_restart_begins_at_its_own_height():
    # 3 cycles over 31 steps: a cycle begins at every tenth step
    schedule = Schedule((Phase("train", 1),), {"train": CosineRestarts(cycles=3, gamma=0.5, floor=0.0)}, 31)
    assert [schedule.factor(step) for step in (0, 10, 20)] == pytest.approx([1.0, 0.5, 0.25])
    assert schedule.factor(9) < 0.05 and schedule.factor(30) == pytest.approx(0)


def test_plateau_is_torchs_reduce_on_plateau():
    losses = [1.0, 0.9, 0.95, 0.93, 0.91, 0.90005, 0.8, 0.85, 0.85, 0.85, 0.85, 0.85, 0.7]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=2, threshold=1e-4, threshold_mode="abs", min_lr=0.001
    )
    plateau = Plateau(patience=2, gamma=0.1, min_delta=1e-4, floor=0.001)
    for loss in losses:
        oracle.step(loss)
        plateau.observe(loss)
        assert plateau(0.5, 1.0) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_remembers_through_a_checkpoint():
    first, second = Plateau(patience=0), Plateau(patience=0)
    first.observe(1.0)
    first.observe(2.0)
    second.load_state_dict(first.state_dict())
    assert second.factor == first.factor < 1
    assert not math.isinf(second.best)
