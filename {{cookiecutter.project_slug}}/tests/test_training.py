"""solution/networks.py and solution/module.py: the losses, what is trained, and what a saved model predicts."""

import numpy as np
import pytest
import torch
from conftest import BATCH, Training, World

from foldwise.code.runs import keep_code
from foldwise.errors import Refusal
from foldwise.inference.predictor import activate
from foldwise.inference.weights import load_model, save_model

SURE = 1e-3  # how far from 0 and 1 a perfect prediction is


def perfect(world: World, outputs, wrong=()):
    """The outputs with those that the ground truth asks for in place, of the samples in `wrong` the opposite."""
    found = dict(outputs)
    for output in world.prepared.outputs:
        task, target = output.meaning, world.batch[output.target]
        if task.kind == "maps":
            valid = target.where(target != world.config["data"]["ignore_index"], 0)
            target = torch.nn.functional.one_hot(valid, len(output.columns)).movedim(-1, 1).float()
        for sample in wrong:
            target = target.clone()
            target[sample] = target[sample].roll(1, 0) if task.exclusive else 1 - target[sample]
        target = target.clamp(SURE, 1 - SURE)
        found[output.key] = target.log() if task.exclusive else target.logit()
    return found


def loss_of(training: Training, outputs, **changes) -> float:
    return float(training.module.losses(outputs, training.world.batch | changes)["loss"].detach())


@pytest.mark.parametrize("mode", ["training", "validation"])
def test_the_loss_prefers_the_ground_truth(mode: str, world: World, fresh: Training):
    """Usual cause: a loss with the wrong sign, without the target, or of some of the samples only."""
    outputs = fresh.module.train(mode == "training").network(world.batch)
    best = loss_of(fresh, perfect(world, outputs))
    for sample in range(BATCH):
        assert loss_of(fresh, perfect(world, outputs, [sample])) > best, f"sample {sample} may be predicted wrong"
    maps = [output.key for output in world.prepared.outputs if output.meaning.kind == "maps"]
    for key in maps:
        right = perfect(world, outputs)
        for move in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.roll(3, -1), lambda x: x.roll(3, -2)):
            assert loss_of(fresh, right | {key: move(right[key])}) > best, "a map that is moved is no worse"


@pytest.mark.parametrize("mode", ["training", "validation"])
def test_the_loss_heeds_the_weights(mode: str, world: World, fresh: Training):
    """Usual cause: `losses` without `batch["weight"]`, so that the table's weights change nothing."""
    outputs = fresh.module.train(mode == "training").network(world.batch)
    half = torch.arange(BATCH) < BATCH // 2
    mixed = perfect(world, outputs, range(BATCH // 2, BATCH))
    try:
        on_right, on_wrong = (loss_of(fresh, mixed, weight=torch.where(w, 1.9, 0.1)) for w in (half, ~half))
        assert on_right < on_wrong
    except Refusal:  # of losses of the whole batch, such as Dice
        one, two = (loss_of(fresh, mixed, weight=torch.full([BATCH], value)) for value in (1.0, 2.0))
        assert two > 1.2 * one


@pytest.fixture(scope="module")
def learnt(world: World) -> tuple[Training, list[float]]:
    """A network trained on one batch, and the losses of its steps."""
    training, losses = Training(world), []
    optimizer = torch.optim.Adam(training.module.network.parameters(), lr=2e-3)
    training.module.train()
    for step in range(100):
        result = training.module.training_step(dict(world.batch), step)
        loss = result["loss"] if isinstance(result, dict) else result
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step > 30 and max(losses[-5:]) < 0.2 * losses[0]:
            break
    training.module.eval()
    return training, losses


def test_one_batch_is_learnt(world: World, learnt: tuple[Training, list[float]]):
    """Usual cause: a `detach` or `no_grad` too many, or outputs that are activated twice."""
    training, losses = learnt
    assert np.median(losses[-5:]) < 0.4 * losses[0], "the loss does not fall"
    with torch.no_grad():
        evaluated = loss_of(training, training.module.network(world.batch))
    assert evaluated < 0.6 * losses[0], "what is learnt in training mode is not there in eval mode"


def predict(network, world: World, samples=slice(None)) -> dict[str, torch.Tensor]:
    batch = {name: value[samples] for name, value in world.batch.items()}
    with torch.no_grad():
        return activate(network(batch), world.prepared.outputs)


def test_a_saved_model_predicts_as_the_trained_one(world: World, learnt, tmp_path):
    """Usual cause: something learnt that is neither parameter nor buffer, or layers in a list in place of a
    `ModuleList`: `state_dict` does not have them."""
    training, _ = learnt
    save_model(tmp_path / "model", training.module.network, training.spec)
    keep_code(world.code.code, tmp_path)
    before, after = (predict(n, world) for n in (training.module.network, load_model(tmp_path / "model").network))
    for name, values in before.items():
        torch.testing.assert_close(after[name], values, rtol=1e-4, atol=1e-5)


def test_a_sample_is_predicted_by_itself(world: World, learnt):
    """Usual cause: BatchNorm or dropout that stays in training mode, or a mean over the batch in `forward`."""
    network = learnt[0].module.network
    together, again = predict(network, world), predict(network, world)
    for name, values in together.items():
        torch.testing.assert_close(again[name], values, rtol=0, atol=0)
        for sample in range(BATCH):
            alone = predict(network, world, slice(sample, sample + 1))[name]
            torch.testing.assert_close(alone, values[sample : sample + 1], rtol=1e-3, atol=1e-4)


def moved(before, after, names) -> list[str]:
    return [name for name in names if not torch.equal(before[name], after[name])]


def test_phases_train_what_they_say(trained: Training):
    """Usual cause: `on_train_epoch_start` or `train` without `super()`, so that frozen BatchNorm goes on moving."""
    net = trained.module.network.net
    head = {id(tensor) for module in net.head() for tensor in module.state_dict(keep_vars=True).values()}
    body = [name for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) not in head]
    parameters = dict(net.named_parameters())
    start, head_only, frozen, end = trained.recorder.states
    assert not moved(start, head_only, body), "a phase that trains the head moves more"
    assert not moved(head_only, frozen, [name for name in body if "running_" in name]), "freeze_bn does not freeze"
    assert moved(frozen, end, [name for name in body if "running_" in name]) or not any("running_" in n for n in body)
    still = [name for name in parameters if torch.equal(start[name], end[name])]
    share = sum(parameters[name].numel() for name in still) / sum(value.numel() for value in parameters.values())
    assert share < 0.1, f"{share:.0%} of the network are never trained: {', '.join(still[:5])}"


def test_the_average_follows_the_weights(trained: Training):
    """Usual cause: a module that trains another network than `self.network`, or an EMA whose hook is overridden."""
    average = trained.ema.network.net.state_dict()
    start, *_, end = trained.recorder.states
    floats = [name for name in average if average[name].is_floating_point()]
    assert moved(start, average, floats), "the EMA is the network as it began"
    assert moved(end, average, floats), "the EMA is the network as it ended"
    for name in floats:
        low, high = trained.recorder.least[name], trained.recorder.most[name]
        room = 1e-4 + 1e-4 * high.abs()
        assert ((average[name] >= low - room) & (average[name] <= high + room)).all(), f"{name} is no average"


def test_a_training_repeats(world: World, trained: Training):
    """Usual cause: a random generator of one's own without a seed, or `on_train_batch_start` without `super()`."""
    again = Training(world)
    np.random.seed(1)
    torch.manual_seed(1)
    assert not moved(trained.recorder.states[-1], again.run().recorder.states[-1], again.recorder.states[-1])
