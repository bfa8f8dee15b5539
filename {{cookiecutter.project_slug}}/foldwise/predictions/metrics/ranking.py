"""Metrics of the order in which rows stand for a class. They are averaged over the folds."""

from dataclasses import dataclass

import numpy as np

from foldwise.predictions.metrics.base import RowMetric


@dataclass(frozen=True, kw_only=True)
class RocAuc(RowMetric):
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
class MeanAveragePrecision(RowMetric):
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
