"""Transforms of target numbers: fitted on the training items, saved with the model as plain values, undone in it.

    none        as they are
    standard    mean 0 and std 1
    log1p       log(1 + x), then as standard; for numbers above -1 with a long tail, such as prices
    rank        normal scores of the ranks; for any distribution

Each column has its own. A missing number stays NaN.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from foldwise.errors import Refusal
from foldwise.files import is_number

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, Any]  # name, and per column mean and std, or values and their scores

NAMES = ("none", "standard", "log1p", "rank")
KNOTS = 1000  # most values of a column that are kept to interpolate between


def fit_transform(name: str, target: np.ndarray, columns: list[str]) -> dict[str, Any] | None:
    """Fit a transform to training targets (N, C); None for "none"."""
    if name == "none":
        return None
    known = [column[~np.isnan(column)] for column in target.T.astype(np.float64)]
    missing = [column for column, values in zip(columns, known, strict=True) if not len(values)]
    if missing:
        raise Refusal(f"data.transform={name}: the training rows of a fold have no {', '.join(missing)}")
    if name == "rank":
        knots = [_knots(values) for values in known]
        return {"name": name, "values": [values for values, _ in knots], "scores": [scores for _, scores in knots]}
    low = [column for column, values in zip(columns, known, strict=True) if name == "log1p" and values.min() <= -1]
    if low:
        raise Refusal(f"data.transform=log1p needs numbers above -1, and {', '.join(low)} has others: take standard")
    known = [np.log1p(values) if name == "log1p" else values for values in known]
    std = [float(values.std()) for values in known]
    return {"name": name, "mean": [float(v.mean()) for v in known], "std": [each if each > 0 else 1.0 for each in std]}


def transform(state: State | None, target: np.ndarray) -> np.ndarray:
    """Transform targets (N, C) to what the loss sees, float32."""
    if state is None:
        return target
    values = target.astype(np.float64)
    if state["name"] == "rank":
        knots = zip(values.T, state["values"], state["scores"], strict=True)
        scores = [np.where(np.isnan(v), np.nan, np.interp(v, known, of)) for v, known, of in knots]
        return np.stack(scores, axis=1).astype(np.float32)
    if state["name"] == "log1p":
        with np.errstate(invalid="ignore"):
            values = np.log1p(values)
    return ((values - state["mean"]) / state["std"]).astype(np.float32)


def undo(state: State | None, raw: "Tensor") -> "Tensor":
    """Convert a network's output (B, C) back to the unit of the table, float32."""
    import torch

    if state is None:
        return raw
    values = raw.double()
    if state["name"] == "rank":
        knots = zip(values.T, state["scores"], state["values"], strict=True)
        return torch.stack([_interpolate(v, v.new_tensor(x), v.new_tensor(y)) for v, x, y in knots], 1).float()
    values = values * values.new_tensor(state["std"]) + values.new_tensor(state["mean"])
    return (values.expm1() if state["name"] == "log1p" else values).float()


def is_transform(state: Any, columns: int) -> bool:
    """Check a state that was read from a file."""
    if state is None:
        return True
    lists = [state[key] for key in (("values", "scores") if state["name"] == "rank" else ("mean", "std"))]
    if state["name"] not in NAMES or any(len(each) != columns for each in lists):
        return False
    if state["name"] != "rank":
        return all(map(is_number, [*lists[0], *lists[1]])) and min(lists[1]) > 0
    return all(
        len(values) == len(scores) > 1 and all(map(is_number, [*values, *scores])) and scores == sorted(set(scores))
        for values, scores in zip(*lists, strict=True)
    )


def _knots(values: np.ndarray) -> tuple[list[float], list[float]]:
    """Distinct values, at most `KNOTS`, and the normal scores of their mid-ranks."""
    from scipy.special import ndtri

    distinct, counts = np.unique(values, return_counts=True)
    scores = ndtri((np.cumsum(counts) - counts / 2) / len(values))
    if len(distinct) == 1:
        return [float(distinct[0])] * 2, [0.0, 1.0]
    kept = np.unique(np.linspace(0, len(distinct) - 1, KNOTS).round().astype(int))
    return distinct[kept].tolist(), scores[kept].tolist()


def _interpolate(x: "Tensor", knots: "Tensor", values: "Tensor") -> "Tensor":
    """`numpy.interp` of x (B,) between knots (K,): constant outside of them."""

    # As torch.searchsorted, which has no form in an ONNX graph.
    right = (knots < x.unsqueeze(1)).sum(1).clamp(1, len(knots) - 1)
    share = ((x - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
    return values[right - 1] + share * (values[right] - values[right - 1])
