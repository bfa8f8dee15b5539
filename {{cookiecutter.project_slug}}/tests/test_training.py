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

SURE = 1e-3  # how far from 0 and 1 a perfect prediction is
MOVES = [partial(move, dims=[axis]) for axis in (-2, -1) for move in (torch.flip, partial(torch.roll, shifts=3))]


@pytest.mark.parametrize("mode", ["training", "validation"])
def test_the_loss_prefers_the_ground_truth_and_heeds_the_weights(mode, world: World):
    """A loss with the wrong sign, without the target or `batch["weight"]`, or of some of the samples only."""
    outputs, given, module = world.prepared.outputs, world.batch(), Training(world).module
    first = module.train(mode == "training").network(given)

    def loss(wrong=(), move=None, **batch) -> float:
        """Of the ground truth as prediction, of the samples in `wrong` the opposite, of maps moved."""
        predicted = dict(first)
        for output in outputs:
            target, exclusive = given[output.target].clone(), output.meaning.exclusive
            if not output.meaning.probabilities:
                for sample in wrong:
                    target[sample] += 3
                predicted[output.key] = target.nan_to_num()
                continue
            if output.meaning.kind == "maps":
                target[target == world.config["data"]["ignore_index"]] = 0
                target = torch.nn.functional.one_hot(target, len(output.columns)).movedim(-1, 1).float()
                target = target if move is None else move(target)
            for sample in wrong:
                target[sample] = target[sample].roll(1, 0) if exclusive else 1 - target[sample]
            target = target.clamp(SURE, 1 - SURE)
            predicted[output.key] = target.log() if exclusive else target.logit()
        return float(module.losses(predicted, given | batch)["loss"].detach())

    for sample in range(BATCH):
        assert loss([sample]) > loss(), f"sample {sample} may be predicted wrong"
    if any(output.meaning.kind == "maps" for output in outputs):
        assert all(loss(move=move) > loss() for move in MOVES), "a moved map is no worse"
    module = Training(world).module.train(mode == "training")  # `losses` may remember samples
    half = torch.arange(BATCH) < BATCH // 2
    wrong = half.nonzero().flatten().tolist()
    try:
        assert loss(wrong, weight=torch.where(half, 1.9, 0.1)) > loss(wrong, weight=torch.where(half, 0.1, 1.9))
    except Refusal:  # a loss of the whole batch, such as Dice, takes equal weights alone
        assert loss(wrong, weight=torch.full([BATCH], 2.0)) > 1.2 * loss(wrong, weight=torch.ones(BATCH))


@pytest.fixture(scope="module")
def learnt(world: World):
    """A module that was trained on one batch, its spec, and the losses of the steps."""
    training, batch, losses = Training(world), world.batch(), []
    module = training.module.train()
    optimizer = torch.optim.Adam(module.network.parameters(), lr=2e-3)
    while len(losses) < 100 and (len(losses) < 31 or max(losses[-5:]) > 0.2 * losses[0]):
        result = module.training_step(dict(batch), len(losses))
        loss = result["loss"] if isinstance(result, dict) else result
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        for _ in range(30):  # the statistics of BatchNorm catch up
            module.network(batch)
    return module.eval(), training.spec, losses


def test_one_batch_is_learnt(world: World, learnt):
    """A `detach` or `no_grad` too many, outputs that are activated twice, or a forward that differs in eval mode, such
    as views that are turned back wrongly."""
    module, _, losses = learnt
    assert np.median(losses[-5:]) < 0.4 * losses[0], "the loss does not fall"
    with torch.no_grad():
        evaluated = module.losses(module.network(world.batch()), world.batch())["loss"]
    assert evaluated < 2 * losses[-1] + 0.1 * losses[0], "what is learnt in training mode is not there in eval mode"


def test_a_saved_model_predicts_each_sample_as_the_trained_one_does(world: World, learnt, tmp_path):
    """Something learnt that is neither parameter nor buffer, or layers in a list in place of a `ModuleList`: they are
    not saved. BatchNorm or dropout in training mode, or a mean over the batch, in `forward`."""
    module, spec, _ = learnt
    save_model(tmp_path / "model", module.network, spec)
    keep_code(world.code, tmp_path)
    batch, saved = world.batch(), load_model(tmp_path / "model").network
    with torch.no_grad():
        trained = activate(module.network(batch), world.prepared.outputs)
        for sample in range(BATCH):
            alone = activate(saved({n: v[sample : sample + 1] for n, v in batch.items()}), world.prepared.outputs)
            for name, values in trained.items():
                torch.testing.assert_close(alone[name], values[sample : sample + 1], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def trained(world: World) -> Training:
    return Training(world).run()


def moved(before, after, names) -> list[str]:
    return [name for name in names if not torch.equal(before[name], after[name])]


def test_phases_train_what_they_say_and_the_ema_follows(trained: Training):
    """`on_train_epoch_start` without `super()`, a `train()` that thaws what a phase has frozen, or a module that trains
    another network than `self.network`."""
    net = trained.module.network.net
    head = {id(tensor) for module in net.head() for tensor in module.state_dict(keep_vars=True).values()}
    body = [name for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) not in head]
    statistics = [name for name in body if "running_" in name]
    start, head_only, frozen, end = trained.states
    assert not moved(start, head_only, body), "a phase that trains the head moves more"
    assert not moved(head_only, frozen, statistics), "freeze_bn does not freeze"
    assert moved(frozen, end, statistics) == statistics, "BatchNorm never learns its statistics"
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    still = sizes.keys() - moved(start, end, sizes)
    share = sum(sizes[name] for name in still) / sum(sizes.values())
    assert share < 0.1, f"{share:.0%} of the network is never trained: {', '.join(sorted(still)[:5])}"
    average = trained.ema.network.net.state_dict()
    assert moved(start, average, sizes) and moved(end, average, sizes), "the EMA is the network as it began or ended"


def test_a_training_repeats(world: World, trained: Training):
    """A random generator without a seed, or `on_train_batch_start` without `super()`."""
    again, draws = Training(world), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        again.module.on_train_batch_start({}, 0)
        draws.append((float(torch.rand(())), np.random.random()))
    assert draws[0] == draws[1], "the random numbers of a step depend on what came before"
    assert not moved(trained.states[-1], again.run().states[-1], again.states[-1])
