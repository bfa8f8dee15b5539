"""The competition's metric, where it is none of configs/metric: the function that the competition published.

    python train.py metric=published metric.function=solution.metric.score metric.greater_is_better=true

A metric that is no such function is a dataclass, see foldwise/predictions/metrics/__init__.py, which says how.
"""

import pandas as pd


def score(solution: pd.DataFrame, submission: pd.DataFrame, row_id_column_name: str) -> float:
    """An example: one minus the mean absolute error of the class probabilities."""
    solution, submission = (frame.set_index(row_id_column_name) for frame in (solution, submission))
    return float(1 - (solution - submission.loc[solution.index]).abs().to_numpy().mean())
