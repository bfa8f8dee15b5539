"""Trainings of half a second and what was seen in them, for the tests of what a setting changes."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from stopping import watched
from tiny import CLASSES, prepare_tiny, tiny_config, train_folds, write_data
from torch import Tensor
from torch.nn.functional import cross_entropy

from foldwise.data.folds import folds_hash
from foldwise.data.pseudo import provenance_path
from foldwise.files import write_json
from foldwise.inference.weights import Model, load_model
from foldwise.predictions.store import Predictions, iter_maps, read_predictions
from foldwise.training.ema import EMA

COUNTS = {"blue": 12, "green": 7, "red": 5}  # rows of each class, so that balancing them shows; 12 a fold
LEFT_OUT = 10  # rows without a label, as pseudo rows


def write_world(root: Path) -> Path:
    """24 rows in an order of their own, with all columns that a configuration may name."""
    frame = pd.read_csv(write_data(root, 60) / "train.csv", keep_default_na=False)
    rng = np.random.default_rng(5)
    chosen = pd.concat([frame[frame["label"] == label][:count] for label, count in COUNTS.items()])
    table = chosen.iloc[rng.permutation(len(chosen))].reset_index(drop=True)
    places = np.arange(len(table))
    table = table.assign(
        name=[f"other{row}" for row in places],
        picture=np.roll(table["image"], 1),
        answer=np.roll(table["label"], 2),
        weight=rng.integers(1, 9, len(table)) / 4,
        site=[f"site{row // 3}" for row in places],
        thing=[f"thing{row // 2}-{label}" for row, label in zip(places, table["label"], strict=True)],
        **{"x0": 4, "y0": 6, "x1": 20, "y1": 24, "left": 8},
        part=(table.groupby("label").cumcount() + (table["label"] == "red")) % 2,
        sure=(places % 6 == 0).astype(int),
    )
    table = table.assign(whole_mask=table["mask"], tags=table["labels"].str.replace(" ", "|"))
    for name, ignored in (("mask", 255), ("mask7", 7)):  # a corner of another size in each is ignored
        table[name] = [f"{name}/{row}.png" for row in places]
        (root / name).mkdir()
        for row, (path, whole) in enumerate(zip(table[name], table["whole_mask"], strict=True)):
            mask = cv2.imread(str(root / whole), cv2.IMREAD_UNCHANGED)
            mask[: 9 + row % 3, : 12 + row % 5] = ignored
            cv2.imwrite(str(root / path), mask)
    table["soft"] = [f"soft/{row}.png" for row in places]
    (root / "soft").mkdir()
    codes: list[list[str]] = []
    for image, soft, whole in table[["image", "soft", "whole_mask"]].itertuples(index=False):
        cv2.imwrite(str(root / soft), cv2.imread(str(root / image))[:, :, 1])
        mask = cv2.imread(str(root / whole), cv2.IMREAD_UNCHANGED)
        codes.append([" ".join(f"{pixel + 1} 1" for pixel in np.flatnonzero(value == mask.T)) for value in range(4)])
    table = table.assign(**{f"code{value}": of_class for value, of_class in enumerate(zip(*codes, strict=True))})
    table.to_csv(root / "train.csv", index=False)
    rest = frame[~frame["id"].isin(table["id"])][:LEFT_OUT]
    values = rng.dirichlet([0.5] * len(CLASSES), (2, LEFT_OUT)).round(6)
    pseudo = [
        rest[["id", "image"]].assign(row=[f"{fold}/{id}" for id in rest["id"]], student=fold, weight=0.5)
        for fold in (0, 1)
    ]
    pseudo = [rows.assign(**dict(zip(CLASSES, soft.T, strict=True))) for rows, soft in zip(pseudo, values, strict=True)]
    pd.concat(pseudo).to_csv(root / "pseudo.csv", index=False)
    return root


class Step(NamedTuple):
    """An optimizer step of a training."""

    epoch: int
    lr: dict[str, float]  # by parameter
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]  # of the probed parameters and statistics, after the step
    moved: float  # the norm of the change of all parameters
    passes: list[dict[str, Any]]  # the batches that it is made of, with logits and loss


FIRST = "net.conv1.0.weight"
PROBES = (FIRST, "net.layer4.0.conv1.weight", "net.bn1.weight", "net.fc.weight", "net.fc.bias")


class Witness(pl.Callback):
    """What is seen from inside a training."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.passes: list[dict[str, Any]] = []
        self.seen: dict[str, Any] = {}
        self.held: tuple[Tensor, Tensor] | None = None
        self.val_loss: dict[str, list[float]] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        self.net, self.losses = module.network.net, module.losses
        self.start = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        module.losses = self._losses
        self.callbacks = {type(callback).__name__ for callback in trainer.callbacks}  # type: ignore[attr-defined]
        self.names = {id(parameter): name for name, parameter in self.net.named_parameters()}

    def _losses(self, outputs: Any, batch: Any) -> Any:
        found = self.losses(outputs, batch)
        if self.losses.__self__.training:
            self.passes.append({**batch, "logits": outputs["logits"].detach().clone(), "loss": found["loss"].detach()})
        return found

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        # read here, and reset by the tests that set them
        kernel = next(
            parameter for parameter in self.net.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1
        )
        self.seen = {
            "channels_last": kernel.stride()[1] == 1,
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "anomaly": torch.is_anomaly_enabled(),
        }

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.lr = {
            self.names[id(parameter)]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]
        }
        gradients = dict(self.net.named_parameters())
        self.gradients = {
            n: gradients[n].grad.clone() for n in self.probes() if getattr(gradients.get(n), "grad", None) is not None
        }
        self.before = {name: parameter.detach().clone() for name, parameter in self.net.named_parameters()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.steps):
            state = self.net.state_dict()
            change = [(parameter.detach() - self.before[n]).norm() for n, parameter in self.net.named_parameters()]
            probed = {name: state[name].clone() for name in (*self.probes(), *self.statistics())}
            moved = float(torch.stack(change).norm())
            self.steps.append(Step(trainer.current_epoch, self.lr, self.gradients, probed, moved, self.passes))
            self.passes = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        average = [callback.network for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]
        for name, network in zip(("last", "ema"), (module.network, *average), strict=False):
            if self.held is not None:
                training = network.training
                with torch.no_grad():
                    logits = network.eval()({"image": self.held[0]})["logits"]
                network.train(training)
                self.val_loss.setdefault(name, []).append(float(cross_entropy(logits, self.held[1])))

    def probes(self) -> list[str]:
        return [name for name in PROBES if name in self.start] or [name for name in self.start if "conv" in name][:3]

    def statistics(self) -> list[str]:
        return [name for name in self.start if name.endswith(("conv1.1.running_mean", "bn1.running_mean"))][:1]


