"""Labelled and unlabelled pictures, and runs that have predicted the latter, for the tests of pseudo labels."""

import cv2
import numpy as np
import pandas as pd
from tiny import CLASSES, prepare_tiny, tiny_config, write_data

from foldwise.config import write_config
from foldwise.files import write_json
from foldwise.predictions.schema import Header
from foldwise.predictions.store import write_predictions
from foldwise.predictions.writers import PredictionWriter

LABELLED, UNLABELLED = range(16), range(16, 24)


def write_world(root, flipped=False):
    """16 labelled pictures in two given folds, 8 unlabelled ones; `flipped` gives fold 0 other labels throughout."""
    frame = pd.read_csv(write_data(root) / "train.csv", keep_default_na=False)
    train = frame.iloc[LABELLED].assign(part=[row % 2 for row in LABELLED], site=[f"s{row}" for row in LABELLED])
    train = train.assign(thing=[f"t{row % 6}" for row in LABELLED], number=LABELLED)  # things share label and fold
    held = train["part"] == 0
    if flipped:
        following = dict(zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True))
        train.loc[held, "label"] = train.loc[held, "label"].map(following)
        train.loc[held, "labels"] = [
            " ".join(name for name in CLASSES if name not in text.split()) for text in train.loc[held, "labels"]
        ]
        train.loc[held, "value"] = 5000 - train.loc[held, "value"]
        for name in train.loc[held, "mask"]:
            mask = cv2.imread(str(root / name), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(root / name), (mask + 1) % 4)
    train.to_csv(root / "train.csv", index=False)
    frame.iloc[UNLABELLED][["id", "image"]].to_csv(root / "test.csv", index=False)
    return root


def config_of(root, task, *overrides, pseudo=None):
    config = tiny_config(root, task, "data.columns.fold=part", *overrides)
    config["data"]["pseudo"] = pseudo and str(pseudo)
    return config


def make_run(root, name, probability, task="multiclass", overrides=(), header=None, rows=UNLABELLED):
    """A run as train.py and predict.py leave it, but for its models; `probability` is (2 folds, N, 3)."""
    folder, values = begin_run(root, name, task, overrides)
    member = {"snapshot": "last", "view": "identity"}
    frames = [
        pd.DataFrame(of_fold, columns=CLASSES).assign(id=[f"row{row}" for row in rows], fold=fold, **member)
        for fold, of_fold in enumerate(probability)
    ]
    test = Header(split="test", **values | (header or {}))
    write_predictions(folder / "predictions" / "test-none", pd.concat(frames), test)
    oof = pd.DataFrame(np.full((16, 3), 1 / 3), columns=CLASSES)
    oof = oof.assign(id=[f"row{row}" for row in LABELLED], fold=[row % 2 for row in LABELLED], **member)
    write_predictions(folder / "oof", oof, Header(split="oof", **values))
    return folder


def make_map_run(root, name, maps, overrides=()):
    """As `make_run`, of segmentation; `maps` is (2 folds, N, 4, H, W)."""
    folder, values = begin_run(root, name, "segmentation", overrides)
    with PredictionWriter(folder / "predictions" / "test-none", Header(split="test", **values)) as writer:
        for fold, of_fold in enumerate(maps):
            for row, probability in zip(UNLABELLED, of_fold, strict=True):
                writer.add(f"row{row}", fold, "last", "identity", probability)
    with PredictionWriter(folder / "oof", Header(split="oof", **values)) as writer:
        for row in LABELLED:
            writer.add(f"row{row}", row % 2, "last", "identity", np.full((4, 32, 32), 0.25))
    return folder


def begin_run(root, name, task, overrides):
    """The folder of a run with its configuration, and what the headers of its predictions say."""
    config = config_of(root, task, *overrides)
    prepared = prepare_tiny(config)
    folder = root / name
    write_config(folder, config)
    write_json(folder / "identity.json", {"identity": {"content folds": prepared.folds_hash}})
    return folder, {
        "task": task,
        "columns": prepared.table.classes,
        "folds_hash": prepared.folds_hash,
        "created_by": "predict.py",
    }


def draw(task, seed=0, folds=2, rows=8):
    rng = np.random.default_rng(seed)
    if task == "multilabel":
        return rng.random((folds, rows, 3))
    return rng.dirichlet([0.4] * 3, (folds, rows))
