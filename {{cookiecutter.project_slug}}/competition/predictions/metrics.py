"""Competition metrics on whole predictions, the same for training, report and evaluation.

A classification metric is called as `metric(target, probability, weight)`: target (N, C) one-hot, multi-hot or
soft; probability (N, C) in [0, 1]; weight (N,) or None. A segmentation metric takes one image at a time with
`counts(mask, probability)` and makes the score of the stacked counts with `reduce`, so that memory stays flat.

`metric.for_task(task, classes)` comes first: it refuses a metric that the task does not have, before anything
trains. After training nothing here raises for the data's sake: what cannot be computed (an AUC of a class that
never occurs) is left out with a warning that names it, and is NaN where nothing is left.

A new metric is a dataclass with `tasks` and `_score` (or `per_class`), and a file in `configs/metric/`.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

CLASSIFICATION = ("multiclass", "multilabel")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What all metrics share.

    Attributes:
        task, classes: set by `for_task`.
        greater_is_better: False for losses.
        pooled: True: the score of all folds is that of all rows together; False: the mean over the folds. Metrics
            of ranking are averaged, since each fold's model has its own offset, which ruins a pooled ranking.
        tasks: the tasks that have the metric.
    """

    task: str | None = None
    classes: tuple[str, ...] = ()

    greater_is_better = True
    pooled = True
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATION

    def for_task(self, task: str, classes: Sequence[str]) -> Self:
        """The metric, ready for a task and its classes.

        Raises:
            ValueError: the task does not have this metric; the message names those that it has.
        """
        if task not in self.tasks:
            others = ", ".join(sorted(name for name, kind in METRICS.items() if task in kind.tasks))
            raise ValueError(
                f"metric {type(self).__name__} is for {' and '.join(self.tasks)}, not for {task}; "
                f"choose one of: {others} (metric=<name>)"
            )
        return replace(self, task=task, classes=tuple(str(name) for name in classes))

    def class_name(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else str(index)

    def mean_of_classes(self, values: np.ndarray, reason: str, first: int = 0) -> float:
        """Mean of (C,) values from class `first` on, without the NaN ones: a warning names them with the `reason`."""
        missing = [self.class_name(first + index) for index in np.flatnonzero(np.isnan(values[first:])).tolist()]
        scored = len(values) - first
        if missing:
            _warn(f"{type(self).__name__} leaves out {len(missing)} of {scored} classes ({reason}): {_some(missing)}")
        return float(np.nanmean(values[first:])) if len(missing) < scored else float("nan")


@dataclass(frozen=True, kw_only=True)
class ClassificationMetric(Metric):
    """A metric of (N, C) targets and probabilities."""

    def __call__(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:
        """The score; NaN with a warning when there are no rows or a probability is not finite.

        Raises:
            ValueError: shapes differ, or `for_task` was not called.
        """
        target, probability = np.asarray(target, np.float64), np.asarray(probability, np.float64)
        if self.task is None:
            raise ValueError(f"{type(self).__name__} does not know its task; call metric.for_task(task, classes) first")
        if target.ndim != 2 or target.shape != probability.shape:
            raise ValueError(f"targets {target.shape} and probabilities {probability.shape} are not both (N, C)")
        weight = np.ones(len(target)) if weight is None else np.asarray(weight, np.float64)
        if weight.shape != (len(target),):
            raise ValueError(f"{len(target)} targets have weights of shape {weight.shape}")
        if not np.isfinite(probability).all():
            rows = int((~np.isfinite(probability).all(axis=1)).sum())
            return _undefined(f"{type(self).__name__}: {rows} of {len(target)} rows have NaN or infinite probabilities")
        if weight.sum() <= 0:
            return _undefined(f"{type(self).__name__} of no rows (or of weights that are all zero) does not exist")
        return float(self._score(target, probability, weight))

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        raise NotImplementedError

    def hard(self, values: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """(N, C) bool: the largest class of each row (the first of equals), or every class from the threshold on."""
        if self.task == "multilabel":
            return values >= threshold
        return np.arange(values.shape[1]) == values.argmax(axis=1)[:, None]


@dataclass(frozen=True, kw_only=True)
class Accuracy(ClassificationMetric):
    """Share of rows whose most probable class is the true one."""

    tasks = ("multiclass",)

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        return float(np.average(target.argmax(axis=1) == probability.argmax(axis=1), weights=weight))


@dataclass(frozen=True, kw_only=True)
class LogLoss(ClassificationMetric):
    """Cross-entropy of a row; for multi-label the mean binary cross-entropy over the classes. Lower is better.

    Probabilities are clipped at 1e-15 from 0 and 1, as competitions do, so that one sure mistake is not infinite.
    """

    greater_is_better = False

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        probability = probability.clip(1e-15, 1 - 1e-15)
        if self.task == "multilabel":
            loss = -(target * np.log(probability) + (1 - target) * np.log1p(-probability)).mean(axis=1)
        else:
            loss = -(target * np.log(probability)).sum(axis=1)
        return float(np.average(loss, weights=weight))


@dataclass(frozen=True, kw_only=True)
class MacroF1(ClassificationMetric):
    """F1 of each class, averaged over the classes that occur in the truth or in the answers.

    Answers are the most probable class, or for multi-label every class from `threshold` on.
    """

    threshold: float = 0.5

    def per_class(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(C,) F1; NaN for a class that occurs neither in the truth nor in the answers."""
        true, answer = self.hard(target), self.hard(probability, self.threshold)
        both = weight @ true + weight @ answer
        return np.divide(2 * (weight @ (true & answer)), both, out=np.full(len(both), np.nan), where=both > 0)

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        return self.mean_of_classes(self.per_class(target, probability, weight), "neither in the truth nor answered")


@dataclass(frozen=True, kw_only=True)
class FBeta(ClassificationMetric):
    """F-beta of each row's set of labels, averaged over the rows (Planet: beta 2).

    (1 + b²) tp / (answered + b² true). An empty truth met by an empty answer scores 1, since nothing was wrong;
    competitions differ here (scikit-learn gives 0), so check yours.
    """

    beta: float = 2.0
    threshold: float = 0.5
    tasks = ("multilabel",)

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        true, answer = self.hard(target), self.hard(probability, self.threshold)
        square = self.beta**2
        below = answer.sum(axis=1) + square * true.sum(axis=1)
        above = (1 + square) * (true & answer).sum(axis=1)
        return float(np.average(np.divide(above, below, out=np.ones(len(below)), where=below > 0), weights=weight))


@dataclass(frozen=True, kw_only=True)
class RocAuc(ClassificationMetric):
    """Area under the ROC curve of each class against the rest, averaged over the classes; for two classes, the AUC."""

    pooled = False

    def per_class(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(C,) AUC; NaN for a class that all rows have, or none."""
        from sklearn.metrics import roc_auc_score

        true, weighted = self.hard(target), weight > 0
        both = [true[weighted, c].any() and not true[weighted, c].all() for c in range(true.shape[1])]
        return np.array(
            [
                roc_auc_score(true[:, c], probability[:, c], sample_weight=weight) if both[c] else np.nan
                for c in range(true.shape[1])
            ]
        )

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        return self.mean_of_classes(self.per_class(target, probability, weight), "all rows have it, or none")


@dataclass(frozen=True, kw_only=True)
class MeanAveragePrecision(ClassificationMetric):
    """Average precision (the sum of precision over steps of recall) of each class, averaged over the classes."""

    pooled = False

    def per_class(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """(C,) average precision; NaN for a class that no row has."""
        from sklearn.metrics import average_precision_score

        true = self.hard(target)
        occurs = weight @ true > 0
        return np.array(
            [
                average_precision_score(true[:, c], probability[:, c], sample_weight=weight) if occurs[c] else np.nan
                for c in range(true.shape[1])
            ]
        )

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        return self.mean_of_classes(self.per_class(target, probability, weight), "no row has it")


@dataclass(frozen=True, kw_only=True)
class QuadraticKappa(ClassificationMetric):
    """Cohen's kappa with quadratic weights, for classes that are grades in the order of the class list."""

    tasks = ("multiclass",)

    def for_task(self, task: str, classes: Sequence[str]) -> Self:
        """As `Metric.for_task`; refuses numbered classes out of order (sorted as text, 10 comes before 2)."""
        numbers = [int(name) for name in map(str, classes) if name.lstrip("-").isdigit()]
        if len(numbers) == len(classes) and numbers != sorted(numbers):
            ordered = ", ".join(f'"{number}"' for number in sorted(numbers))
            raise ValueError(
                f"quadratic kappa needs the classes in the order of the grades, not {', '.join(map(str, classes))}; "
                f"list them in configs/data: classes: [{ordered}]"
            )
        return super().for_task(task, classes)

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        true, answer, count = target.argmax(axis=1), probability.argmax(axis=1), target.shape[1]
        confusion = np.bincount(true * count + answer, weights=weight, minlength=count**2).reshape(count, count)
        distance = np.subtract.outer(np.arange(count), np.arange(count)) ** 2
        expected = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / confusion.sum()
        if not (distance * expected).sum():
            return _undefined("QuadraticKappa does not exist: the truth and the answers are all one class")
        return float(1 - (distance * confusion).sum() / (distance * expected).sum())


@dataclass(frozen=True, kw_only=True)
class Published(ClassificationMetric):
    """A competition's own `score(solution, submission, row_id_column_name) -> float`, as they are published.

    Both tables have the column of row ids (the row numbers) and either one column a class (targets and
    probabilities; `column` null) or one `column` of answers: the class name, or for multi-label the blank-separated
    names of the classes from `threshold` on. Sample weights take no part: published functions have none.

    Args:
        function: the function, or its dotted path (`my_metric.score` for my_metric.py in the repository's root).
    """

    function: str | Callable[[Any, Any, str], float]
    row_id_column_name: str = "id"
    column: str | None = None
    threshold: float = 0.5
    greater_is_better: bool = True
    pooled: bool = True

    def for_task(self, task: str, classes: Sequence[str]) -> Self:
        """As `Metric.for_task`; also tries the function on a made-up table, so that it does not fail after training.

        Raises:
            ValueError: the function is not there, or fails on four rows a class with uniform probabilities.
        """
        ready = super().for_task(task, classes)
        target = np.tile(np.eye(len(classes)), (4, 1))
        try:
            float(ready._call(target, np.full_like(target, 1 / len(classes))))
        except Exception as error:
            raise ValueError(
                f"the published metric {self.function} fails on a made-up table with the classes "
                f"{_some(list(map(str, classes)))}: {type(error).__name__}: {error}"
            ) from error
        return ready

    def _call(self, target: np.ndarray, probability: np.ndarray) -> float:
        function = _import(self.function) if isinstance(self.function, str) else self.function
        return function(self._table(target), self._table(probability), self.row_id_column_name)

    def _table(self, values: np.ndarray) -> Any:
        import pandas as pd

        names = [self.class_name(index) for index in range(values.shape[1])]
        if self.column is None:
            frame = pd.DataFrame(values, columns=names)
        else:
            rows = self.hard(values, self.threshold)
            answers = [" ".join(name for name, yes in zip(names, row, strict=True) if yes) for row in rows]
            frame = pd.DataFrame({self.column: answers})
        frame.insert(0, self.row_id_column_name, np.arange(len(values)))
        return frame

    def _score(self, target: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> float:
        try:
            return float(self._call(target, probability))
        except Exception as error:  # the function is somebody else's, and the training behind it is worth keeping
            return _undefined(f"the published metric {self.function} failed: {type(error).__name__}: {error}")


def example_score(solution: Any, submission: Any, row_id_column_name: str) -> float:
    """An example of a published metric: one minus the mean absolute error of the class probabilities."""
    solution, submission = (frame.set_index(row_id_column_name) for frame in (solution, submission))
    return float(1 - (solution - submission.loc[solution.index]).abs().to_numpy().mean())


@dataclass(frozen=True, kw_only=True)
class SegmentationMetric(Metric):
    """A metric of pixel counts; pixels whose mask is `ignore_index` do not count."""

    ignore_index: int = 255
    tasks = ("segmentation",)

    def counts(self, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """(C, 3) int64 pixels of each class: right, answered, true; of a mask (H, W) and probability (C, H, W).

        Raises:
            ValueError: sizes differ, or the mask has a value that is neither a class nor ignored.
        """
        count = len(probability)
        if mask.shape != probability.shape[1:]:
            raise ValueError(f"the mask is {mask.shape} and the prediction {probability.shape[1:]} (height, width)")
        valid = mask != self.ignore_index
        true, answer = mask[valid].astype(np.int64), probability.argmax(axis=0)[valid]
        if true.size and true.max() >= count:
            raise ValueError(f"the mask has the value {true.max()}, and there are {count} classes")
        confusion = np.bincount(true * count + answer, minlength=count**2).reshape(count, count)
        return np.stack([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)], axis=1)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        """The score of (N, C, 3) counts, and (N,) weights of the images."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MeanIoU(SegmentationMetric):
    """Intersection over union of each class over the pixels of all images, averaged over the classes that occur."""

    def per_class(self, counts: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """(C,) IoU; NaN for a class that occurs neither in the truth nor in the answers."""
        right, answered, true = _pool(counts, weight)
        return _ratio(right, answered + true - right)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        return self.mean_of_classes(self.per_class(counts, weight), "neither in the truth nor answered")


@dataclass(frozen=True, kw_only=True)
class Dice(SegmentationMetric):
    """Dice coefficient 2 right / (answered + true) of each class, averaged over the classes.

    Args:
        per_image: False: over the pixels of all images, and classes that occur nowhere are left out. True: for each
            image and class, then averaged; a class that is neither in the image nor answered scores 1 there, as
            competitions that score per image count it.
        background: False leaves out class 0.
    """

    per_image: bool = False
    background: bool = False

    def per_class(self, counts: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """(C,) Dice, class 0 included; NaN for a class that occurs nowhere (not with `per_image`)."""
        if not self.per_image:
            right, answered, true = _pool(counts, weight)
            return _ratio(2 * right, answered + true)
        right, answered, true = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
        each = np.where(answered + true > 0, _ratio(2 * right, answered + true), 1.0)
        return np.average(each, axis=0, weights=weight) if len(each) else np.full(counts.shape[1], np.nan)

    def reduce(self, counts: np.ndarray, weight: np.ndarray | None = None) -> float:
        first = 0 if self.background else 1
        return self.mean_of_classes(self.per_class(counts, weight), "neither in the truth nor answered", first)


def score_folds(
    metric: ClassificationMetric,
    target: np.ndarray,
    probability: np.ndarray,
    folds: np.ndarray,
    weight: np.ndarray | None = None,
) -> tuple[dict[int, float], float]:
    """The score of each fold, and of all folds: over all rows together (pooled), or the mean over the folds.

    Rows of fold -1 are never scored. Folds without a score (NaN) are left out of the mean; the warnings name the fold.
    """

    def score(rows: np.ndarray) -> float:
        return metric(target[rows], probability[rows], None if weight is None else weight[rows])

    return _over_folds(score, metric.pooled, folds)


def score_fold_counts(
    metric: SegmentationMetric, counts: np.ndarray, folds: np.ndarray, weight: np.ndarray | None = None
) -> tuple[dict[int, float], float]:
    """As `score_folds`, of the (N, C, 3) pixel counts of a segmentation metric."""

    def score(rows: np.ndarray) -> float:
        return metric.reduce(counts[rows], None if weight is None else weight[rows])

    return _over_folds(score, metric.pooled, folds)


def _over_folds(
    score: Callable[[np.ndarray], float], pooled: bool, folds: np.ndarray
) -> tuple[dict[int, float], float]:
    folds = np.asarray(folds)
    per_fold = {}
    for fold in sorted(int(fold) for fold in np.unique(folds) if fold >= 0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            per_fold[fold] = score(folds == fold)
        for warning in caught:
            _warn(f"fold {fold}: {warning.message}")
    if pooled:
        return per_fold, score(folds >= 0)
    finite = [value for value in per_fold.values() if np.isfinite(value)]
    return per_fold, float(np.mean(finite)) if finite else float("nan")


def _import(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _pool(counts: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """(3, C) sums over the images."""
    weight = np.ones(len(counts)) if weight is None else np.asarray(weight, np.float64)
    return np.einsum("n,nck->kc", weight, np.asarray(counts, np.float64))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def _undefined(message: str) -> float:
    _warn(message)
    return float("nan")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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
