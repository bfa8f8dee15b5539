"""The other ways to train in the arena: each measures its step, then trains as long as its CPU seconds allow.

    python rivals.py <rival> <set folder> --weights FILE --seconds 240 --seed 0 --out evidence.npz

probe   logistic regression (ridge for numbers) on frozen features
timm    timm's loader, optimizer and scheduler, with the augmentation that its training script has by default, AdamW
        3e-4, label smoothing 0.1
loop    what one writes in an evening: AdamW 1e-3 on one cycle, flips, brightness
smp     masks: the CamVid example of segmentation-models-pytorch: Dice loss, Adam 2e-4, cosine annealing
fastai  `fine_tune` of a vision learner, which its documentation begins with (in an environment of its own)

One process and no workers, so that `time.process_time` is all that a rival uses.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from evidence import World, save
from torch import Tensor, nn

NETWORK = "tf_efficientnet_lite0"
BATCH = {"segmentation": 8}
MEAN = STD = 127.5  # of these weights
FEWEST, FITTING = 200, 0.004  # rows that a probe takes at least; seconds to fit it, for a row
RESERVE = 0.9  # of the seconds; the rest is for predicting and what was not measured


class Clock:
    """CPU seconds of this process since its start."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @property
    def left(self) -> float:
        return RESERVE * self.seconds - time.process_time()


def tensor(images: list[np.ndarray]) -> Tensor:
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() - MEAN) / STD


def augment(
    image: np.ndarray, mask: np.ndarray | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Horizontal flip; brightness within a fifth."""
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], None if mask is None else mask[:, ::-1]
    return np.clip(image * rng.uniform(0.8, 1.2), 0, 255).astype(np.uint8), mask


def batches(world: World, rng: np.random.Generator, augmented: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of an epoch of training rows, without a last incomplete one."""
    order, size = rng.permutation(world.trained), BATCH.get(world.task, 32)
    for start in range(0, len(order) - size + 1, size):
        images, targets = [], []
        for row in order[start : start + size]:
            image, mask = world.image(row), world.mask(row, world.size)
            image, mask = augment(image, mask, rng) if augmented else (image, mask)
            images.append(image)
            targets.append(world.target[row] if mask is None else mask.astype(np.int64))
        yield tensor(images), torch.from_numpy(np.stack(targets))


def build(world: World, weights: Path) -> nn.Module:
    """The network with the weights that all rivals share."""
    import segmentation_models_pytorch as smp
    import timm

    overlay = {"file": str(weights)}
    if world.task == "segmentation":
        return smp.Unet(f"tu-{NETWORK}", encoder_weights=True, classes=world.columns, pretrained_cfg_overlay=overlay)
    return timm.create_model(NETWORK, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=world.columns)


def loss_of(world: World, smoothing: float = 0.0) -> nn.Module:
    losses: dict[str, Callable[[], nn.Module]] = {
        "multilabel": nn.BCEWithLogitsLoss,
        "regression": nn.MSELoss,
        "multiclass": lambda: nn.CrossEntropyLoss(label_smoothing=smoothing),
        "segmentation": lambda: nn.CrossEntropyLoss(ignore_index=world.ignore),
    }
    return losses[world.task]()


def fit(
    net: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    schedule: Callable[[int], Callable[[int], None]],
    clock: Clock,
    predict: float,
) -> int:
    """Train as many steps as fit, the last epoch in part; return their number.

    Args:
        schedule: from the number of steps to what sets the learning rate at each.
        predict: CPU seconds that predicting takes, in training steps.
    """
    start = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    passed = [time.process_time()]
    for number, (image, target) in enumerate(epoch()):  # measured, then undone
        loss(net(image), target).backward()
        optimizer.zero_grad()
        passed.append(time.process_time())
        if number == 7:
            break
    step = float(np.median(np.diff(passed)[-5:]))  # with reading; the first ones are slower
    net.load_state_dict(start)
    steps = max(1, int(clock.left / step - predict))
    adjust, done = schedule(steps), 0
    while done < steps:
        for image, target in epoch():
            adjust(done)
            loss(net(image), target).backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                break
    return steps


@torch.no_grad()
def predict(world: World, forward: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
    """Raw outputs of the held-out rows."""
    found = []
    for row in world.held:
        found.append(forward(tensor([world.image(row)]))[0].numpy())
    return found


def of_steps(world: World) -> float:
    """Predicting a third of the cost of training on as many rows, in steps."""
    return len(world.held) / BATCH.get(world.task, 32) / 3


def loop(world: World, weights: Path, clock: Clock, seed: int) -> tuple[list[np.ndarray], int]:
    net, rng = build(world, weights), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)

    def one_cycle(steps: int) -> Callable[[int], None]:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1)
        return lambda done: scheduler.step() if done else None

    steps = fit(net, loss_of(world), optimizer, lambda: batches(world, rng), one_cycle, clock, of_steps(world))
    return predict(world, net.eval()), steps


def smp_example(world: World, weights: Path, clock: Clock, seed: int) -> tuple[list[np.ndarray], int]:
    import segmentation_models_pytorch as smp

    net, rng = build(world, weights), np.random.default_rng(seed)
    optimizer = torch.optim.Adam(net.parameters(), 2e-4)
    loss = smp.losses.DiceLoss(smp.losses.MULTICLASS_MODE, from_logits=True, ignore_index=world.ignore)

    def annealing(steps: int) -> Callable[[int], None]:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=1e-5)
        return lambda done: scheduler.step() if done else None

    steps = fit(net, loss, optimizer, lambda: batches(world, rng), annealing, clock, of_steps(world))
    return predict(world, net.eval()), steps


