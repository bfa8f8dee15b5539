"""Made-up rows as metrics and decisions take them."""

import numpy as np
import pandas as pd

from foldwise.predictions.metrics.records import row_records
from foldwise.predictions.scoring import Scored


def records(count: int, **columns: object) -> np.ndarray:
    """So many records with the ids r0, r1, ..."""
    return row_records(pd.DataFrame({"id": [f"r{row}" for row in range(count)]}).assign(**columns))


def scored(target: np.ndarray, probability: np.ndarray, folds: np.ndarray) -> Scored:
    """Rows to decide."""
    return Scored(target, probability, folds, records(len(target)))
