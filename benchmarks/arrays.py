"""Folds, decisions and ensembles at the size of a large competition: seconds, and peak memory of the process.

    .venv/bin/python benchmarks/arrays.py [ROWS MEMBERS]

Nothing is trained: predictions are the truth seen through noise. Machines differ, so compare with the line that is
printed first, the time of one matrix product.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "{{cookiecutter.project_slug}}"))

from foldwise.data.folds import folds_hash
from foldwise.data.splitting import make_folds
from foldwise.predictions.decisions.expected_f import best_answers
from foldwise.predictions.ensembles.blending import Examples
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.ensembles.extra import Extra
from foldwise.predictions.ensembles.stacking import STACKERS
from foldwise.predictions.ground_truth import read_ground_truth
from foldwise.predictions.schema import Header
from foldwise.predictions.store import write_predictions

ROWS, MEMBERS = (int(value) for value in sys.argv[1:] or (40_000, 48))
LABELS, FOLDS = 17, 10
SHARES = np.geomspace(0.9, 0.002, LABELS)


def timed(what: str, work: Callable[[], object]) -> None:
    """Run, and print how long it took."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:60s} {seconds:7.2f} s   peak so far {peak:6.0f} MiB", flush=True)


def see(target: np.ndarray, member: int, rng: np.random.Generator) -> np.ndarray:
    """What a member says, (N, C) float32 probabilities; later members see less."""
    odds = (2 * target - 1) * 2 + (1 + member / MEMBERS) * rng.normal(size=target.shape) + np.log(SHARES)
    return (1 / (1 + np.exp(-odds))).astype(np.float32)


def write_members(root: Path, target: np.ndarray, rng: np.random.Generator) -> list[Path]:
    """So many sources of out-of-fold predictions for one table."""
    ids, names = [f"r{row}" for row in range(ROWS)], [f"c{label:02d}" for label in range(LABELS)]
    folds = np.arange(ROWS) % FOLDS
    labels = [" ".join(np.array(names)[row]) for row in target]
    cv2.imwrite(str(root / "x.png"), np.zeros((4, 4, 3), np.uint8))
    table = pd.DataFrame({"id": ids, "image": "x.png", "labels": labels, "fold": folds})
    table.to_csv(root / "train.csv", index=False)
    columns = dict.fromkeys(("target", "group", "unit", "weight")) | {"id": "id", "image": "image", "fold": "fold"}
    data = {"name": "made", "root": str(root), "table": str(root / "train.csv"), "test_table": None, "classes": None}
    data |= {"prepared": str(root), "folds": FOLDS, "columns": columns, "ignore_index": 255}
    metric = {"_target_": "foldwise.predictions.metrics.FBeta", "beta": 2.0, "threshold": 0.5}
    samples = {"_target_": "foldwise.data.samples.Samples", "mode": "stored"}
    config = {"task": "multilabel", "samples": samples, "data": data, "metric": metric}
    header = Header(
        split="oof",
        task="multilabel",
        columns=names,
        run="made",
        folds_hash=folds_hash(dict(zip(ids, folds.tolist(), strict=True))),
        tta={"views": ["identity"], "mean": "arithmetic"},
        created_by="benchmark",
    )
    for member in range(MEMBERS):
        frame = pd.DataFrame(see(target, member, rng), columns=names)
        source = root / f"member{member}"
        write_predictions(source / "oof", frame.assign(id=ids, fold=folds, snapshot="last", view="mean"), header)
        (source / "config.yaml").write_text(yaml.safe_dump(config))
    return [root / f"member{member}" for member in range(MEMBERS)]


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    target = rng.random((ROWS, LABELS)) < SHARES
    ids = [f"r{row}" for row in range(ROWS)]
    matrix = rng.random((3000, 3000))
    timed("yardstick: product of two 3000 x 3000 matrices", lambda: matrix @ matrix)
    timed(f"folds, {ROWS:,} x {LABELS} labels, {FOLDS}", lambda: make_folds(ids, FOLDS, target))
    many = [f"r{row}" for row in range(25 * ROWS)]
    groups = rng.integers(0, len(many) // 20, len(many)).tolist()
    classes = np.eye(5)[rng.integers(0, 5, len(many))]
    timed(f"folds, {len(many):,} rows in {len(many) // 20:,} groups", lambda: make_folds(many, FOLDS, classes, groups))
    probability = np.clip(0.7 * target + 0.3 * rng.random(target.shape), 0, 1)
    timed(f"largest expected F2, {ROWS:,} x {LABELS}", lambda: best_answers(probability, beta=2))
    with tempfile.TemporaryDirectory() as folder:
        sources = write_members(Path(folder), target, rng)
        methods = ["mean", "geometric", "simplex", "greedy"]
        timed(
            f"ensemble, {MEMBERS} members x {ROWS:,} x {LABELS}, {', '.join(methods)}",
            lambda: ensemble(sources, Path(folder) / "out", methods=methods),
        )
        truth = read_ground_truth(sources[0])
    probability = np.stack([see(target, member, rng) for member in range(MEMBERS)])
    scores = dict.fromkeys(range(FOLDS), np.zeros((MEMBERS, 1)))
    extra = Extra(np.zeros((ROWS, 0), np.float32), np.arange(ROWS), np.zeros(ROWS, int))
    examples = Examples(truth.table, truth.metric, np.arange(ROWS), truth.folds, probability, extra, scores)
    others = examples.take(list(range(1, FOLDS)))
    for method in STACKERS:
        timed(f"stacking {method.name}, 1 of {FOLDS} folds", lambda method=method: method.fit(others))


if __name__ == "__main__":
    main()
