"""The competition's metric, if the built-in ones do not have it (python train.py --help lists them).

Paste the published code here, as a function score(solution, submission, row_id_column_name), and select it with

    python train.py metric=published metric.function=solution.metric.score metric.greater_is_better=false
"""

import numpy as np
import pandas as pd


def score(solution: pd.DataFrame, submission: pd.DataFrame, row_id_column_name: str) -> float:
    """Example: one minus the mean absolute error of the class probabilities."""
    solution, submission = (frame.set_index(row_id_column_name) for frame in (solution, submission))
    return float(1 - np.abs(solution - submission.loc[solution.index]).to_numpy().mean())
