"""Metadata columns of the table as inputs of stacking."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.table import Columns, Table
from foldwise.errors import refuse_all
from foldwise.predictions.ground_truth import GroundTruth, read_test_table
from foldwise.predictions.schema import listed, raise_problems
from foldwise.tasks import TASKS

NOT_METADATA = ("id", "image", "mask", "unit", "group", "fold", "weight")


def read_metadata(
    truth: GroundTruth, names: Sequence[str], test_ids: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode metadata columns as float32: (N, F) for the table's rows, (T, F) for the test ids.

    Numbers are standardised, missing ones filled with the median; texts are one-hot, at most 20 values a column. The
    encoder is fitted on the training table, without its targets.
    """
    if not names:
        return np.zeros((len(truth.table), 0), np.float32), np.zeros((len(test_ids or ()), 0), np.float32)
    tables = [truth.table] if test_ids is None else [truth.table, read_test_table(truth)]
    _check_columns(names, Columns.from_config(truth.config["data"]["columns"]), tables)
    encoder = _encoder(truth.table.frame, names).fit(truth.table.frame)
    encoded = encoder.transform(truth.table.frame).astype(np.float32)
    if test_ids is None:
        return encoded, encoded[:0]
    test = tables[1]
    missing = set(test_ids) - set(test.ids)
    refuse_all(listed(f"predicted ids are not in {test.path}, so their --columns are unknown", missing))
    rows = test.frame.set_index("id", drop=False).loc[list(test_ids)]
    return encoded, encoder.transform(rows).astype(np.float32)


def _check_columns(names: Sequence[str], columns: Columns, tables: Sequence[Table]) -> None:
    declared = [columns.id, columns.image, columns.group, columns.unit, columns.weight, columns.fold]
    target = columns.target or [task.column for task in TASKS.values()]
    targets = [target] if isinstance(target, str) else list(target)
    problems = [f"the column {name} is the target" for name in names if name in targets]
    problems += [
        f"the column {name} identifies or weights rows and tells nothing about new ones"
        for name in names
        if name in declared or name in NOT_METADATA
    ]
    problems += [
        f"{table.path} has no column {name}"
        for table in tables
        for name in names
        if name not in table.frame and name not in NOT_METADATA
    ]
    raise_problems("--columns", problems)


def _encoder(frame: pd.DataFrame, names: Sequence[str]) -> Any:
    """Build the encoder; CSVs are read as text, so a column is numeric if all its values parse as numbers."""
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
