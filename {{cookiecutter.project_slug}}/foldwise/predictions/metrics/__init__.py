"""Competition metrics on whole predictions, the same for training, report and evaluation.

Row metrics are called as `metric(target, probability, weight, rows)`: target (N, C) one-hot, multi-hot or soft;
probability (N, C) in [0, 1]; weight (N,) or None; rows (N,) records with ids and table columns (`base.row_records`) or
None. Tasks without probabilities pass their values. Map metrics see one image at a time: `measure(mask, probability)`
returns its evidence, and `reduce` turns the stacked evidence into the score; metrics of boxes likewise. Rank metrics
reduce ranks (N,).

Call `metric.for_task(task, classes)` first. It refuses a metric that does not suit the task, before training starts.
After training, data never makes a metric raise. What is undefined, such as the AUC of a class that never occurs, is
left out with a warning; the score is NaN if nothing is left.

Write your own metric as a frozen dataclass in `solution/metric.py`, named by a file in configs/metric:

    RowMetric    implement `_score(target, probability, weight)`, or `_score_rows(target, probability, weight, rows)`
    MapMetric    implement `measure(mask, probability)` and `reduce(evidence, weight)`
    BoxMetric    implement `measure(true, found)` and `reduce(evidence)`
    CountMetric  a MapMetric on pixel counts; implement only `reduce(counts, weight)`

Declare its tasks as in `tasks.ForTasks`. It may ignore weights: the bootstrap of such a metric repeats rows.
"""

from foldwise.predictions.metrics.base import Metric, RowMetric, confusion_matrix
from foldwise.predictions.metrics.binary import (
    AveragePrecision,
    BalancedAccuracy,
    BinaryFBeta,
    BinaryMetric,
    Matthews,
    Precision,
    Recall,
)
from foldwise.predictions.metrics.detection import BoxMetric, DetectionMap, DetectionMap50
from foldwise.predictions.metrics.folds import fold_score, score_fold_evidence, score_folds
from foldwise.predictions.metrics.maps import (
    CountMetric,
    Dice,
    MapMetric,
    MeanIoU,
    PixelMae,
    PixelRmse,
    count_pixels,
    pixel_confusion,
    pixel_counts,
)
from foldwise.predictions.metrics.numbers import R2, Mae, Mape, Pearson, Rmse, Rmsle, Spearman, row_errors
from foldwise.predictions.metrics.published import Published
from foldwise.predictions.metrics.ranks import MapAtK, RankMetric, RecallAtK
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

# By the name of their file in configs/metric/.
METRICS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "average_precision": AveragePrecision,
    "balanced_accuracy": BalancedAccuracy,
    "binary_f_beta": BinaryFBeta,
    "detection_map": DetectionMap,
    "detection_map50": DetectionMap50,
    "dice": Dice,
    "f_beta": FBeta,
    "log_loss": LogLoss,
    "macro_f1": MacroF1,
    "mae": Mae,
    "map_at_k": MapAtK,
    "mape": Mape,
    "matthews": Matthews,
    "mean_average_precision": MeanAveragePrecision,
    "mean_iou": MeanIoU,
    "pearson": Pearson,
    "pixel_mae": PixelMae,
    "pixel_rmse": PixelRmse,
    "precision": Precision,
    "published": Published,
    "quadratic_kappa": QuadraticKappa,
    "r2": R2,
    "recall": Recall,
    "recall_at_k": RecallAtK,
    "rmse": Rmse,
    "rmsle": Rmsle,
    "roc_auc": RocAuc,
    "spearman": Spearman,
}

__all__ = [
    "METRICS", "R2", "Accuracy", "AveragePrecision", "BalancedAccuracy", "BinaryFBeta", "BinaryMetric", "BoxMetric",
    "CountMetric", "DetectionMap", "DetectionMap50", "Dice", "FBeta", "LogLoss", "MacroF1", "Mae", "MapAtK",
    "MapMetric", "Mape", "Matthews", "MeanAveragePrecision", "MeanIoU", "Metric", "Pearson", "PixelMae", "PixelRmse",
    "Precision", "Published", "QuadraticKappa", "RankMetric", "Recall", "RecallAtK", "Rmse", "Rmsle", "RocAuc",
    "RowMetric", "Spearman", "confusion_matrix", "count_pixels", "cross_entropy", "fold_score", "is_correct",
    "pixel_confusion", "pixel_counts", "row_errors", "score_fold_evidence", "score_folds",
]  # fmt: skip
