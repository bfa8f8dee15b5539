"""Are probabilities what they say? Reliability diagrams and the expected calibration error.

What is kept are sums for bins of confidence, an array (3, B): how many answers, their summed confidence, and how many
were right. Sums of several images add up, so that maps of pixels are never in memory together.
"""

import numpy as np

BINS = 15  # as in Guo et al. 2017


def reliability_bins(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(3, B) float64: the count, the summed confidence and the summed outcome of each of B equal bins of [0, 1].

    Args:
        confidence: probabilities in [0, 1], of any shape: of the answered class; for multi-label, of every label.
        right: what they are about, of the same shape: whether the answer is right; whether the label is there.
    """
    confidence = np.asarray(confidence, np.float64).ravel()
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    weights = (None, confidence, np.asarray(right, np.float64).ravel())
    return np.stack([np.bincount(place, weights=weight, minlength=bins) for weight in weights]).astype(np.float64)


def expected_calibration_error(sums: np.ndarray) -> float:
    """Mean distance between confidence and share of right answers over the bins, weighted by their counts.

    (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017, equation 3.) NaN without answers.
    """
    count, confidence, right = sums
    return float(np.abs(confidence - right).sum() / count.sum()) if count.sum() else float("nan")


def reliability_curve(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence (B,) and share of right answers (B,) of each bin; NaN where a bin is empty."""
    count, confidence, right = sums
    empty = np.full(len(count), np.nan)
    return (
        np.divide(confidence, count, out=empty.copy(), where=count > 0),
        np.divide(right, count, out=empty.copy(), where=count > 0),
    )
