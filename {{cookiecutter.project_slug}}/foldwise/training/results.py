"""Scores and reports the out-of-fold predictions of finished folds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.config import followers, write_config
from foldwise.data.holdout import Holdout
from foldwise.data.prepare import Prepared
from foldwise.data.samples import TableItems
from foldwise.files import plain_number, write_json
from foldwise.predictions.metrics import count_pixels, score_fold_evidence
from foldwise.predictions.metrics.building import build_metric
from foldwise.predictions.metrics.maps import PixelMetric
from foldwise.predictions.scoring import score_table
from foldwise.predictions.search import Found, search_oof
from foldwise.predictions.sources import GOLD_FOLDER, output_folder
from foldwise.predictions.store import Predictions, average_members, iter_average_maps, read_predictions
from foldwise.predictions.writers import merge_folders
from foldwise.reporting.console import print_run
from foldwise.reporting.run_report import report_run
from foldwise.tasks.outputs import Output


@dataclass(frozen=True)
class Scores:
    """The competition's metric per fold and overall (pooled or the mean of folds, as the metric defines).

    `counts`: (N, C, 3) pixel counts of the images, or errors (N, C, 2) of a `PixelMetric`, for segmentation; `found`:
    their names, for retrieval.
    """

    metric: Any
    per_fold: dict[int, float]
    overall: float
    counts: np.ndarray | None = None
    found: Found | None = None


def finish_fold(run: Path, part: Holdout, config: Mapping[str, Any], prepared: Prepared, world_size: int) -> None:
    """Write metrics.json for a model once all its processes have succeeded. Safe to repeat."""
    folder = run / part.name
    shards = [read_predictions(shard) for shard in sorted(folder.glob("oof-*-of-*"))]
    history = pd.read_csv(folder / "history.csv")
    record = {
        "held_out": list(part.folds),
        "metric": type(_metric(config, prepared)).__name__,
        # A full fit has no held-out rows.
        "score": plain_number(score_predictions(shards, config, prepared).overall if part.folds else math.nan),
        **score_gold(sorted(folder.glob(f"{GOLD_FOLDER}-*-of-*")), config, prepared),
        "epochs": len(history),
        "seconds": round(float(history["seconds"].sum()), 1),
        "processes": world_size,
        "chosen_on_own_fold": bool(followers(config)),
    }
    write_json(folder / "metrics.json", record)


def _metric(config: Mapping[str, Any], prepared: Prepared) -> Any:
    return build_metric(config["metric"], config["task"], prepared.table.classes, alias=prepared.alias)


def score_predictions(parts: Sequence[Predictions], config: Mapping[str, Any], prepared: Prepared) -> Scores:
    """Score the predictions of disjoint rows together, averaged over snapshots; rows without a target do not count."""
    table = prepared.table
    known = {id for id, has in zip(table.ids, table.known, strict=True) if has}
    metric = _metric(config, prepared)
    if prepared.outputs[0].meaning.kind == "maps":
        evidence, counts, folds = [], [], []
        for part in parts:
            for id, probability in iter_average_maps(part, [id for id in part.frame["id"].unique() if id in known]):
                mask, answer = table.read_mask(table.row_of[id]), prepared.outputs[0].meaning.answer(probability)
                counts.append(count_pixels(mask, answer, len(table.classes), metric.ignore_index))
                evidence.append(counts[-1] if metric.of_counts else metric.measure(mask, probability))
                folds.append(prepared.folds[id])
        shown = np.stack(evidence if isinstance(metric, PixelMetric) else counts)
        return Scores(metric, *score_fold_evidence(metric, np.stack(evidence), np.array(folds)), shown)
    if prepared.outputs[0].meaning.kind == "vectors":
        found = search_oof(parts, table, prepared.fold_of_items, metric.k)
        scores = score_fold_evidence(metric, found.rank, prepared.fold_of_items[found.rows])
        return Scores(metric, *scores, found=found)
    frame = pd.concat([average_members(part.frame, part.columns) for part in parts])
    frame = frame[frame["id"].isin(known)]
    rows = np.array([table.row_of[id] for id in frame["id"]])
    probability = frame[list(table.classes)].to_numpy(np.float64)
    return Scores(metric, *score_table(metric, table, rows, probability, prepared.fold_of_items[rows]))


def score_gold(folders: Sequence[Path], config: Mapping[str, Any], prepared: Prepared) -> dict[str, float | None]:
    """Score gold rows for metrics.json: the mean prediction of the models in disjoint folders; empty without any."""
    if not prepared.gold or not folders:
        return {}
    parts = [read_predictions(folder) for folder in folders]
    return {"gold": plain_number(score_predictions(parts, config, prepared.gold).overall)}


def finish_run(run: Path, config: Mapping[str, Any], prepared: Prepared) -> None:
    """Merge the folds if all are finished, and print the scores. Safe to repeat."""
    existing = prepared.scored_folds
    finished = [fold for fold in existing if (run / f"fold{fold}" / "metrics.json").exists()]
    if finished == existing and not (run / "metrics.json").exists():
        for output in prepared.outputs[1:]:
            _finish_output(run, config, prepared, output)
        oof = merge_oof(run, prepared)
        scores = score_predictions([oof], config, prepared)
        items = TableItems.of(prepared.source, prepared.samples)
        parts = scores.metric, scores.per_fold, scores.overall, oof, scores.counts, scores.found
        gold = merge_gold(run, config, prepared)
        report_run(run, config, prepared.table, items, *parts, gold=gold.get("gold"))
        write_scores(run, config, scores, gold)
    can_train_full = prepared.outputs[0].meaning.kind != "vectors"
    print_run(run, existing, _metric(config, prepared).greater_is_better, can_train_full)


def _finish_output(run: Path, config: Mapping[str, Any], prepared: Prepared, output: Output) -> None:
    """Write predictions, score and configuration of a further output, so that it is a source like a run."""
    folder, own_config = output_folder(run, output), output_config(config, output)
    own = replace(prepared, table=prepared.tables[output.target], outputs=(replace(output, name=""),))
    write_config(folder, own_config)
    scores = score_predictions([merge_oof(folder, own)], own_config, own)
    write_scores(folder, own_config, scores, merge_gold(folder, own_config, own))


def output_config(config: Mapping[str, Any], output: Output) -> dict[str, Any]:
    """A run's configuration as if this were the only output."""
    entry, data = config["outputs"][output.name], config["data"]
    columns = {**data["columns"], "target": entry["target"]}
    data = {**data, "columns": columns, "classes": list(output.columns), "missing_targets": True}
    return {**config, "task": output.task, "metric": entry["metric"], "data": data, "outputs": {}}


