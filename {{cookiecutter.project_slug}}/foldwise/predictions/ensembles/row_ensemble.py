"""Ensembles of rows: everything that is fitted is cross-fitted on the folds."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.predictions.ensembles.blending import RANK
from foldwise.predictions.ensembles.comparing import Comparison, Strict, choose
from foldwise.predictions.ensembles.examples import Examples, Fitted, Method
from foldwise.predictions.ensembles.joining import check_tests, output_header, predicted_folds, read_oof
from foldwise.predictions.ensembles.metadata import read_metadata
from foldwise.predictions.ensembles.thresholding import has_threshold, score_thresholded
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.metrics import score_folds
from foldwise.predictions.schema import Header
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.sources import Source
from foldwise.predictions.store import read_predictions, write_predictions
from foldwise.progress import Progress


@dataclass(frozen=True)
class CrossFit:
    """A method on rows of several folds: what it says of each row, (N, C), and what was fitted for each fold."""

    probability: np.ndarray
    fitted: dict[int, Fitted]


class RowEnsemble:
    """The members' predictions of the rows of the table, and of the test ids where there are such.

    Raises:
        Refusal: sources that do not go together, each by its name.
    """

    def __init__(
        self, sources: Sequence[Source], names: Sequence[str], truth: GroundTruth, columns: Sequence[str]
    ) -> None:
        self.sources, self.names, self.truth = sources, list(names), truth
        rows, probability = read_oof(sources, truth)
        self.test_ids = check_tests(sources, truth)
        test = sources[0].test
        self.test_folds = [] if test is None else predicted_folds(test)
        extra, self.test_extra = read_metadata(truth, columns, self.test_ids)
        folds = truth.folds[rows]
        self.folds = np.unique(folds).tolist()
        self.thresholded = has_threshold(truth.metric)
        scored = [self._score_rows(rows, member, folds) for member in probability]
        self.member_scores = np.array([[per_fold[fold] for fold in self.folds] for per_fold, _ in scored])
        self.member_overall = np.array([overall for _, overall in scored])
        each = dict(zip(self.folds, self.member_scores.T, strict=True))
        self.examples = Examples(truth.table, truth.metric, rows, folds, probability, extra[rows], each)
        self.results: dict[str, CrossFit] = {}

    def compare(self, methods: Sequence[Method], forced: str | None, strict: bool, progress: Progress) -> Comparison:
        """Cross-fit every method and score it.

        Args:
            forced: the method to write whatever the scores say; None chooses.
            strict: also choose and fit without a fold, for every fold, and score there.
            progress: is called after each method and fold.
        """
        folds = len(self.folds)
        fits = count(1)
        total = len(methods) * folds * (folds if strict else 1)

        def fitted(what: str) -> None:
            progress(what, next(fits), total)

        self.results = cross_fit(self.examples, methods, fitted)
        scored = [self._score(self.examples, self.results[method.name].probability) for method in methods]
        return Comparison(
            metric=self.truth.metric,
            folds=self.folds,
            members=self.names,
            member_scores=self.member_scores,
            member_overall=self.member_overall,
            names=[method.name for method in methods],
            titles=[method.title for method in methods],
            scores=np.array([scores for scores, _ in scored]),
            overall=np.array([overall for _, overall in scored]),
            weights=[self._weights(method) for method in methods],
            correlation=error_correlation(self.examples.probability, self.examples.target),
            forced=forced,
            thresholded=self.thresholded,
            strict=self._strict(methods, forced, fitted) if strict else None,
        )

    def write(self, method: Method, oof: Path, test: Path | None, run: str) -> None:
        """Write the cross-fitted predictions of the rows, and each fold's method applied to its models' test ones.

        To models of every row is applied what is fitted on all folds.
        """
        header = output_header(self.truth, run, "rank" if method is RANK else "arithmetic")
        ids = self.truth.table.frame["id"].to_numpy()[self.examples.rows].tolist()
        result = self.results[method.name]
        write_predictions(oof, _rows(ids, self.examples.folds, result.probability, header), header)
        if test is None or self.test_ids is None:
            return
        frames = []
        with tempfile.TemporaryDirectory() as scratch:
            members = self._read_tests(Path(scratch) / "test.npy")
            for place, fold in enumerate(self.test_folds):
                fitted = result.fitted.get(fold) or method.fit(self._without(fold))
                probability = fitted.predict(members[place], self.test_extra)
                frames.append(_rows(self.test_ids, fold, probability, header))
            del members  # Windows does not delete a file that is mapped
        write_predictions(test, pd.concat(frames), replace(header, split="test"))

    def _without(self, fold: int) -> Examples:
        return self.examples.take([other for other in self.folds if other != fold])

    def _score(self, examples: Examples, probability: np.ndarray) -> tuple[list[float], float]:
        """The score of each fold, and overall."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that a fold lacks: the members have said it
            per_fold, overall = self._score_rows(examples.rows, probability, examples.folds)
        return list(per_fold.values()), overall

    def _score_rows(
        self, rows: np.ndarray, probability: np.ndarray, folds: np.ndarray
    ) -> tuple[dict[int, float], float]:
        scorer = score_thresholded if self.thresholded else score_folds
        return scorer(self.truth.metric, *by_unit(self.truth.table, rows, probability, folds))

    def _weights(self, method: Method) -> np.ndarray | None:
        fitted = self.results[method.name].fitted
        return np.array([fitted[fold].weights for fold in self.folds]) if fitted else None

    def _strict(self, methods: Sequence[Method], forced: str | None, fitted: Callable[[str], None]) -> Strict:
        """Choose among the methods without a fold, and score there what was chosen; what is fitted for a fold never
        saw it, so its predictions are those of the cross-fit."""
        probability, chosen = np.empty_like(self.results["mean"].probability), []
        for held in self.folds:
            inner = self._without(held)
            results = cross_fit(inner, methods, fitted)
            scores = np.array([self._score(inner, results[method.name].probability)[0] for method in methods])
            best = forced or methods[choose(scores, inner.metric)].name
            which = self.examples.folds == held
            probability[which] = self.results[best].probability[which]
            chosen.append(best)
        return Strict(*self._score(self.examples, probability), chosen)

    def _read_tests(self, path: Path) -> np.ndarray:
        """(K, M, T, C) float32 in a file: of every fold, each member's test predictions averaged over its snapshots."""
        assert self.test_ids is not None
        classes = self.truth.table.classes
        shape = (len(self.test_folds), len(self.sources), len(self.test_ids), len(classes))
        members = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        ids = pd.Index(self.test_ids)
        for number, source in enumerate(self.sources):
            assert source.test is not None
            frame = read_predictions(source.test).frame
            place = np.searchsorted(self.test_folds, frame["fold"]) * len(ids) + ids.get_indexer(frame["id"])
            rows = np.bincount(place)
            for index, name in enumerate(classes):
                total = np.bincount(place, weights=frame[name])
                members[:, number, :, index] = (total / rows).reshape(len(self.test_folds), len(ids))
        return members