class Pictures(torch.utils.data.Dataset):
    """Training rows as timm's loader takes them: it sets `transform`."""

    transform: Any = None

    def __init__(self, world: World, rows: np.ndarray) -> None:
        self.world, self.rows = world, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        from PIL import Image

        row = self.rows[number]
        image = self.transform(Image.fromarray(self.world.image(row)))
        target = self.world.target[row]
        return image, int(target) if self.world.task == "multiclass" else torch.from_numpy(target)


def timm_recipe(world: World, weights: Path, clock: Clock, seed: int) -> tuple[list[np.ndarray], int]:
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    net, half = build(world, weights), (0.5, 0.5, 0.5)
    loader = create_loader(
        Pictures(world, world.trained),
        (3, *world.size),
        32,
        is_training=True,
        mean=half,
        std=half,
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    optimizer = create_optimizer_v2(net, opt="adamw", lr=3e-4, weight_decay=0.05)

    def cosine(steps: int) -> Callable[[int], None]:
        epochs = max(1, round(steps / len(loader)))
        scheduler, _ = create_scheduler_v2(
            optimizer,
            "cosine",
            num_epochs=epochs,
            warmup_epochs=min(1, epochs // 4),
            step_on_epochs=False,
            updates_per_epoch=max(1, steps // epochs),
        )
        return lambda done: scheduler.step_update(done)

    loss = loss_of(world, smoothing=0.1)
    steps = fit(net, loss, optimizer, lambda: iter(loader), cosine, clock, of_steps(world))
    return predict(world, net.eval()), steps


def probe(world: World, weights: Path, clock: Clock, seed: int) -> tuple[list[np.ndarray], int]:
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    net = build(world, weights).eval()
    net.reset_classifier(0)

    @torch.no_grad()
    def extract(row: int) -> np.ndarray:
        return net(tensor([world.image(row)]))[0].numpy()

    held = np.stack([extract(row) for row in world.held])
    rows, x = np.random.default_rng(seed).permutation(world.trained), list[np.ndarray]()
    for row in rows:  # as many as fit
        if len(x) > FEWEST and clock.left < FITTING * len(x):
            break
        x.append(extract(row))
    y = world.target[rows[: len(x)]]
    if world.task == "regression":
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(1, 5, 9))).fit(x, y[:, 0])
        return list(model.predict(held)[:, None]), 0
    logistic = LogisticRegression(C=0.01, max_iter=300)
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(logistic) if y.ndim > 1 else logistic).fit(x, y)
    return list(np.log(np.clip(model.predict_proba(held), 1e-6, 1 - 1e-6))), 0


def fastai_learner(world: World, weights: Path, clock: Clock, seed: int) -> tuple[list[np.ndarray], int]:
    from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
    from fastai.vision import all as fv
    from safetensors.torch import load_file

    frame = world.frame.assign(
        image=[str(world.root / name) for name in world.frame["image"]], valid=world.frame["fold"] == 0
    )
    targets = {"multilabel": fv.MultiCategoryBlock, "multiclass": fv.CategoryBlock, "regression": fv.RegressionBlock}
    read: Any = fv.ColReader(world.column, label_delim=" " if world.task == "multilabel" else None)
    block = fv.DataBlock(
        blocks=(fv.ImageBlock, targets[world.task]()),
        get_x=fv.ColReader("image"),
        get_y=read,
        splitter=fv.ColSplitter("valid"),
        item_tfms=fv.Resize(world.size, method="squish"),
        batch_tfms=[*fv.aug_transforms(), fv.Normalize.from_stats([0.5] * 3, [0.5] * 3)],
    )
    fv.set_seed(seed)
    dls = block.dataloaders(frame, bs=32, num_workers=0, device=torch.device("cpu"))
    losses = {"multilabel": BCEWithLogitsLossFlat, "multiclass": CrossEntropyLossFlat, "regression": MSELossFlat}
    learner = fv.vision_learner(
        dls, NETWORK, pretrained=False, normalize=False, n_out=world.columns, loss_func=losses[world.task]()
    )
    learner.model[0].model.load_state_dict(load_file(weights), strict=False)
    learner.splitter, learner.pretrained = fv.default_split, True
    learner.unfreeze()  # to measure what a step of most epochs takes; fine_tune freezes by itself
    passed = [time.process_time()]
    for number, (image, target) in enumerate(dls.train):
        learner.loss_func(learner.model(image), target).backward()
        passed.append(time.process_time())
        if number == 3:
            break
    learner.model.zero_grad()
    step = float(np.mean(np.diff(passed)[1:]))  # the first one apart, as elsewhere
    learner._do_epoch_validate = lambda *_: None  # which would take seconds from training
    steps = int(clock.left / step - of_steps(world))
    epochs = max(1, steps // len(dls.train) - 1)  # and one with a frozen body
    if steps < 2 * len(dls.train):  # two epochs on a part of the rows
        drawn = np.random.default_rng(seed).permutation(world.trained)[: steps // 2 * 32]
        learner.dls = dls = block.dataloaders(
            frame.iloc[[*drawn, *world.held]], bs=32, num_workers=0, device=torch.device("cpu")
        )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        del learner._do_epoch_validate
        raw, _ = learner.get_preds(dl=dls.valid, act=torch.nn.Identity())
    names = getattr(dls.vocab, "items", dls.vocab) if world.task != "regression" else world.names
    order = [list(names).index(name) for name in world.names]
    return list(raw.numpy()[:, order]), epochs * len(dls.train)


RIVALS = {"probe": probe, "timm": timm_recipe, "loop": loop, "smp": smp_example, "fastai": fastai_learner}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(options.seed)
    world = World(options.folder)
    mean, std = world.standardize()
    raw, steps = RIVALS[options.rival](world, options.weights, Clock(options.seconds), options.seed)
    save(options.out, world, [each * std + mean for each in raw], steps)


if __name__ == "__main__":
    main()
