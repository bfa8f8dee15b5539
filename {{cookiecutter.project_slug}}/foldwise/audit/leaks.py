"""Columns of metadata that alone give away the answer or the fold."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from foldwise.audit.adversarial import MOST, SPLITS
from foldwise.data.problems import some
from foldwise.data.samples import Samples
from foldwise.data.table import Table
from foldwise.data.units import Units
from foldwise.tasks import find_task

TELLING = 0.98  # AUC, or R² of numbers
FEWEST = 10  # items of a class, and of the others; with fewer, an AUC says little
MOST_CLASSES = 30  # the most frequent ones
LEAF = 5  # items in a leaf of the tree that predicts the target; that of the fold may split off single items

Splits = Iterable[tuple[np.ndarray, np.ndarray]]  # rows to fit on, rows to predict


def leak_notes(table: Table, samples: Samples, folds: np.ndarray) -> list[str]:
    """Note columns of `Units`' metadata from which a decision tree predicts the items' target or fold almost surely."""
    if not isinstance(samples, Units):
        return []
    chosen = np.random.default_rng(0).permutation(len(table))[:MOST]
    target = None if table.target is None or find_task(table.task).kind != "rows" else table.target[chosen]
    notes = []
    for name in dict.fromkeys([*samples.numbers, *samples.categories]):
        values = _as_numbers(table.frame[name].iloc[chosen])
        if target is not None:
            notes += _target_notes(name, values, table, target, folds[chosen])
        notes += _fold_notes(name, values, folds[chosen])
    return notes


def _target_notes(name: str, values: np.ndarray, table: Table, target: np.ndarray, folds: np.ndarray) -> list[str]:
    task, known = find_task(table.task), ~np.isnan(target).any(axis=1)
    values, target, folds = values[known], target[known].astype(np.float64), folds[known]
    answers = target if task.transforms else task.strata(target)
    columns = np.sort(np.argsort(-answers.sum(axis=0), kind="stable")[: None if task.transforms else MOST_CLASSES])
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds[folds >= 0])]
    scores = _scores(values, answers[:, columns], splits, LEAF, task.transforms)
    told = [f"{table.classes[c]} ({score:.3f})" for c, score in zip(columns, scores, strict=True) if score >= TELLING]
    if not told:
        return []
    return [
        f"warning: the column {name!r} alone tells {some(told)} ({'R²' if task.transforms else 'AUC'} out of fold): if "
        "it is only known once the answer is, leave it out of the metadata"
    ]


def _fold_notes(name: str, values: np.ndarray, folds: np.ndarray) -> list[str]:
    from sklearn.model_selection import StratifiedKFold

    values, folds = values[folds >= 0], folds[folds >= 0]
    numbers, fold = np.unique(folds, return_inverse=True)
    if len(numbers) < 2 or np.bincount(fold).min() < FEWEST:
        return []
    splits = StratifiedKFold(SPLITS, shuffle=True, random_state=0).split(values, fold)
    auc = np.mean(_scores(values, np.eye(len(numbers))[fold], splits, 1, numbers=False))
    if auc < TELLING:
        return []
    return [
        f"warning: the column {name!r} alone tells the fold (AUC {auc:.3f}), so a model is scored on values that it "
        "was not trained on: leave it out of the metadata, unless the values of the test are new as well"
    ]


def _as_numbers(column: pd.Series) -> np.ndarray:
    """Numbers, also as text, NaN where empty; else the code of each value, in alphabetical order."""
    texts = column.astype(str).where(column.notna(), "").str.strip()
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64)
    if np.isnan(numbers[(texts != "").to_numpy()]).any():
        return pd.factorize(texts, sort=True)[0].astype(np.float64)
    return numbers


def _scores(values: np.ndarray, answers: np.ndarray, splits: Splits, leaf: int, numbers: bool) -> list[float]:
    """AUC or R² of each column of answers (N, K), predicted out of sample from values (N,); NaN with too few rows."""
    from sklearn.metrics import r2_score, roc_auc_score
    from sklearn.tree import DecisionTreeRegressor

    predicted = np.full(answers.shape, np.nan)
    for fit, held in splits:
        if len(fit) and len(held):
            tree = DecisionTreeRegressor(min_samples_leaf=leaf, random_state=0).fit(values[fit, None], answers[fit])
            predicted[held] = tree.predict(values[held, None]).reshape(len(held), -1)
    scored = ~np.isnan(predicted).any(axis=1)
    answers, predicted = answers[scored], predicted[scored]
    members = np.full(answers.shape[1], len(answers) / 2) if numbers else answers.sum(axis=0)
    enough = np.minimum(members, len(answers) - members) >= FEWEST
    score = r2_score if numbers else roc_auc_score
    pairs = zip(answers.T, predicted.T, enough, strict=True)
    return [float(score(true, found)) if many else np.nan for true, found, many in pairs]