def merge_oof(source: Path, prepared: Prepared) -> Predictions:
    """Merge the out-of-fold predictions of a finished source into `oof`, and read them."""
    if not (source / "oof").exists():
        shards = sorted(source.glob("fold*/oof-*-of-*"))
        merge_folders(shards, source / "oof", prepared.oof_ids)
    return read_predictions(source / "oof")


def merge_gold(source: Path, config: Mapping[str, Any], prepared: Prepared) -> dict[str, float | None]:
    """Merge the folds' predictions of the gold rows into `predictions/gold`, and score them; see `score_gold`."""
    folder = source / "predictions" / GOLD_FOLDER
    if prepared.gold and not folder.exists():
        shards = sorted(source.glob(f"fold*/{GOLD_FOLDER}-*-of-*"))
        merge_folders(shards, folder, prepared.gold.oof_ids)
    return score_gold([folder] if folder.exists() else [], config, prepared)


def write_scores(
    run: Path, config: Mapping[str, Any], scores: Scores, gold: Mapping[str, float | None] | None = None
) -> None:
    """Write metrics.json, which marks the run as finished; `gold` from `merge_gold`."""
    values = list(scores.per_fold.values())
    record = {
        "metric": scores.metric.name,
        "overall": plain_number(scores.overall),
        "mean": plain_number(float(np.mean(values))),
        "std": plain_number(float(np.std(values))),
        "folds": plain_scores(scores.per_fold),
        **(gold or {}),
        "chosen_on_own_fold": bool(followers(config)),
    }
    write_json(run / "metrics.json", record)


def plain_scores(scores: Mapping[int, float]) -> dict[str, float | None]:
    """Scores by fold as JSON values."""
    return {str(fold): plain_number(score) for fold, score in scores.items()}