class Trained:
    """A run of fold 0 with what was seen in it."""

    def __init__(self, root: Path, folder: Path, task: str, overrides: tuple[str, ...]) -> None:
        overrides = tuple(word.replace("WORLD", str(root)) for word in overrides)
        self.config = tiny_config(root, task, *DEFAULTS[task], *overrides)
        self.config["data"]["prepared"] = str(folder / "prepared")
        self.prepared = prepare_tiny(self.config | {"data": self.config["data"] | {"pseudo": None}})
        if self.config["data"]["pseudo"]:
            write_json(provenance_path(root / "pseudo.csv"), {"folds_hash": folds_hash(self.prepared.folds)})
        self.witness = Witness()
        if task == "multiclass" and self.config["data"]["mode"] == "stored":
            held = np.flatnonzero(self.prepared.fold_of_items == 0)
            images = [torch.from_numpy(self.stored(self.prepared.table.frame["image"][row])) for row in held]
            self.witness.held = torch.stack(images), torch.from_numpy(self.prepared.table.target[held])
        with watched(self.witness):
            self.run = train_folds(self.config, folder)
        self.fold = next(path for path in sorted(self.run.iterdir()) if (path / "metrics.json").exists())
        self.steps = self.witness.steps
        self.history = pd.read_csv(self.fold / "history.csv")
        self.spec = json.loads((self.fold / "model" / "model.json").read_text())
        self.saved = load_file(self.fold / "model" / "model.safetensors")

    @property
    def ids(self) -> list[list[str]]:
        """The items of each step."""
        ids = [*self.prepared.table.ids]
        return [
            [ids[row] if row < len(ids) else "pseudo" for p in step.passes for row in p["row"]] for step in self.steps
        ]

    @property
    def score(self) -> float:
        return json.loads((self.fold / "metrics.json").read_text())["score"]

    @property
    def lr(self) -> list[float]:
        """Of the head at each step."""
        return [max(step.lr.values()) for step in self.steps]

    def stored(self, path: str) -> np.ndarray:
        """A picture (3, H, W) uint8."""
        return np.ascontiguousarray(cv2.imread(str(self.prepared.table.root / path))[:, :, ::-1].transpose(2, 0, 1))

    @property
    def model(self) -> Model:
        return load_model(self.fold / "model")

    @property
    def oof(self) -> Predictions:
        return read_predictions(next(self.fold.glob("oof-*")))

    def targets(self) -> np.ndarray:
        """(N, C) of the out-of-fold predictions' rows."""
        return self.prepared.table.target[[self.prepared.table.ids.index(id) for id in self.oof.frame["id"]]]

    def images(self) -> Tensor:
        """(N, 3, 32, 32) uint8 of those rows."""
        paths = dict(zip(self.prepared.table.ids, self.prepared.table.frame["image"], strict=True))
        return torch.stack([torch.from_numpy(self.stored(paths[id])) for id in self.oof.frame["id"]])

    def answers(self) -> np.ndarray:
        """(N, C) predicted."""
        return self.oof.frame[list(self.oof.columns)].to_numpy()

    def maps(self) -> list[Any]:
        """Those of masks."""
        return list(iter_maps(self.oof))


# Tiny data, with the columns and choices that make settings visible.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "retrieval": ("fold=0", "augmentation=none", "data.columns.fold=part"),
    "multiclass": ("fold=0", "augmentation=none", "data.columns.fold=part"),
    "multilabel": ("fold=0", "augmentation=none", "data.columns.fold=part"),
    "regression": ("fold=0", "augmentation=none", "data.columns.fold=part"),
    "segmentation": (
        "fold=0",
        "augmentation=none",
        "data.columns.fold=part",
        "loss=cross_entropy",
        "data.classes=[background,blue,green,red]",
    ),
}
