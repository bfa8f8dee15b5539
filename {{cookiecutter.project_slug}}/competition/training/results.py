"""From the out-of-fold predictions of finished folds to the score, the report and what is printed at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from competition.config import followers
from competition.data.images import read_mask
from competition.data.prepare import Prepared
from competition.files import read_json, write_json
from competition.predictions.members import average_members
from competition.predictions.metrics import score_fold_counts
from competition.predictions.metrics.building import build_metric
from competition.predictions.scoring import score_table
from competition.predictions.store import Predictions, iter_average_maps, merge_folders, read_predictions
from competition.reporting.run_report import report_run

console = Console()


@dataclass(frozen=True)
class Scores:
    """The competition's metric: of each fold, and overall as the metric says (pooled, or the mean of the folds).

    `counts` are the (N, C, 3) pixel counts behind it, for segmentation.
    """

    metric: Any
    per_fold: dict[int, float]
    overall: float
    counts: np.ndarray | None = None


def finish_fold(run: Path, fold: int, config: Mapping[str, Any], prepared: Prepared, world: int) -> None:
    """Write the metrics.json of a fold all of whose processes have ended well. Doing it twice is harmless."""
    shards = sorted((run / f"fold{fold}").glob("oof-*-of-*"))
    history = pd.read_csv(run / f"fold{fold}" / "history.csv")
    scores = score_predictions([read_predictions(shard) for shard in shards], config, prepared)
    write_json(
        run / f"fold{fold}" / "metrics.json",
        {
            "fold": fold,
            "metric": type(scores.metric).__name__,
            "score": plain_number(scores.per_fold[fold]),
            "epochs": len(history),
            "seconds": round(float(history["seconds"].sum()), 1),
            "processes": world,
            "chosen_on_own_fold": bool(followers(config)),
        },
    )


def score_predictions(parts: Sequence[Predictions], config: Mapping[str, Any], prepared: Prepared) -> Scores:
    """The competition's metric over predictions of different rows together, averaged over the snapshots."""
    table = prepared.table
    metric = build_metric(config["metric"], config["task"], table.classes)
    row_of = {id: row for row, id in enumerate(table.ids)}
    if config["task"] == "segmentation":
        counts, folds = [], []
        for part in parts:
            for id, probability in iter_average_maps(part):
                counts.append(metric.counts(read_mask(table.mask_path(row_of[id])), probability))
                folds.append(prepared.folds[id])
        stacked = np.stack(counts)
        return Scores(metric, *score_fold_counts(metric, stacked, np.array(folds)), stacked)
    frame = pd.concat([average_members(part.frame, part.classes) for part in parts])
    rows = np.array([row_of[id] for id in frame["id"]])
    probability, folds = frame[list(table.classes)].to_numpy(np.float64), [prepared.folds[id] for id in frame["id"]]
    return Scores(metric, *score_table(metric, table, rows, probability, np.array(folds)))


def finish_run(run: Path, config: Mapping[str, Any], prepared: Prepared) -> None:
    """Put the folds together where all are finished, and say what came out. Doing it twice is harmless."""
    existing = sorted(set(prepared.folds.values()) - {-1})
    finished = [fold for fold in existing if (run / f"fold{fold}" / "metrics.json").exists()]
    if finished == existing and not (run / "metrics.json").exists():
        oof = merge_oof(run, prepared)
        scores = score_predictions([oof], config, prepared)
        report_run(
            run,
            config,
            prepared.table,
            scores.metric,
            scores.per_fold,
            scores.overall,
            oof,
            scores.counts,
        )
        write_scores(run, config, scores)
    print_scores(run, finished, existing)


def merge_oof(run: Path, prepared: Prepared) -> Predictions:
    """The out-of-fold predictions of a run whose folds are all finished, put together in `oof`."""
    if not (run / "oof").exists():
        shards = sorted(run.glob("fold*/oof-*-of-*"))
        merge_folders(shards, run / "oof", [id for id in prepared.table.ids if prepared.folds[id] >= 0])
    return read_predictions(run / "oof")


def write_scores(run: Path, config: Mapping[str, Any], scores: Scores) -> None:
    """Write the metrics.json of a run, which says that it is finished."""
    values = list(scores.per_fold.values())
    write_json(
        run / "metrics.json",
        {
            "metric": type(scores.metric).__name__,
            "overall": plain_number(scores.overall),
            "mean": plain_number(float(np.mean(values))),
            "std": plain_number(float(np.std(values))),
            "folds": {str(fold): plain_number(score) for fold, score in scores.per_fold.items()},
            "chosen_on_own_fold": bool(followers(config)),
        },
    )


def plain_number(value: float) -> float | None:
    """A float for JSON, which has no NaN: None stands for a score that does not exist."""
    return float(value) if np.isfinite(value) else None


def print_scores(run: Path, finished: list[int], existing: list[int]) -> None:
    """The score of each finished fold, of all together, and what to do next."""
    folds = [read_json(run / f"fold{fold}" / "metrics.json") for fold in finished]
    metric = folds[0]["metric"]
    table = RichTable(title=run.name, title_justify="left")
    for name in ("fold", metric, "epochs", "seconds"):
        table.add_column(name, justify="right")
    for fold in folds:
        table.add_row(str(fold["fold"]), _shown(fold["score"]), str(fold["epochs"]), f"{fold['seconds']:.0f}")
    if len(folds) > 1:
        values = [fold["score"] for fold in folds if fold["score"] is not None]
        table.add_section()
        table.add_row("mean ± std", f"{np.mean(values):.4f} ± {np.std(values):.4f}")
    if finished == existing:
        table.add_row("OOF overall", _shown(read_json(run / "metrics.json")["overall"]))
    console.print(table)
    if folds[0]["chosen_on_own_fold"]:
        console.print("[yellow]optimistic: epochs or rates were chosen by the fold that is scored[/yellow]")
    if finished != existing:
        missing = [fold for fold in existing if fold not in finished]
        console.print(f"folds {missing} are not finished: the same command with fold=all trains them")
        return
    console.print(
        f"models and history   {run}/fold<k>/\nout-of-fold          {run}/oof/\nreport               {run}/report.html"
    )
    console.print(f"next                 python predict.py {run}")


def _shown(score: float | None) -> str:
    return "—" if score is None else f"{score:.4f}"
