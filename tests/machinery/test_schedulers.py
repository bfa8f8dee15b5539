"""Learning-rate schedulers against torch's own."""

import numpy as np
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


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("resumed", [False, True])
def test_plateau_is_torchs_reduce_on_plateau(patience, resumed):
    """Over many drops and improvements; `resumed` from a checkpoint after each validation."""
    rng = np.random.default_rng(patience)
    # Noise on a slow descent, equal losses, improvements just below and above min_delta.
    losses = np.concatenate(
        [1 / (1 + np.arange(30) / 9) + rng.normal(0, 0.03, 30), [0.1, 0.1, 0.0995, 0.098] * 5]
    ).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    settings = {"factor": 0.7, "threshold": 1e-3, "threshold_mode": "abs", "min_lr": 0.02, "eps": 0}
    oracle = lr_scheduler.ReduceLROnPlateau(optimizer, patience=patience, **settings)
    plateau = Plateau(patience=patience, gamma=0.7, min_delta=1e-3, floor=0.02)
    seen = set()
    for loss in losses:
        oracle.step(loss)
        plateau.observe(loss)
        if resumed:
            state, plateau = plateau.state_dict(), Plateau(patience=patience, gamma=0.7, min_delta=1e-3, floor=0.02)
            plateau.load_state_dict(state)
        seen.add(optimizer.param_groups[0]["lr"])
        assert plateau(0.5, 1.0) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert len(seen) > 4 and (patience or min(seen) == 0.02)
