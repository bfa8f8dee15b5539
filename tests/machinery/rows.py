"""Made-up rows as metrics and decisions take them."""

import numpy as np
import pandas as pd

from foldwise.predictions.metrics.base import row_records
from foldwise.predictions.scoring import Scored

# The reader of runs that are made by hand: foldwise's own, which needs no code beside the run.
SAMPLES = {"_target_": "foldwise.data.samples.Samples", "mode": "stored"}


def records(count: int, **columns: object) -> np.ndarray:
    """So many records with the ids r0, r1, ..."""
    return row_records(pd.DataFrame({"id": [f"r{row}" for row in range(count)]}).assign(**columns))


def scored(target: np.ndarray, probability: np.ndarray, folds: np.ndarray) -> Scored:
    """Rows to decide."""
    return Scored(target, probability, folds, records(len(target)))
