"""What the tables for training and those for labelling by hand have in common."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from foldwise.data.problems import some
from foldwise.errors import Refusal


def class_problems(classes: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Classes that cannot have a column of their own name, because the table has one."""
    clash = [name for name in classes if name in columns]
    return [f"a class cannot be called {some(clash)}, which is another column of the table: rename it"] if clash else []


def check_suffix(out: Path) -> None:
    """Refuse a table that is neither CSV nor parquet.

    Raises:
        Refusal: names both.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise Refusal(f"{out}: a table is a .csv or a .parquet file")


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write it in the format that the suffix says."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
