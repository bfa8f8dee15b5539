"""Scores after a fitted threshold: equal to a plain loop, blind to the fold they score, fair to calibration."""

import numpy as np
import pytest
from rows import scored

from foldwise.predictions.ensembles.thresholding import THRESHOLDS, has_threshold, score_thresholded
from foldwise.predictions.metrics import Accuracy, FBeta, LogLoss, MacroF1, RocAuc

CLASSES = ["a", "b", "c", "d"]


def rows(seed: int = 0, count: int = 240) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = (rng.random((count, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(float)
    odds = 2 * target - 1.5 + rng.normal(size=target.shape)
    return target, 1 / (1 + np.exp(-odds)), np.arange(count) % 3


@pytest.mark.parametrize("metric", [FBeta(), MacroF1()], ids=["f_beta", "macro_f1"])
def test_each_fold_is_scored_at_the_best_threshold_of_the_others(metric) -> None:
    metric = metric.for_task("multilabel", CLASSES)
    target, probability, folds = rows()
    per_fold, overall = score_thresholded(metric, scored(target, probability, folds))
    answers = np.zeros_like(target)
    for fold in range(3):
        means = []
        for threshold in THRESHOLDS:
            others = [
                metric(target[folds == o], (probability[folds == o] >= threshold) * 1.0) for o in {0, 1, 2} - {fold}
            ]
            means.append(sum(others) / 2)
        answers[folds == fold] = probability[folds == fold] >= THRESHOLDS[int(np.argmax(means))]
        assert per_fold[fold] == pytest.approx(metric(target[folds == fold], answers[folds == fold]))
    assert overall == pytest.approx(metric(target, answers))


def test_a_fold_does_not_influence_its_own_threshold() -> None:
    metric = FBeta().for_task("multilabel", CLASSES)
    target, probability, folds = rows()
    changed = target.copy()
    changed[folds == 1] = 0
    before = score_thresholded(metric, scored(target, probability, folds))[0]
    answers = probability[folds == 1] >= 0.5
    assert metric(changed[folds == 1], answers * 1.0) != pytest.approx(before[1])
    # With its labels all gone fold 1's answers stay what they were: its score is that of the old answers.
    again = score_thresholded(metric, scored(changed, probability, folds))[0]
    thresholds = [
        t for t in THRESHOLDS if metric(target[folds == 1], (probability[folds == 1] >= t) * 1.0) == before[1]
    ]
    assert any(metric(changed[folds == 1], (probability[folds == 1] >= t) * 1.0) == again[1] for t in thresholds)


def test_a_bias_of_the_probabilities_does_not_matter() -> None:
    """Its order of the rows is the same, and F2 at 0.5 is not."""
    metric = FBeta(beta=2).for_task("multilabel", CLASSES)
    target, probability, folds = rows()
    overstated = probability**0.5
    assert abs(metric(target, overstated) - metric(target, probability)) > 0.05
    fair, biased = (score_thresholded(metric, scored(target, p, folds))[1] for p in (probability, overstated))
    assert fair == pytest.approx(biased, abs=0.01)


def test_only_metrics_with_a_threshold_get_one() -> None:
    assert has_threshold(FBeta().for_task("multilabel", CLASSES))
    assert has_threshold(MacroF1().for_task("multilabel", CLASSES))
    assert not has_threshold(LogLoss().for_task("multilabel", CLASSES))
    assert not has_threshold(RocAuc().for_task("multilabel", CLASSES))
    assert not has_threshold(Accuracy().for_task("multiclass", CLASSES))
