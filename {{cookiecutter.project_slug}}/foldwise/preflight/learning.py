"""Checks of the losses, the network, the optimizer and the phases.

A check yields a sentence with the usual cause for each failure.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from foldwise.code.runs import keep_code
from foldwise.data.problems import some
from foldwise.errors import Refusal
from foldwise.inference.weights import load_model, save_model
from foldwise.models.module import TrainingModule
from foldwise.models.networks import loaded_share
from foldwise.models.normalized import set_trainable
from foldwise.preflight.short import ShortTraining
from foldwise.preflight.subject import Subject, ideal_outputs, kept_buffers
from foldwise.tasks.outputs import Output, activate
from foldwise.training.dry_run import ONE_VALUE

SHIFTS = [partial(move, dims=[axis]) for axis in (-2, -1) for move in (torch.flip, partial(torch.roll, shifts=3))]
WORSE = 3.0  # times the loss of a constant prediction: more than initial weights cost
RISEN = 10.0  # times it: more than the steps of a small batch cost
LARGEST = 30.0  # root mean square of what the first layer gets; normalised images have about 1
DEPENDENT = (
    "predictions depend on the other images of the batch: a BatchNorm or dropout in training mode, or a mean over the "
    "batch, in `forward`"
)
SILENT = 0.1  # share of the trainable parameters that may have no gradient


def check_losses(subject: Subject) -> Iterator[str]:
    """The loss is lowest for the ground truth of each sample, and uses the weights."""
    if all(output.meaning.kind != "vectors" for output in subject.outputs):
        for mode in ("training", "validation"):
            yield from (f"in {mode}, {problem}" for problem in _loss_problems(subject, mode == "training"))


def _loss_problems(subject: Subject, training: bool) -> Iterator[str]:
    batch, module = subject.batch, subject.module().train(training)
    with torch.no_grad():
        raw = module.network(batch)

    def loss(
        wrong: Sequence[int] = (), move: Callable[[Tensor], Tensor] | None = None, plus: float = 0.0, **changes: Tensor
    ) -> float:
        ideal = {o.key: _ideal(o, batch[o.target], subject, wrong, move) + plus for o in subject.outputs}
        with torch.no_grad(), kept_buffers(module):
            return float(module.losses(raw | ideal, batch | changes)["loss"])

    truth, count, main = loss(), len(subject.items), subject.outputs[0]
    target = batch[main.target]
    unknown = target.isnan() if target.is_floating_point() else target == subject.config["data"]["ignore_index"]
    known = [sample for sample in range(count) if not unknown[sample].all()]
    ignored = [sample for sample in known if not loss([sample]) > truth]
    if main.meaning.probabilities and not subject.outputs[1:]:
        same = math.isclose(loss(plus=3.0), truth, rel_tol=1e-3, abs_tol=1e-5)
        if same != main.meaning.exclusive:
            is_, other = ("softmax", "sigmoid") if main.meaning.exclusive else ("sigmoid", "softmax")
            yield (
                f"the loss is that of a {other}, and the task {main.task} predicts by a {is_}: use the loss of the "
                "configuration, `self.loss`, or another task"
            )
            return
    if ignored:
        yield (
            f"the loss is no higher if sample {', '.join(map(str, ignored))} of {count} is predicted wrong: a wrong "
            "sign, targets of another sample (a roll or shuffle), or a part of the batch only"
        )
        return
    maps = any(output.meaning.kind == "maps" for output in subject.outputs)
    if maps and not all(loss(move=move) > truth for move in SHIFTS):
        yield "the loss is no higher if the masks are predicted flipped or moved"
    half = torch.arange(count, device=subject.device) < count // 2
    wrong = list(range(count // 2))
    heavy, light = (torch.where(half, *pair) for pair in ((1.9, 0.1), (0.1, 1.9)))
    try:
        weighted = loss(wrong, weight=heavy) > loss(wrong, weight=light)
    except Refusal:  # a loss of the whole batch, such as Dice, takes equal weights alone
        weighted = loss(wrong, weight=torch.full_like(heavy, 2.0)) > 1.2 * loss(wrong, weight=torch.ones_like(heavy))
    if not weighted:
        yield 'the loss ignores batch["weight"]: pass it on, or multiply the losses of the samples by it'


def _ideal(
    output: Output, target: Tensor, subject: Subject, wrong: Sequence[int], move: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Raw outputs that predict the target, with the opposite for the samples in `wrong`; maps moved."""
    task, ideal = output.meaning, target.clone()
    if not task.probabilities:
        for sample in wrong:
            ideal[sample] += 3
        return ideal.nan_to_num()
    ideal = ideal_outputs(output, target, subject.config["data"]["ignore_index"])
    ideal = ideal if move is None or task.kind != "maps" else move(ideal)
    for sample in wrong:
        ideal[sample] = ideal[sample].roll(1, 0) if task.exclusive else -ideal[sample]
    return ideal


