"""solution/networks.py and solution/module.py: what the losses want, what is trained, what a saved model predicts."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import BATCH, Training, World

from foldwise.code.runs import keep_code
from foldwise.errors import Refusal
from foldwise.inference.predictor import activate
from foldwise.inference.weights import load_model, save_model

MODES = pytest.mark.parametrize("mode", ["training", "validation"])
SURE = 1e-3  # how far from 0 and 1 a perfect prediction is


class Losses:
    """The loss of a batch by how its samples are predicted."""

    def __init__(self, world: World, mode: str) -> None:
        self.outputs, self.batch = world.prepared.outputs, world.batch()
        self.ignored, self.module = world.config["data"]["ignore_index"], Training(world).module
        self.given = self.module.train(mode == "training").network(self.batch)

    def __call__(self, wrong=(), move=None, **batch) -> float:
        """Of the ground truth as prediction, of the samples in `wrong` the opposite, maps moved; other `batch`."""
        predicted = dict(self.given)
        for output in self.outputs:
            target, exclusive = self.batch[output.target].clone(), output.meaning.exclusive
            if not output.meaning.probabilities:
                target[list(wrong)] += 3
                predicted[output.key] = target.nan_to_num()
                continue
            if output.meaning.kind == "maps":
                target[target == self.ignored] = 0
                target = torch.nn.functional.one_hot(target, len(output.columns)).movedim(-1, 1).float()
                target = target if move is None else move(target)
            for sample in wrong:
                target[sample] = target[sample].roll(1, 0) if exclusive else 1 - target[sample]
            target = target.clamp(SURE, 1 - SURE)
            predicted[output.key] = target.log() if exclusive else target.logit()
        return float(self.module.losses(predicted, self.batch | batch)["loss"].detach())


@MODES
def test_the_loss_prefers_the_ground_truth(mode, world: World):
    """Usual cause: a loss with the wrong sign, without the target, or of some of the samples only."""
    loss = Losses(world, mode)
    for sample in range(BATCH):
        assert loss([sample]) > loss(), f"sample {sample} may be predicted wrong"
    if any(output.meaning.kind == "maps" for output in world.prepared.outputs):
        for axis in (-2, -1):
            for move in (torch.flip, partial(torch.roll, shifts=3)):
                assert loss(move=lambda x, move=move, axis=axis: move(x, dims=[axis])) > loss(), (
                    "a moved map is no worse"
                )


@MODES
def test_the_loss_heeds_the_weights(mode, world: World):
    """Usual cause: `losses` without `batch["weight"]`, so that the table's weights change nothing."""
    loss, wrong = Losses(world, mode), torch.arange(BATCH) < BATCH // 2
    half = wrong.nonzero().flatten()
    try:
        assert loss(half, weight=torch.where(wrong, 1.9, 0.1)) > loss(half, weight=torch.where(wrong, 0.1, 1.9))
    except Refusal:  # a loss of the whole batch, such as Dice, takes equal weights alone
        assert loss(half, weight=torch.full([BATCH], 2.0)) > 1.2 * loss(half, weight=torch.ones(BATCH))


@pytest.fixture(scope="module")
def learnt(world: World):
    """A module that was trained on one batch, its spec, and the losses of the steps."""
    training, batch, losses = Training(world), world.batch(), []
    module = training.module.train()
    optimizer = torch.optim.Adam(module.network.parameters(), lr=2e-3)
    for step in range(100):
        result = module.training_step(dict(batch), step)
        loss = result["loss"] if isinstance(result, dict) else result
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step > 30 and max(losses[-5:]) < 0.2 * losses[0]:
            break
    with torch.no_grad():
        for _ in range(30):  # the statistics of BatchNorm catch up
            module.network(batch)
    return module.eval(), training.spec, losses


def test_one_batch_is_learnt(world: World, learnt):
    """Usual cause: a `detach` or `no_grad` too many, outputs that are activated twice, or a forward that differs in
    eval mode, such as views that are turned back wrongly."""
    module, _, losses = learnt
    assert np.median(losses[-5:]) < 0.4 * losses[0], "the loss does not fall"
    with torch.no_grad():
        evaluated = module.losses(module.network(world.batch()), world.batch())["loss"]
    assert evaluated < 2 * losses[-1] + 0.1 * losses[0], "what is learnt in training mode is not there in eval mode"


def predict(network, world: World, samples=slice(None)) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return activate(network({n: v[samples] for n, v in world.batch().items()}), world.prepared.outputs)


def test_a_saved_model_predicts_as_the_trained_one(world: World, learnt, tmp_path):
    """Usual cause: something learnt that is neither parameter nor buffer, or layers in a list in place of a
    `ModuleList`: they are not in `state_dict`."""
    module, spec, _ = learnt
    save_model(tmp_path / "model", module.network, spec)
    keep_code(world.code, tmp_path)
    saved = predict(load_model(tmp_path / "model").network, world)
    for name, values in predict(module.network, world).items():
        torch.testing.assert_close(saved[name], values, rtol=1e-4, atol=1e-5)


def test_a_sample_is_predicted_by_itself(world: World, learnt):
    """Usual cause: BatchNorm or dropout that stays in training mode, or a mean over the batch in `forward`."""
    network = learnt[0].network
    together, again = predict(network, world), predict(network, world)
    for name, values in together.items():
        assert torch.equal(again[name], values), "the same batch is predicted otherwise a second time"
        for sample in range(BATCH):
            alone = predict(network, world, slice(sample, sample + 1))[name]
            torch.testing.assert_close(alone, values[sample : sample + 1], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def trained(world: World) -> Training:
    return Training(world).run()


def moved(before, after, names) -> list[str]:
    return [name for name in names if not torch.equal(before[name], after[name])]


def test_phases_train_what_they_say(trained: Training):
    """Usual cause: `on_train_epoch_start` without `super()`, or a `train()` that thaws what a phase has frozen."""
    net = trained.module.network.net
    head = {id(tensor) for module in net.head() for tensor in module.state_dict(keep_vars=True).values()}
    body = [name for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) not in head]
    statistics = [name for name in body if "running_" in name]
    start, head_only, frozen, end = trained.states
    assert not moved(start, head_only, body), "a phase that trains the head moves more"
    assert not moved(head_only, frozen, statistics), "freeze_bn does not freeze"
    assert moved(frozen, end, statistics) == statistics, "BatchNorm never learns its statistics"
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    still = [name for name in sizes if not moved(start, end, [name])]
    share = sum(sizes[name] for name in still) / sum(sizes.values())
    assert share < 0.1, f"{share:.0%} of the network is never trained: {', '.join(still[:5])}"


def test_the_ema_follows_the_weights(trained: Training):
    """Usual cause: a module that trains another network than `self.network`, or a hook of the EMA that never comes."""
    average, (start, *_, end) = trained.ema.network.net.state_dict(), trained.states
    floats = [name for name, tensor in average.items() if tensor.is_floating_point()]
    assert moved(start, average, floats), "the EMA is the network as it began"
    assert moved(end, average, floats), "the EMA is the network as it ended"
    for name in floats:
        room = 1e-4 * (1 + trained.most[name].abs())
        inside = (average[name] > trained.least[name] - room) & (average[name] < trained.most[name] + room)
        assert inside.all(), f"{name} of the EMA is no average"


def test_a_training_repeats(world: World, trained: Training):
    """Usual cause: a random generator without a seed, or `on_train_batch_start` without `super()`."""
    again = Training(world)
    np.random.seed(1)
    torch.manual_seed(1)
    assert not moved(trained.states[-1], again.run().states[-1], again.states[-1])
