"""Names for retrieval: the identities of the nearest images or the nearest centres, with or without "new individual".

An image whose identity is not among those it is searched in is new. "New" is named where the similarity falls below a
threshold. It is fitted out of fold, on images whose identity the other folds do not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foldwise.predictions.decisions.deciding import Chosen, Outcome, check_decision, check_folds, choose
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.metrics import RankMetric, score_fold_evidence
from foldwise.predictions.search import Found, search_oof
from foldwise.predictions.store import Predictions

THRESHOLDS = 200  # tried, at equal shares of the images' best similarities
CENTRES = {"nearest": False, "centres": True}


@dataclass(frozen=True)
class Naming:
    """Names in the order of similarity; `threshold` None: nobody is new."""

    centres: bool = False
    threshold: float | None = None

    def __str__(self) -> str:
        name = "centres" if self.centres else "nearest"
        return name if self.threshold is None else f"{name}+new (below {self.threshold:.3f})"

    def place(self, found: Found) -> np.ndarray:
        """Number of names before "new", (Q,); K if it is not named."""
        if self.threshold is None:
            return np.full(len(found.rows), found.names.shape[1])
        return (found.scores >= self.threshold).sum(axis=1)

    def ranks(self, found: Found) -> np.ndarray:
        """Rank of the right name (Q,), "new" included; of what is not named, beyond any k."""
        nowhere = np.iinfo(np.int64).max
        new = np.full(len(found.rows), nowhere) if self.threshold is None else 1 + self.place(found)
        after = 0 if self.threshold is None else found.own < self.threshold
        return np.where(found.rank > 0, found.rank + after, new)

    def fit(self, metric: RankMetric, found: Found) -> "Naming":
        """Return a copy with the best threshold; of equally good ones the middle."""
        tried = np.quantile(found.scores[:, 0], np.linspace(0, 1, THRESHOLDS))
        scores = [metric.reduce(replace(self, threshold=float(each)).ranks(found)) for each in tried]
        best = np.flatnonzero(np.isclose(scores, np.max(scores), rtol=0, atol=1e-12))
        return replace(self, threshold=float(tried[best[len(best) // 2]]))


def choose_naming(truth: GroundTruth, oof: Predictions, forced: str | None = None) -> Chosen:
    """Compare nearest images and centres, each with and without "new", cross-fitted, and fit the chosen one.

    Without a new individual out of fold there is nothing to fit a threshold on, and "new" is not compared.
    """
    metric = truth.metric
    found = {name: search_oof([oof], truth.table, truth.folds, metric.k, centres) for name, centres in CENTRES.items()}
    folds = truth.folds[found["nearest"].rows]
    check_folds(folds)
    new = found["nearest"].rank == 0
    outcomes, fitted = [], []
    for with_new in (False, True) if new.any() else (False,):
        for name, of_all in found.items():
            naming, ranks = Naming(CENTRES[name]), np.zeros(len(folds), np.int64)
            for fold in np.unique(folds):
                held = folds == fold
                used = naming.fit(metric, of_all.take(~held)) if with_new else naming
                ranks[held] = used.ranks(of_all.take(held))
            fitted.append(naming.fit(metric, of_all) if with_new else naming)
            title = f"{name}+new" if with_new else name
            outcomes.append(Outcome(title, *score_fold_evidence(metric, ranks, folds), ranks))
    check_decision(forced, [outcome.name for outcome in outcomes])
    index = choose(outcomes, metric.greater_is_better, forced)
    of_chosen = found[outcomes[index].name.removesuffix("+new")]
    shares = {"ground truth": share_of_new(new), "out of fold": share_of_new(fitted[index].place(of_chosen) == 0)}
    return Chosen(outcomes, index, fitted[index], shares)


def share_of_new(new: np.ndarray) -> np.ndarray:
    """Shares of new and known images, of a mask (Q,)."""
    return np.array([new.mean(), 1 - new.mean()])


def name_images(found: Found, naming: Naming, classes: Sequence[str], new: str) -> list[list[str]]:
    """Names of each image, best first, at most K."""
    answers = []
    for names, place in zip(found.names, naming.place(found).tolist(), strict=True):
        known = [classes[number] for number in names if number >= 0]
        answers.append([*known[:place], new, *known[place:]][: len(names)] if place < len(names) else known)
    return answers
