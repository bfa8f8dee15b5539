"""Competition metrics on whole predictions, the same for training, report and evaluation.

A metric of rows is called as `metric(target, probability, weight, rows)`: target (N, C) one-hot, multi-hot or soft, or
whatever the task has; probability (N, C) in [0, 1], or the task's values; weight (N,) or None; rows (N,) records of ids
and columns of the table (`base.row_records`) or None. A metric of maps takes one image at a time with
`measure(mask, probability)`, which gives its evidence, and makes the score of the stacked evidence with `reduce`.

`metric.for_task(task, classes)` comes first: it refuses a metric that the task does not have, before anything
trains. After training nothing here raises for the data's sake: what cannot be computed (an AUC of a class that
never occurs) is left out with a warning that names it, and is NaN where nothing is left.

A metric of your own is a frozen dataclass in `solution/metric.py`, named by a file in configs/metric:

    RowMetric    with `_score(target, probability, weight)`, or `_score_rows(target, probability, weight, rows)`
    MapMetric    with `measure(mask, probability)` and `reduce(evidence, weight)`
    CountMetric  a MapMetric of pixel counts, with `reduce(counts, weight)` alone

and says for which tasks it is (`tasks.ForTasks`). Weights are never needed: a bootstrap of such a metric repeats rows.
"""

from foldwise.predictions.metrics.base import Metric, RowMetric, confusion_matrix
from foldwise.predictions.metrics.folds import fold_score, score_fold_evidence, score_folds
from foldwise.predictions.metrics.maps import CountMetric, Dice, MapMetric, MeanIoU, pixel_confusion, pixel_counts
from foldwise.predictions.metrics.published import Published
from foldwise.predictions.metrics.rows import (
    Accuracy,
    FBeta,
    LogLoss,
    MacroF1,
    MeanAveragePrecision,
    QuadraticKappa,
    RocAuc,
    cross_entropy,
    is_correct,
)

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
    "METRICS", "Accuracy", "CountMetric", "Dice", "FBeta", "LogLoss", "MacroF1", "MapMetric", "MeanAveragePrecision",
    "MeanIoU", "Metric", "Published", "QuadraticKappa", "RocAuc", "RowMetric", "confusion_matrix", "cross_entropy",
    "fold_score", "is_correct", "pixel_confusion", "pixel_counts", "score_fold_evidence", "score_folds",
]  # fmt: skip
