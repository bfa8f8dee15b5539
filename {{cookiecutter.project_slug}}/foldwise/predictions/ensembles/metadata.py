"""Metadata columns of the table as inputs of a second level: numbers scaled, texts as one column a value."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.problems import some
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.tasks import TASKS

NOT_METADATA = ("id", "image", "mask", "unit", "group", "fold", "weight")


def read_metadata(
    truth: GroundTruth, names: Sequence[str], test_ids: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Metadata columns as inputs: of the rows of the table (N, F), and of the test ids (T, F), float32.

    Numbers are scaled to mean 0 and deviation 1, missing ones are the median; text becomes a column a value, of at most
    20 values, the frequent ones. All this is learned from the training table, without its targets.

    Raises:
        Refusal: a column that is not there, that holds a target or is what rows are found by, or test ids that
            data.test_table does not have.
    """
    if not names:
        return np.zeros((len(truth.table), 0), np.float32), np.zeros((len(test_ids or ()), 0), np.float32)
    columns = Columns.from_config(truth.config["data"]["columns"])
    frames = [truth.table.frame]
    if test_ids is not None:
        frames.append(_test_table(truth, columns).frame.set_index("id", drop=False))
    _check_columns(names, columns, truth, frames)
    if test_ids is not None:
        missing = [id for id in test_ids if id not in frames[1].index]
        if missing:
            path = truth.config["data"]["test_table"]
            raise Refusal(f"{len(missing)} predicted ids are not in {path}, which has their --columns: {some(missing)}")
        frames[1] = frames[1].loc[list(test_ids)]
    encoder = _encoder(frames[0], names).fit(frames[0])
    encoded = [encoder.transform(frame).astype(np.float32) for frame in frames]
    return encoded[0], encoded[1] if len(encoded) > 1 else encoded[0][:0]


def _test_table(truth: GroundTruth, columns: Columns) -> Table:
    data = truth.config["data"]
    if data["test_table"] is None:
        raise Refusal("--columns needs the test table's columns as well, and data.test_table is null")
    return read_table(data["test_table"], truth.task.name, data["root"], columns, truth.table.classes, has_target=False)


def _check_columns(names: Sequence[str], columns: Columns, truth: GroundTruth, frames: Sequence[pd.DataFrame]) -> None:
    declared = [columns.id, columns.image, columns.group, columns.unit, columns.weight, columns.fold]
    target = columns.target or [task.column for task in TASKS.values()]
    targets = [target] if isinstance(target, str) else list(target)
    problems = [f"the column {name} is the target" for name in names if name in targets]
    problems += [
        f"the column {name} says which row it is, and nothing about new ones"
        for name in names
        if name in declared or name in NOT_METADATA
    ]
    tables = [truth.table.path, truth.config["data"]["test_table"]]
    problems += [
        f"{path} has no column {name}"
        for path, frame in zip(tables, frames, strict=False)
        for name in names
        if name not in frame and name not in NOT_METADATA
    ]
    if problems:
        raise Refusal("--columns:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _encoder(frame: pd.DataFrame, names: Sequence[str]) -> Any:
    """What turns the columns into numbers; a CSV is read as text, so numbers are columns that all read as such."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

    present = frame[list(names)].replace("", np.nan)
    numeric = [name for name in names if pd.to_numeric(present[name].dropna(), errors="coerce").notna().all()]
    texts = [name for name in names if name not in numeric]
    numbers = make_pipeline(FunctionTransformer(_to_numbers), SimpleImputer(strategy="median"), StandardScaler())
    values = make_pipeline(
        FunctionTransformer(_to_text),
        OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=20, sparse_output=False),
    )
    return ColumnTransformer([("numbers", numbers, numeric), ("texts", values, texts)])


def _to_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.apply(pd.to_numeric, errors="coerce").astype(np.float64)


def _to_text(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype(object).where(frame.notna(), "").map(str)