def cross_fit(examples: Examples, methods: Sequence[Method], fitted: Callable[[str], None]) -> dict[str, CrossFit]:
    """Fit each method on all folds but one and predict that one, for every fold.

    What a second level fitted is not kept (a forest of each class and fold can be larger than the data); what has
    weights is.
    """
    shape = examples.probability.shape[1:]
    results = {method.name: CrossFit(np.empty(shape, np.float32), {}) for method in methods}
    folds = sorted(examples.member_scores)
    for fold in folds:
        train, held = examples.take([other for other in folds if other != fold]), examples.take([fold])
        for method in methods:
            model, result = method.fit(train), results[method.name]
            result.probability[examples.folds == fold] = model.predict(held.probability, held.extra)
            if model.weights is not None:
                result.fitted[fold] = model
            fitted(f"{method.title}, fold {fold}")
    return results


def error_correlation(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(M, M) Pearson correlation of the members' errors (probability - target) over all rows and classes.

    Of errors and not of probabilities, which agree already because the truth is in all of them.
    """
    members, rows, classes = probability.shape
    products, totals = np.zeros((members, members)), np.zeros(members)
    for index in range(classes):  # a class at a time: no second copy of all members
        errors = probability[:, :, index] - target[:, index].astype(np.float32)
        products += errors @ errors.T
        totals += errors.sum(axis=1, dtype=np.float64)
    covariance = products / (rows * classes) - np.outer(totals, totals) / (rows * classes) ** 2
    deviation = np.sqrt(np.maximum(covariance.diagonal(), 1e-12))
    return (covariance / np.outer(deviation, deviation)).clip(-1, 1)


def _rows(ids: Sequence[str], fold: np.ndarray | int, probability: np.ndarray, header: Header) -> pd.DataFrame:
    frame = pd.DataFrame({"id": ids, "fold": fold, "snapshot": "mean", "view": "mean"})
    return pd.concat([frame, pd.DataFrame(probability, columns=header.columns)], axis=1)
