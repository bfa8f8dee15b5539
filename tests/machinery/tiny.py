"""Small data sets and runs that the tests share. Everything is made in temporary folders and trained on the CPU."""

import json
from collections.abc import Sequence
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd

from foldwise.code.alias import open_code
from foldwise.code.imports import collect_code
from foldwise.code.runs import all_targets
from foldwise.code.source import Code, trust
from foldwise.config import compose_config, followers, resolve_config
from foldwise.data.prepare import Prepared, prepare
from foldwise.tasks import find_task
from foldwise.training.identity import hash_contents, make_identity
from foldwise.training.plan import choose_parts
from foldwise.training.results import finish_fold, finish_run, merge_gold, merge_oof, score_predictions, write_scores
from foldwise.training.run_folder import create_or_resume_run, resumed_config

if TYPE_CHECKING:
    from foldwise.inference.spec import ModelSpec
    from foldwise.inference.weights import Model
    from foldwise.models.normalized import Normalized

ROOT = Path(__file__).parents[1]
CLASSES = ["blue", "green", "red"]


def write_data(root: Path, rows: int = 24, shuffled: bool = False) -> Path:
    """A data set of 32 x 32 pictures whose class is a colour on noise; the table is `train.csv` in `root`.

    Args:
        shuffled: the rows are in another order than their ids and classes.
    """
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    table = []
    for row in range(rows):
        image = rng.integers(0, 80, (32, 32, 3), np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        label = row % 3
        top, left = rng.integers(0, 16, 2)
        image[top : top + 14, left : left + 14, label] = 230  # OpenCV writes BGR: channel 0 is blue
        mask[top : top + 14, left : left + 14] = label + 1
        cv2.imwrite(str(root / f"images/{row}.png"), image)
        cv2.imwrite(str(root / f"masks/{row}.png"), mask)
        table.append(
            {
                "id": f"row{row}",
                "image": f"images/{row}.png",
                "label": CLASSES[label],
                "labels": " ".join(CLASSES[: row % 4]),
                "mask": f"masks/{row}.png",
                "value": label * 1000 + top + row / 64,
            }
        )
    frame = pd.DataFrame(table)
    if shuffled:
        frame = frame.iloc[np.random.default_rng(1).permutation(rows)]
    frame.to_csv(root / "train.csv", index=False)
    frame[["id", "image"]].to_csv(root / "test.csv", index=False)
    return root


def tiny_config(root: Path, task: str, *overrides: str) -> dict[str, Any]:
    """The resolved configuration of a training of a second on the data of `write_data`."""
    return json.loads(_composed(task, overrides).replace('"/world', f'"{root}'))


@cache
def _composed(task: str, overrides: tuple[str, ...]) -> str:
    """Composed once for all data sets, since composing takes longer than much of what is tested."""
    classes = "[background,blue,green,red]" if task == "segmentation" else "null"
    config = compose_config(
        [
            f"task={task}",
            f"metric={find_task(task).metric}",
            "data=competition",
            "data.root=/world",
            "data.table=/world/train.csv",
            "data.test_table=/world/test.csv",
            "data.prepared=/world/prepared",
            f"data.classes={classes}",
            "data.image_size=32",
            "data.folds=2",
            "data.workers=0",
            "batch_size=4",
            "epochs=2",
            "trainer=cpu",
            "logger=none",
            "experiment_name=test",
            "preflight=false",
            *overrides,
        ]
    )
    return json.dumps(resolve_config(config))


def prepare_tiny(config: dict[str, Any]) -> Prepared:
    """Prepare the data of a tiny config."""
    return prepare(config, code_of(config).alias, make_folds=True, progress=False)


def code_of(config: dict[str, Any]) -> Code:
    """The code of the repository's solution/ that a config reaches."""
    code = collect_code([target for target in all_targets(config) if target.startswith("solution.")], ROOT)
    open_code(code)
    return code


def open_tiny(config: dict[str, Any], folder: Path, prepared: Prepared | None = None, world: int = 1) -> Path:
    """The folder of the run that `train.py` would open, in `folder`."""
    code = code_of(config)
    identity = make_identity(config, world, hash_contents(prepared or prepare_tiny(config), config), code)
    run = create_or_resume_run(config, identity, {"accelerator": "cpu", "devices": ["cpu"], "cpus": 1}, folder, code)
    trust(code.digest)
    return run


def new_network(config: dict[str, Any], fold: int = 0) -> "Normalized":
    """The network of a fold with the weights that its training begins with."""
    import pytorch_lightning as pl

    from foldwise.data.holdout import Holdout
    from foldwise.training.build import build_network, build_spec
    from foldwise.training.fold import initial_seed

    prepared = prepare_tiny(config)
    pl.seed_everything(initial_seed(config["seed"], Holdout((fold,))), verbose=False)
    return build_network(config, prepared, build_spec(config, prepared, {}))


MEANS, STDS = [0.31, 0.42, 0.53, 0.37], [0.2, 0.24, 0.28, 0.22]  # of channels, no two alike
NETWORKS: dict[str, dict[str, Any]] = {
    "multiclass": {"library": "timm", "name": "test_resnet"},
    "multilabel": {"library": "timm", "name": "test_resnet"},
    "regression": {"library": "timm", "name": "test_resnet"},
    "segmentation": {
        "library": "smp",
        "name": "Unet",
        "encoder": "tu-test_resnet",
        "options": {"decoder_channels": [8, 8, 8, 8, 8]},
    },
}


def make_spec(task: str, classes: Sequence[str], channels: int = 3, **changes: Any) -> "ModelSpec":
    """The spec of a model for images of 32 x 32 that foldwise's own classes read and build."""
    from foldwise.inference.spec import ModelSpec
    from foldwise.tasks.outputs import Output

    network = {**NETWORKS[task], "channels": {"image": channels}, "outputs": {"logits": len(classes)}}
    values: dict[str, Any] = {
        "network": {"_target_": "foldwise.models.networks:ImageNetwork", **network},
        "samples": {"_target_": "foldwise.data.samples:Samples", "mode": "stored"},
        "state": {},
        "outputs": (Output.main(task, classes),),
        "image_size": (32, 32),
        "fit": "stretch",
        "images": {"image": {"scale": 230.0, "mean": MEANS[:channels], "std": STDS[:channels]}},
    }
    return ModelSpec(**values | changes)


def random_model(spec: "ModelSpec", seed: int) -> "Model":
    """A model of random weights, its head too: a new head is zero, and would give the same for every image."""
    import torch

    from foldwise.code.build import make
    from foldwise.inference.weights import Model, normalize

    torch.manual_seed(seed)
    net = make(spec.network)
    for module in net.head():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    return Model(normalize(net, spec).eval(), make(spec.samples), spec)


def save_random_model(folder: Path, task: str, classes: Sequence[str], seed: int) -> None:
    """A model of random weights, as training saves it, for images of 32 x 32."""
    from foldwise.inference.weights import save_model

    model = random_model(make_spec(task, classes), seed)
    save_model(folder, model.network, model.spec)


def train_folds(config: dict[str, Any], folder: Path, world: int = 1) -> Path:
    """Train the folds in this process instead of one a fold, without what follows the last one; the run's folder.

    Args:
        world: above 1, so many forks of this process train a fold together.
    """
    from foldwise.processes.group import Rank, run_processes
    from foldwise.training.fold import train_fold

    prepared = prepare_tiny(config)
    run = open_tiny(config, folder, prepared, world)
    for part in choose_parts(config["fold"], followers(config), prepared):
        if not (run / part.name / "metrics.json").exists():
            if world == 1:
                train_fold(run, part, config, prepared, Rank())
            else:
                assert run_processes(get_context("fork"), train_fold, (run, part, config, prepared), world) == 0
            finish_fold(run, part, config, prepared, world)
    return run


def train_here(config: dict[str, Any], folder: Path) -> Path:
    """All that `train.py` does, in this process: the folds, then score and report, which take longer here."""
    if config["run"] is not None:
        config = resumed_config(config)
    run = train_folds(config, folder)
    finish_run(run, config, prepare_tiny(config))
    return run


def train_scored(config: dict[str, Any], folder: Path) -> Path:
    """As `train_here`, without the report, whose figures take longer than the training."""
    run = train_folds(config, folder)
    prepared = prepare_tiny(config)
    scores = score_predictions([merge_oof(run, prepared)], config, prepared)
    write_scores(run, config, scores, merge_gold(run, config, prepared))
    return run
