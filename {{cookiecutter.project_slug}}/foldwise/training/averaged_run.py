"""Averages the weights of each fold's snapshots into a new run (tools/average_weights.py).

<out>/
    fold<k>/model/         the chosen average of fold k; metrics.json beside it
    oof/                   out-of-fold predictions of the averages
    averaging.json         the averaged snapshots and the scores of all candidates
    metrics.json  identity.json  config.yaml  environment.json     as in a trained run
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from foldwise.code.runs import run_code
from foldwise.config import followers, read_config
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared, prepare
from foldwise.data.problems import some
from foldwise.data.samples import TableItems
from foldwise.errors import Refusal
from foldwise.files import check_new, new_folder, plain_number, read_json, write_json
from foldwise.inference.device import choose_device
from foldwise.inference.spec import SPEC
from foldwise.inference.weights import load_model, load_state, save_model
from foldwise.predictions.ground_truth import GroundTruth, check_predictions
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.store import Predictions, read_predictions
from foldwise.predictions.writers import merge_folders
from foldwise.processes.group import Rank
from foldwise.reporting.console import make_table
from foldwise.schedule.phases import build_phases
from foldwise.training.averaging import average_states, choose_counts, find_snapshots, frozen_norms
from foldwise.training.ema import reestimate_batch_norm
from foldwise.training.fold import predict_held_out
from foldwise.training.loaders import training_loader, with_pseudo
from foldwise.training.results import plain_scores, score_predictions, write_scores

console = Console(highlight=False, markup=False)


@dataclass(frozen=True)
class Averaging:
    """Scores of averaged weights, in the competition's metric.

    Attributes:
        scores: of the mean of n snapshots, by n and fold.
        chosen: n by fold; `per_fold` and `overall` are the resulting scores.
        run: overall score of the original run, which averages the probabilities of all snapshots.
        newest: overall score of the newest snapshot alone (with top_k, the best).
        followed: settings by which training depended on the scored folds.
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
    """Average the snapshots of a finished run and write a run with one model per fold to the new folder `out`.

    Candidates are kept in a hidden folder beside `out`, so that an interrupted call can be repeated to resume.

    Raises:
        Refusal: `out` exists, the run cannot be averaged, or an average has NaN.
    """
    check_new(out)
    target = torch.device(choose_device(device))
    config = read_config(run)
    prepared = prepare(config, run_code(run).alias, make_folds=False)
    if len(prepared.outputs) > 1:
        raise Refusal(f"{run} has several outputs, which cannot be averaged: average their predictions instead")
    metric = build_metric(config["metric"], config["task"], prepared.table.classes, prepared.table, prepared.alias)
    snapshots = find_snapshots(run, config, prepared.scored_folds, metric.greater_is_better)
    oof = read_predictions(run / "oof")
    items = TableItems.of(prepared.source, prepared.samples)
    check_predictions(
        oof, GroundTruth(prepared.table, prepared.fold_of_items, prepared.folds_hash, metric, config, items)
    )
    # Named like `out`: predictions record the name of their run.
    folder = _open_partial(out, run, config, snapshots, prepared.images_hash) / out.name
    scores: dict[int, dict[int, float]] = {}
    oofs: dict[tuple[int, int], Predictions] = {}
    for fold, names in snapshots.items():
        _make_candidates(run, config, prepared, Holdout((fold,)), names, folder, target)
        for n in range(1, len(names) + 1):
            oofs[fold, n] = read_predictions(folder / f"fold{fold}" / f"oof-{n}")
            score = score_predictions([oofs[fold, n]], config, prepared).per_fold[fold]
            scores.setdefault(n, {})[fold] = score
            console.print(f"fold {fold}  {n} of {len(names)} snapshots  {metric.name} {score:.4f}")
    chosen = choose_counts(scores, metric.greater_is_better)
    averaged = score_predictions([oofs[pair] for pair in chosen.items()], config, prepared)
    averaging = Averaging(
        metric=metric.name,
        scores=scores,
        chosen=chosen,
        per_fold=averaged.per_fold,
        overall=averaged.overall,
        run=score_predictions([oof], config, prepared).overall,
        newest=score_predictions([oofs[fold, 1] for fold in chosen], config, prepared).overall,
        followed=followers(config),
    )
    identity = read_json(run / "identity.json")
    identity["identity"]["averaged from"] = run.resolve().name
    with new_folder(out) as temporary:
        for fold, n in chosen.items():
            name = f"fold{fold}"
            shutil.copytree(folder / name / f"model-{n}", temporary / name / "model")
            trained = read_json(run / name / "metrics.json")
            write_json(temporary / name / "metrics.json", trained | {"score": plain_number(averaged.per_fold[fold])})
        parts = [folder / f"fold{fold}" / f"oof-{n}" for fold, n in chosen.items()]
        merge_folders(parts, temporary / "oof", prepared.oof_ids)
        write_scores(temporary, config, averaged)
        for name in ("config.yaml", "environment.json"):
            shutil.copy(run / name, temporary)
        write_json(temporary / "identity.json", identity)
        if (run / "code").is_dir():
            shutil.copytree(run / "code", temporary / "code")
        record = {
            "run": run.resolve().name,
            "snapshots": {str(fold): snapshots[fold][:n] for fold, n in chosen.items()},
            "scores": {str(n): plain_scores(of_n) for n, of_n in scores.items()},
            "overall": plain_number(averaging.overall),
            "run_overall": plain_number(averaging.run),
            "newest_overall": plain_number(averaging.newest),
        }
        write_json(temporary / "averaging.json", record)
    shutil.rmtree(folder.parent)
    return averaging


