"""Adversarial validation: how well a classifier separates train from test.

If it does, they differ (in cameras, locations, years), and out-of-fold scores may not hold for the test.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from foldwise.errors import Refusal

SPLITS = 5
FEWEST = 25  # images per table; with fewer, the interval is useless
MOST = 20_000  # images used per table; enough for an AUC within half a percent
SHRINKAGE = 0.1  # C of the logistic regression, small since there can be more columns than images


class AUC(NamedTuple):
    """AUC with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def within(cls, value: float, error: float) -> "AUC":
        return cls(float(value), float(max(0.0, value - error)), float(min(1.0, value + error)))


def adversarial_validation(
    train: np.ndarray, test: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[AUC, np.ndarray]:
    """Cross-validate a logistic regression that separates `train` (N, D) from `test` (M, D).

    The AUC is the mean over five folds. Its interval is Student's t with the variance of Nadeau and Bengio (2003,
    section 3), var (1 / K + 1 / (K - 1)): the folds share training rows, so the plain variance is too small.

    Groups (N + M,) are not split: recognising a scene would pass for a difference between the tables. The second return
    value is the out-of-fold probability (N,) that a row of `train` is test; NaN if left out of a large table.
    """
    from scipy.stats import t
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(train), len(test)) < FEWEST:
        raise Refusal(f"adversarial validation needs {FEWEST} images in each table, not {len(train)}, {len(test)}")
    rng = np.random.default_rng(0)
    used = [rng.permutation(len(part))[:MOST] for part in (train, test)]
    x = np.concatenate([train[used[0]], test[used[1]]]).astype(np.float64)
    y = np.repeat([0, 1], [len(used[0]), len(used[1])])
    names = np.arange(len(train) + len(test)) if groups is None else pd.factorize(np.asarray(groups, object))[0]
    names = names[np.concatenate([used[0], len(train) + used[1]])]
    probability = np.zeros(len(x))
    aucs = []
    for fit, held in StratifiedGroupKFold(SPLITS, shuffle=True, random_state=0).split(x, y, names):
        if len(np.unique(y[fit])) < 2 or len(np.unique(y[held])) < 2:
            raise Refusal("adversarial validation needs more groups: a fold has images of train only or of test only")
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=SHRINKAGE, class_weight="balanced", max_iter=1000)
        ).fit(x[fit], y[fit])
        probability[held] = model.predict_proba(x[held])[:, 1]
        aucs.append(roc_auc_score(y[held], probability[held]))
    error = np.std(aucs, ddof=1) * np.sqrt(1 / SPLITS + 1 / (SPLITS - 1)) * t.ppf(0.975, SPLITS - 1)
    likeness = np.full(len(train), np.nan)
    likeness[used[0]] = probability[: len(used[0])]
    return AUC.within(np.mean(aucs), error), likeness


def column_aucs(train: pd.DataFrame, test: pd.DataFrame) -> dict[str, AUC]:
    """Compute the AUC of train against test for each common column alone, 0.5 to 1, best first.

    Numbers, also as text, are used as they are. Other text is replaced by each value's share of test rows in the other
    folds, so a column of unique names has an AUC of about 0.5.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    y = np.repeat([0, 1], [len(train), len(test)])
    result = {}
    for name in train.columns.intersection(test.columns):
        values = pd.concat([train[name], test[name]], ignore_index=True)
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
        if np.isfinite(numbers).all():
            auc = roc_auc_score(y, numbers)
            auc = max(auc, 1 - auc)
        else:
            values, aucs = values.astype(str), []
            for fit, held in StratifiedKFold(SPLITS, shuffle=True, random_state=0).split(y, y):
                share = pd.Series(y[fit]).groupby(values.to_numpy()[fit]).mean()
                aucs.append(roc_auc_score(y[held], values.iloc[held].map(share).fillna(y.mean())))
            auc = max(np.mean(aucs), 0.5)  # out of fold, so below 0.5 is chance
        result[str(name)] = auc_interval(float(auc), len(train), len(test))
    return dict(sorted(result.items(), key=lambda item: -item[1].value))


def auc_interval(auc: float, negatives: int, positives: int) -> AUC:
    """Add the interval by the standard error of Hanley and McNeil (Radiology 143, 1982, p. 29) for independent rows."""
    two_positives, two_negatives = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (two_positives - auc**2) + (negatives - 1) * (two_negatives - auc**2)
    error = 1.96 * np.sqrt(max(variance, 0.0) / (negatives * positives))
    return AUC.within(auc, error)


def image_properties(scan: pd.DataFrame) -> pd.DataFrame:
    """Return height, width, file size, mean and std of the images in a scan."""
    values = scan["area"].astype(float) * scan["channels"]
    sums, squares = (scan[name].map(lambda text: sum(map(float, text.split()))) for name in ("sums", "squares"))
    mean = sums / values
    return pd.DataFrame(
        {
            "image height": scan["height"],
            "image width": scan["width"],
            "file size": scan["bytes"].map(lambda text: sum(map(int, text.split(";")))),  # of all files of an item
            "image mean": mean,
            "image std": np.sqrt(np.maximum(squares / values - mean**2, 0)),
        }
    )
