"""Predictions of other outputs and tasks as inputs of stacking, for example those of a head."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.errors import refuse_all
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.schema import listed
from foldwise.predictions.sources import Source, find_sources
from foldwise.predictions.store import Predictions, average_members, read_predictions


def read_features(
    folders: Sequence[Path], truth: GroundTruth, oof: str, test: str | None, test_ids: Sequence[str], folds: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Read sources of any task with one row per item: out of fold (N, F) by the table's rows, test (K, T, F).

    Each row's values come from the model that did not see it; the test's from each fold's models.

    Args:
        test_ids, folds: of the test predictions that are combined; empty if there are none.
    """
    out_of_fold, of_test, problems = [], [], []
    for source in find_sources(folders, oof, test):
        found = read_predictions(source.oof)
        problems += _problems(source, found, truth, bool(folds))
        if problems:
            continue
        average = average_members(found.frame, found.columns).set_index("id")
        out_of_fold.append(average.reindex(truth.table.ids)[list(found.columns)].to_numpy(np.float32))
        if folds and source.test is not None:
            frame = read_predictions(source.test).frame
            means = frame.groupby(["fold", "id"])[list(found.columns)].mean()
            wanted = pd.MultiIndex.from_product([folds, test_ids])
            missing = {id for _, id in set(wanted) - set(means.index)}
            problems += listed(f"ids lack a prediction of some fold in {source.test}", missing)
            of_test.append(means.reindex(wanted).to_numpy(np.float32).reshape(len(folds), len(test_ids), -1))
    refuse_all(problems)
    rows = np.hstack([np.zeros((len(truth.table), 0), np.float32), *out_of_fold])
    return rows, np.concatenate([np.zeros((len(folds), len(test_ids), 0), np.float32), *of_test], axis=2)


def _problems(source: Source, found: Predictions, truth: GroundTruth, tests: bool) -> list[str]:
    name = f"--features {source.folder}"
    if found.header.kind != "rows":
        return [f"{name}: its task is {found.header.task}; stacking takes one row of values per item"]
    if found.header.folds_hash not in (None, truth.folds_hash):
        return [f"{name}: it was made with the folds {found.header.folds_hash}, and the folds are {truth.folds_hash}"]
    if tests and source.test is None:
        return [f"{name} has no test predictions, but the sources have: make them with python predict.py"]
    fold_of = dict(zip(found.frame["id"], found.frame["fold"], strict=True))
    scored = {id: fold for id, fold in zip(truth.table.ids, truth.folds.tolist(), strict=True) if fold >= 0}
    problems = listed("rows have no prediction", scored.keys() - fold_of.keys())
    problems += listed(
        "ids are in another fold now", [id for id, fold in scored.items() if fold_of.get(id, fold) != fold]
    )
    return [f"{name}: {problem}" for problem in problems]
