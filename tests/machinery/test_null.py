"""The null test: with labels that mean nothing, no step of the competition loop may report a gain.

Networks, snapshots, averaged weights, stacking, calibration and tuned decisions all see permuted labels. Whatever
still scores above chance, beyond two standard errors, has seen the labels that it is scored on.
"""

import numpy as np
import pandas as pd
import pytest
from tiny import CLASSES, tiny_config, train_scored, write_data

from foldwise.predictions.decisions.calibration import CALIBRATORS
from foldwise.predictions.decisions.deciding import compare
from foldwise.predictions.decisions.rules import rules_for
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.ground_truth import align, read_ground_truth
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.store import read_predictions
from foldwise.training.averaged_run import average_weights

SEEDS, ROWS = range(3), 60


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The out-of-fold accuracy of each step, a row for each permutation of the labels."""
    rows = []
    for seed in SEEDS:
        folder = tmp_path_factory.mktemp(f"permutation{seed}")
        data = write_data(folder / "data", ROWS)
        frame = pd.read_csv(data / "train.csv")
        frame["label"] = np.random.default_rng(seed).permutation(frame["label"])
        frame.to_csv(data / "train.csv", index=False)
        shared = ["data.folds=3", "phases=cycles", "epochs=6", "augmentation=none", "optimizer.lr=0.003"]
        runs = [
            train_scored(
                tiny_config(data, "multiclass", *shared, f"seed={number}", f"experiment_name=m{number}"),
                folder / "runs",
            )
            for number in (0, 1)
        ]
        comparison, _ = ensemble(runs, folder / "ensemble", methods=["all"], strict=True)
        row = dict(zip(comparison.names, comparison.overall, strict=True))
        assert comparison.strict is not None
        row |= {"chosen": comparison.overall[comparison.chosen], "strict": comparison.strict.overall}
        row |= {f"source {number}": score for number, score in enumerate(comparison.source_overall)}
        row["averaged weights"] = average_weights(runs[0], folder / "averaged", "cpu").overall
        truth = read_ground_truth(runs[0])
        table_rows, probability = align(read_predictions(folder / "ensemble" / "oof"), truth)
        scored = by_unit(truth.table, table_rows, probability, truth.folds[table_rows])
        outcomes = compare(CALIBRATORS[True], rules_for(truth.metric), truth.metric, scored)
        rows.append(row | {f"decision {outcome.name}": outcome.overall for outcome in outcomes})
    return pd.DataFrame(rows)


@pytest.mark.slow
def test_no_step_gains_on_permuted_labels(scores: pd.DataFrame) -> None:
    chance = 1 / len(CLASSES)
    error = np.sqrt(chance * (1 - chance) / (ROWS * len(SEEDS)))
    gains = scores.mean() - chance
    assert len(gains) > 10
    assert (gains < 2 * error).all(), gains[gains >= 2 * error].to_dict()
