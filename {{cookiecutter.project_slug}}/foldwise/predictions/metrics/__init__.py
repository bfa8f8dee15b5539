"""Competition metrics on whole predictions, the same for training, report and evaluation.

A classification metric is called as `metric(target, probability, weight)`: target (N, C) one-hot, multi-hot or
soft; probability (N, C) in [0, 1]; weight (N,) or None. A segmentation metric takes one image at a time with
`counts(mask, probability)` and makes the score of the stacked counts with `reduce`, so that memory stays flat.

`metric.for_task(task, classes)` comes first: it refuses a metric that the task does not have, before anything
trains. After training nothing here raises for the data's sake: what cannot be computed (an AUC of a class that
never occurs) is left out with a warning that names it, and is NaN where nothing is left.

A new metric is a dataclass with `tasks` and `_score` (or `per_class`), in `METRICS` below, and a file in
`configs/metric/`.
"""

from foldwise.predictions.metrics.base import CLASSIFICATION, ClassificationMetric, Metric, confusion_matrix
from foldwise.predictions.metrics.classification import (
    Accuracy,
    FBeta,
    LogLoss,
    MacroF1,
    QuadraticKappa,
    answered_right,
    cross_entropy,
)
from foldwise.predictions.metrics.folds import score_fold_counts, score_folds
from foldwise.predictions.metrics.published import Published, example_score
from foldwise.predictions.metrics.ranking import MeanAveragePrecision, RocAuc
from foldwise.predictions.metrics.segmentation import Dice, MeanIoU, SegmentationMetric

# The metrics by the name of their file in configs/metric/.
METRICS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "dice": Dice,
    "f_beta": FBeta,
    "log_loss": LogLoss,
    "macro_f1": MacroF1,
    "mean_average_precision": MeanAveragePrecision,
    "mean_iou": MeanIoU,
    "published": Published,
    "quadratic_kappa": QuadraticKappa,
    "roc_auc": RocAuc,
}

__all__ = [
    "CLASSIFICATION",
    "METRICS",
    "Accuracy",
    "ClassificationMetric",
    "Dice",
    "FBeta",
    "LogLoss",
    "MacroF1",
    "MeanAveragePrecision",
    "MeanIoU",
    "Metric",
    "Published",
    "QuadraticKappa",
    "RocAuc",
    "SegmentationMetric",
    "answered_right",
    "confusion_matrix",
    "cross_entropy",
    "example_score",
    "score_fold_counts",
    "score_folds",
]