def print_averaging(averaging: Averaging) -> None:
    """Print the score of each n on each fold, the choices, and the overall scores."""
    columns = ["fold", *map(str, averaging.scores), "chosen on the other folds"]
    table = make_table(f"{averaging.metric} by the number of snapshots averaged", [], columns)
    for fold, n in averaging.chosen.items():
        table.add_row(str(fold), *(f"{of_n[fold]:.4f}" for of_n in averaging.scores.values()), str(n))
    console.print(table)
    for text, score, networks in (
        ("the averaged weights", averaging.overall, "1 network"),
        ("the run, all probabilities averaged", averaging.run, f"{len(averaging.scores)} networks"),
        ("the newest snapshot", averaging.newest, "1 network"),
    ):
        console.print(f"out of fold, {text:<36} {score:.4f}  by {networks} a fold")
    if averaging.followed:
        console.print(f"optimistic, all three: {some(averaging.followed)} followed the fold that is scored")


def _make_candidates(
    run: Path,
    config: dict[str, Any],
    prepared: Prepared,
    part: Holdout,
    names: Sequence[str],
    folder: Path,
    device: torch.device,
) -> None:
    """Average the first n = 1, 2, ... snapshots of a fold; write model-<n>, then oof-<n>, to `folder`/<part>/.

    Raises:
        Refusal: weights or BatchNorm statistics of an average are not finite.
    """
    missing = [n for n in range(1, len(names) + 1) if not (folder / part.name / f"oof-{n}").exists()]
    if not missing:
        return
    paths = [run / part.name / "snapshots" / name for name in names]
    states = [load_state(path) for path in paths]
    newest = load_model(paths[0])
    network, spec = newest.network.to(device), newest.spec
    batches = _plain_batches(config, prepared, part, spec.state)
    rows = prepared.predicted(part)
    for n in missing:
        network.net.load_state_dict(average_states(states[:n]))
        shown = tqdm(batches, f"{part.title}  BatchNorm", disable=not sys.stderr.isatty(), leave=False)
        reestimate_batch_norm(network, shown, device, frozen_norms(states[:n]))
        if not all(values.isfinite().all() for values in network.net.state_dict().values()):
            raise Refusal(
                f"{run}: {part.title}: the mean of the snapshots {', '.join(names[:n])} has weights or "
                "BatchNorm statistics that are NaN or infinite: train again with a lower optimizer.lr"
            )
        save_model(folder / part.name / f"model-{n}", network, spec)
        models = {"last": newest}  # find_models names a fold's only model so
        where = device, folder, part, f"oof-{n}"
        predict_held_out(config, prepared, models, rows, *where, created_by="average_weights.py")


def _plain_batches(
    config: dict[str, Any], prepared: Prepared, part: Holdout, state: Mapping[str, Any]
) -> torch.utils.data.DataLoader:
    """Training batches of the last phase without augmentation, as images are predicted."""
    phases = {name: phase | {"augmentation": None, "image_size": None} for name, phase in config["phases"].items()}
    joined, pseudo = with_pseudo(prepared, part)
    rows = part.trained(prepared.fold_of_items)
    plain = config | {"augmentation": {"transforms": []}, "phases": phases}
    loader, _ = training_loader(plain, joined, state, rows, pseudo, Rank())
    # Past the last epoch, the sampler keeps the last phase's share of pseudo rows.
    epochs = sum(phase.epochs for phase in build_phases(phases))
    loader.sampler.set_epoch(epochs)  # type: ignore[attr-defined]  # an EpochSampler
    return loader


def _open_partial(
    out: Path, run: Path, config: Mapping[str, Any], snapshots: Mapping[int, list[str]], images_hash: str
) -> Path:
    """Open the hidden folder of candidates; clear it if snapshots, settings or images have changed."""
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
