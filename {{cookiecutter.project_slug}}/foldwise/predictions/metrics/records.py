"""Records of scored rows: what a metric can know of them beside targets and predictions.

A record has `id` and the table's columns as fields, so `records["patient"]` is one column of all rows. Ids are text;
those of units are the units' names.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def row_records(frame: "pd.DataFrame") -> np.ndarray:
    """(N,) records of the rows of a table's frame, or (U,) of its units, by their first rows."""
    if "unit" in frame:
        frame = frame.assign(id=frame["unit"]).drop_duplicates("id")
    return frame.to_records(index=False)


def repeat_records(records: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The records with these numbers (M,), in their order; a row that comes again has the id `<id>#1`, `<id>#2`, ..."""
    result = records[rows].copy()
    order = np.argsort(rows, kind="stable")
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    copy = np.empty(len(rows), np.int64)
    copy[order] = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
    again = copy > 0
    result["id"][again] = [f"{id}#{number}" for id, number in zip(result["id"][again], copy[again], strict=True)]
    return result
