"""What each step brings, out of fold: one view of one snapshot, all views, all snapshots; for labels each decision.

    cd my-competition
    python predict.py runs/<run> --oof --tta d4 --keep-views
    python ../benchmarks/steps.py runs/<run> runs/<run>/predictions/oof-d4-views --draw block

A folder without kept views (runs/<run>/oof) will do. The one snapshot is the newest, or with top_k the best epoch of
each fold. Intervals are of 1,000 draws of a column of the table, of rows without one. Prints a table in Markdown.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, ".")

from foldwise.inference.weights import find_models
from foldwise.predictions.decisions.calibration import Calibrator
from foldwise.predictions.decisions.deciding import compare
from foldwise.predictions.decisions.rules import rules_for
from foldwise.predictions.evaluation.bootstrap import interval, resample
from foldwise.predictions.evaluation.evidence import gather_evidence
from foldwise.predictions.ground_truth import GroundTruth, read_ground_truth
from foldwise.predictions.metrics import fold_score
from foldwise.predictions.scoring import Scored
from foldwise.predictions.store import Predictions, read_predictions
from foldwise.training.averaging import find_snapshots

DRAWS = 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--draw", metavar="COLUMN", help="of the table: its rows with one value are drawn together")
    options = parser.parse_args()
    predictions = read_predictions(options.predictions)
    truth = read_ground_truth(options.run)
    for number, (step, some) in enumerate(steps(predictions, truth, options.run)):
        scores = list(score(some, truth))
        if number == 0:
            print("| | " + " | ".join(f"{name} | interval" for name, *_ in scores) + " |")
            print("| --- " * (1 + 2 * len(scores)) + "|")
        cells = []
        for _, arrays, rows in scores:
            of_weights = fold_score(truth.metric, arrays, truth.folds[rows])
            drawn = truth.table.frame[options.draw].to_numpy()[rows] if options.draw else np.arange(len(rows))
            part = (np.arange(len(rows)), of_weights)
            low, high = interval(resample([part], pd.factorize(drawn)[0], DRAWS, seed=0)[:, 0])
            cells += [f"{of_weights(np.ones(len(rows))):.3f}", f"{low:.3f} to {high:.3f}"]
        print(f"| {step} | " + " | ".join(cells) + " |", flush=True)


def steps(predictions: Predictions, truth: GroundTruth, run: Path) -> Iterator[tuple[str, Predictions]]:
    """The predictions with ever more of their views and snapshots."""
    frame = predictions.frame
    folds = sorted(frame["fold"].unique().tolist())
    views = frame["view"].drop_duplicates().tolist()
    one = pd.Series(data=True, index=frame.index)
    several = len(find_models(run / f"fold{folds[0]}")) > 1
    if several:
        names = find_snapshots(run, truth.config, folds, truth.metric.greater_is_better)
        one = frame["snapshot"] == frame["fold"].map({fold: of_fold[0] for fold, of_fold in names.items()})
    yield "one snapshot, one view", replace(predictions, frame=frame[one & (frame["view"] == views[0])])
    if len(views) > 1:
        yield f"+ {len(views)} views", replace(predictions, frame=frame[one])
    if several:
        yield f"+ {len(names[folds[0]])} snapshots", predictions


def score(predictions: Predictions, truth: GroundTruth) -> Iterator[tuple[str, tuple[np.ndarray, ...], np.ndarray]]:
    """Of each decision, or of masks the metric: its name, what is scored, and the rows (N,) of the table."""
    metric = truth.metric
    evidence = gather_evidence("", predictions, truth, [metric], np.flatnonzero(truth.folds >= 0))
    if truth.task.kind == "maps":
        yield type(metric).__name__, evidence.arrays[0], evidence.rows
        return
    target, probability, records = evidence.arrays[0]
    scored = Scored(target, probability, evidence.folds, records)
    for outcome in compare([Calibrator()], rules_for(metric), metric, scored):
        yield outcome.name, (target, outcome.answers, records), evidence.rows


if __name__ == "__main__":
    main()
