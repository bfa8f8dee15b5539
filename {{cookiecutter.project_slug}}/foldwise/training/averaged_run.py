"""From a run with snapshots to a run with one model a fold, the average of their weights; what average_weights.py does.

<out>/
    fold<k>/model/         the average that the rule of fold k gives; metrics.json
    oof/                   each row by its fold's model
    averaging.json         which snapshots are averaged, and the scores of all candidates
    metrics.json  identity.json  config.yaml  environment.json     as in the run it was made from
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as RichTable

from foldwise.code.runs import run_code
from foldwise.config import followers, read_config
from foldwise.data.prepare import prepare
from foldwise.data.problems import some
from foldwise.data.samples import TableItems
from foldwise.errors import Refusal
from foldwise.files import check_new, new_folder, read_json, write_json
from foldwise.inference.device import choose_device
from foldwise.inference.weights import SPEC
from foldwise.predictions.ground_truth import GroundTruth, check_predictions
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.store import read_predictions
from foldwise.predictions.writers import merge_folders
from foldwise.training.averaging import Candidates, choose_counts, find_snapshots
from foldwise.training.results import plain_number, score_predictions

console = Console(highlight=False, markup=False)


@dataclass(frozen=True)
class Averaging:
    """What came out of averaging the weights of a run, in the competition's metric.

    Attributes:
        metric: its name.
        scores: by n and fold, of the mean of n snapshots.
        chosen: the n of each fold.
        per_fold, overall: of the chosen averages, out of fold.
        run: overall, of the run as it is: the probabilities of all snapshots averaged.
        newest: overall, of the newest snapshot alone (with top_k, the best).
        followed: settings by which the training followed the folds that are scored.
    """

    metric: str
    scores: dict[int, dict[int, float]]
    chosen: dict[int, int]
    per_fold: dict[int, float]
    overall: float
    run: float
    newest: float
    followed: list[str]


def average_weights(run: Path, out: Path, device: str = "auto") -> Averaging:
    """Average the snapshots of a finished run, and write a run of one model a fold.

    Candidates lie in a hidden folder beside `out` until the run is whole; interrupted, the same call goes on.

    Args:
        run: a folder that train.py made, with two folds and two snapshots a fold or more.
        out: the folder to write.
        device: "auto" or a device of torch's.

    Raises:
        Refusal: `out` exists, the run cannot be averaged, with everything that is wrong with it, or an average has
            NaN.
    """
    check_new(out)
    target = torch.device(choose_device(device))
    config = read_config(run)
    alias = run_code(run).alias
    prepared = prepare(config, alias, make_folds=False)
    if len(prepared.outputs) > 1:
        raise Refusal(f"{run} has several outputs, whose snapshots are not averaged: average their predictions instead")
    metric = build_metric(config["metric"], config["task"], prepared.table.classes, prepared.table, alias)
    folds = prepared.fold_of_items
    snapshots = find_snapshots(run, config, sorted(set(folds.tolist()) - {-1}), metric.greater_is_better)
    oof = read_predictions(run / "oof")
    items = TableItems.of(prepared.source, prepared.samples)
    check_predictions(oof, GroundTruth(prepared.table, folds, prepared.folds_hash, metric, config, items))
    folder = _open_partial(out, run, config, snapshots, prepared.images_hash) / out.name
    candidates = Candidates(run, config, prepared, snapshots, folder, target, alias)
    scores: dict[int, dict[int, float]] = {}
    for fold, names in snapshots.items():
        candidates.make(fold)
        for n in range(1, len(names) + 1):
            score = score_predictions([candidates.oof(fold, n)], config, prepared).per_fold[fold]
            scores.setdefault(n, {})[fold] = score
            console.print(f"fold {fold}  {n} of {len(names)} snapshots  {type(metric).__name__} {score:.4f}")
    chosen = choose_counts(scores, metric.greater_is_better)
    averaged = score_predictions([candidates.oof(fold, n) for fold, n in chosen.items()], config, prepared)
    averaging = Averaging(
        type(metric).__name__,
        scores,
        chosen,
        averaged.per_fold,
        averaged.overall,
        run=score_predictions([oof], config, prepared).overall,
        newest=score_predictions([candidates.oof(fold, 1) for fold in chosen], config, prepared).overall,
        followed=followers(config),
    )
    _write_run(out, candidates, averaging)
    shutil.rmtree(folder.parent)
    return averaging


def print_averaging(averaging: Averaging) -> None:
    """The score of each n on each fold, what was chosen where, and what it is worth."""
    table = RichTable(title=f"{averaging.metric} by the number of snapshots averaged", title_justify="left")
    folds = list(averaging.chosen)
    for name in ("fold", *map(str, averaging.scores), "chosen on the other folds"):
        table.add_column(name, justify="right")
    for fold in folds:
        values = [f"{of_n[fold]:.4f}" for of_n in averaging.scores.values()]
        table.add_row(str(fold), *values, str(averaging.chosen[fold]))
    console.print(table)
    count = len(averaging.scores)
    for text, score, networks in (
        ("the averaged weights", averaging.overall, "1 network"),
        ("the run, all probabilities averaged", averaging.run, f"{count} networks"),
        ("the newest snapshot", averaging.newest, "1 network"),
    ):
        console.print(f"out of fold, {text:<36} {score:.4f}  by {networks} a fold")
    if averaging.followed:
        console.print(f"optimistic, all three: {some(averaging.followed)} followed the fold that is scored")


def _open_partial(
    out: Path, run: Path, config: Mapping[str, Any], snapshots: Mapping[int, list[str]], images_hash: str
) -> Path:
    """The hidden folder of candidates; what it holds of other snapshots, settings or images is dropped."""
    partial = out.with_name(f".{out.name}.partial")
    specs = [run / f"fold{fold}" / "snapshots" / name / SPEC for fold, names in snapshots.items() for name in names]
    request = {
        "models": [read_json(spec)["sha256"] for spec in specs],
        "identity": read_json(run / "identity.json")["identity"],
        "tta": config["tta"],
        "images": images_hash,
    }
    path = partial / "request.json"
    if not path.is_file() or read_json(path) != request:
        shutil.rmtree(partial, ignore_errors=True)
        write_json(path, request)
    return partial


def _write_run(out: Path, candidates: Candidates, averaging: Averaging) -> None:
    """Put the chosen averages together in the shape of the run that they come from."""
    run, prepared, chosen = candidates.run, candidates.prepared, averaging.chosen
    record, identity = read_json(run / "metrics.json"), read_json(run / "identity.json")
    identity["identity"]["averaged from"] = run.resolve().name
    values = list(averaging.per_fold.values())
    with new_folder(out) as temporary:
        for fold, n in chosen.items():
            folder = temporary / f"fold{fold}"
            shutil.copytree(candidates.model(fold, n), folder / "model")
            trained = read_json(run / folder.name / "metrics.json")
            write_json(folder / "metrics.json", trained | {"score": plain_number(averaging.per_fold[fold])})
        ids = [id for id in prepared.table.ids if prepared.folds[id] >= 0]
        merge_folders([candidates.oof_folder(fold, n) for fold, n in chosen.items()], temporary / "oof", ids)
        record |= {
            "overall": plain_number(averaging.overall),
            "mean": plain_number(float(np.mean(values))),
            "std": plain_number(float(np.std(values))),
            "folds": _plain(averaging.per_fold),
        }
        write_json(temporary / "metrics.json", record)
        for name in ("config.yaml", "environment.json"):
            shutil.copy(run / name, temporary)
        write_json(temporary / "identity.json", identity)
        if (run / "code").is_dir():
            shutil.copytree(run / "code", temporary / "code")
        write_json(
            temporary / "averaging.json",
            {
                "run": run.resolve().name,
                "snapshots": {str(fold): candidates.snapshots[fold][:n] for fold, n in chosen.items()},
                "scores": {str(n): _plain(of_n) for n, of_n in averaging.scores.items()},
                "overall": plain_number(averaging.overall),
                "run_overall": plain_number(averaging.run),
                "newest_overall": plain_number(averaging.newest),
            },
        )


def _plain(scores: Mapping[int, float]) -> dict[str, float | None]:
    return {str(fold): plain_number(score) for fold, score in scores.items()}