def check_start(subject: Subject) -> Iterator[str]:
    """The inputs are scaled, and the first loss is about that of a constant prediction."""
    sizes = list[float]()

    def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(float(inputs[0].float().square().mean().sqrt()))

    module = subject.module()
    for layer in module.network.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            layer.register_forward_pre_hook(measure)
    start, constant = first_loss(subject, module)
    if sizes and not sizes[0] < LARGEST:
        yield (
            f"the first layer gets values of size {sizes[0]:.3g}, where 1 is usual: the images are not divided by 255 "
            "or by data.scale, or not normalised by mean and std"
        )
    compared = f"the first loss is {start:.3g}, and that of a constant prediction {constant or 0:.3g}"
    if not math.isfinite(start):
        yield f"the first loss is {start}: a logarithm or a division by 0 in `losses`, or NaN in the inputs"
    elif constant is not None and start > WORSE * constant:
        yield (
            f"{compared}: the inputs are not normalised, the head starts with large weights, or the loss belongs to "
            "another task"
        )
    elif constant is not None and start < constant / WORSE and not subject.config["init"]:
        yield f"{compared}: an input gives the target away, or `losses` does not see what the network predicts"
    weights = subject.config["model"]["weights"]
    if weights and not subject.prepared.features:
        share = loaded_share(subject.training.network.net, Path(weights), subject.training.network.net.head())
        if share < 0.5:
            yield (
                f"{share:.0%} of the network's parameters are those of {weights}: the constructor of your network must "
                "pass `weights` on, as to build_encoder"
            )


def first_loss(subject: Subject, module: TrainingModule | None = None) -> tuple[float, float | None]:
    """The loss of the untrained network, and of equal probabilities or the mean of the numbers; None for vectors."""
    module, batch = module or subject.module(), subject.batch
    with torch.no_grad():
        outputs = module.network(batch)
        start = float(module.losses(outputs, batch)["loss"])
        if subject.outputs[0].meaning.kind == "vectors":
            return start, None
        zeros = {output.key: torch.zeros_like(outputs[output.key]) for output in subject.outputs}
        return start, float(module.losses(outputs | zeros, batch)["loss"])


def check_learnt(subject: Subject) -> Iterator[str]:
    """One batch can be learnt, also in eval mode, and the outputs depend on the inputs."""
    (module, losses), batch = subject.learnt, subject.batch
    if not np.isfinite(losses).all():
        yield f"the loss of a batch becomes {losses[-1]} when it is learnt: a logarithm or a root of 0 in `losses`?"
        return
    with torch.no_grad():
        raw = module.network(batch)
        evaluated, predicted = float(module.losses(raw, batch)["loss"]), activate(raw, subject.outputs)
    if np.median(losses[-3:]) >= subject.limit * losses[0] and losses[0] > 0:
        yield (
            f"one batch is not learnt: its loss goes from {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses)} steps. "
            "The outputs are activated twice (a softmax or sigmoid before the loss), a `detach` or `no_grad` cuts the "
            "gradient, or the network ends in a ReLU"
        )
    elif not evaluated < 2 * losses[-1] + 0.2 * losses[0]:
        yield (
            f"what is learnt in training mode is lost in eval mode: the loss of a batch is {losses[-1]:.3g}, then "
            f"{evaluated:.3g}. `forward` does something else in eval mode"
        )
    for name, values in predicted.items():
        if len(values) > 1 and float((values - values[:1]).abs().max()) <= 1e-6 * float(values.abs().max()):
            yield (
                f"the output {name or 'logits'} is the same for every input: a dead ReLU, weights that stay 0, or an "
                "input that `forward` does not use"
            )


def check_saved(subject: Subject) -> Iterator[str]:
    """A saved model predicts each sample by itself as the trained one does in a batch."""
    module, _ = subject.learnt
    outputs = subject.prepared.outputs
    with tempfile.TemporaryDirectory() as scratch:
        save_model(Path(scratch) / "model", module.network, subject.training.spec)
        keep_code(subject.code, Path(scratch))
        saved = load_model(Path(scratch) / "model").network.to(subject.device)
        batch, alone = subject.batch, []
        with torch.no_grad():
            before, after = activate(module.network(batch), outputs), activate(saved(batch), outputs)
            for row in range(len(subject.items)):
                single = {name: value[row : row + 1] for name, value in batch.items()}
                try:
                    alone.append(activate(saved(single), outputs))
                except ValueError as error:
                    if ONE_VALUE not in str(error):
                        raise
                    yield DEPENDENT
                    return
    for name, values in before.items():
        one_by_one = torch.cat([each[name] for each in alone])
        if not torch.allclose(after[name], one_by_one, rtol=1e-3, atol=1e-4):
            yield DEPENDENT
        elif not torch.allclose(values, one_by_one, rtol=1e-3, atol=1e-4):
            yield (
                "a saved model predicts differently from the trained one: what it learns is in a plain attribute or "
                "list; make it a parameter, a buffer or an nn.ModuleList"
            )


def check_phases(subject: Subject) -> Iterator[str]:
    """Each phase trains what it says, at a learning rate that is neither 0 nor too high."""
    try:
        short = ShortTraining(subject).run()
    except Refusal as error:
        yield str(error)
        return
    phases, network = short.module.schedule.phases, short.module.network
    parameters, lr = dict(network.named_parameters()), subject.config["optimizer"]["lr"]
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    reference = copy.deepcopy(subject.training.network)
    for number, phase in enumerate(phases):
        set_trainable(reference, phase.trainable, phase.freeze_bn)
        reference.train()
        trains = {name for name, parameter in reference.named_parameters() if parameter.requires_grad}
        live = {name for name, module in reference.named_modules() if module.training}
        before, after = short.states[number : number + 2]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        frozen = [
            name for name in moved if (name not in trains if name in sizes else name.rpartition(".")[0] not in live)
        ]
        if frozen:
            yield (
                f"phase {phase.name} (trainable={phase.trainable}) changes what it should freeze: "
                f"{some(sorted(frozen), 1)}. `on_train_epoch_start` without `super()`, or a `train()` of your network "
                "that thaws it"
            )
        silent = trains - short.learning[number]
        share = sum(sizes[name] for name in silent) / max(1, sum(sizes[name] for name in trains))
        unmoved = short.learning[number] & trains - moved
        missing = {name for name in unmoved if id(parameters[name]) not in short.optimized}
        if missing:
            yield (
                f"the optimizer does not have {some(sorted(missing), 1)}: `make_optimizer` or `configure_optimizers` "
                "must take all parameters of self.network"
            )
        elif len(unmoved) > len(short.learning[number]) / 2:
            yield (
                f"phase {phase.name}: {some(sorted(unmoved), 1)} do not change: the learning rate is too low "
                f"(optimizer.lr={lr:g} times phases.{phase.name}.lr and the scheduler's factor), or no step is made"
            )
        elif share > SILENT:
            yield (
                f"phase {phase.name}: {share:.0%} of what should train gets no gradient: {some(sorted(silent), 1)}. A "
                "`detach` or `no_grad`, layers that `forward` does not use, or `requires_grad_(False)`"
            )
    losses, highest, (_, constant) = short.losses, max(short.losses), first_loss(subject)
    if not np.isfinite(losses).all() or highest > RISEN * max(losses[0], constant or 0):
        yield (
            f"the loss rises from {losses[0]:.3g} to {highest:.3g} in {len(losses)} steps: the learning rate is too "
            f"high; try optimizer.lr={lr / 100:g}"
        )
