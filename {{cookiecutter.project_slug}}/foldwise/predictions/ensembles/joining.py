"""Checks that sources match: same task, columns, folds and ids."""

from collections.abc import Iterator, Sequence

from foldwise.data.holdout import FULL
from foldwise.errors import refuse_all
from foldwise.predictions.ground_truth import GroundTruth, check_predictions, mismatches
from foldwise.predictions.schema import PredictionsError, listed, raise_problems, some
from foldwise.predictions.sources import Source
from foldwise.predictions.store import Predictions, read_header, read_predictions, size_problems


def check_sources(sources: Sequence[Source], least: int = 2) -> list[str]:
    """Return unique names of the sources; refuse too few, mean ranks, and test predictions of only some."""
    problems = [] if len(sources) >= least else ["an ensemble needs two sources or more"]
    with_test = [source for source in sources if source.test is not None]
    if with_test and len(with_test) < len(sources):
        without = ", ".join(str(source.folder) for source in sources if source.test is None)
        problems.append(
            f"{without}: no test predictions, but {with_test[0].folder} has some; make them with python predict.py"
        )
    problems += [
        f"{path}: these are mean ranks, not probabilities; blend the sources of that ensemble instead"
        for source in sources
        for path in filter(None, (source.oof, source.test))
        if read_header(path).ranks
    ]
    refuse_all(problems)
    names = [source.name for source in sources]
    return [name if names.count(name) == 1 else str(source.folder) for name, source in zip(names, sources, strict=True)]


def iter_checked(sources: Sequence[Source], truth: GroundTruth, test: bool = False) -> Iterator[Predictions]:
    """Read the out-of-fold or test predictions of the sources, one at a time; in the end, refuse all mismatches."""
    problems = []
    first: Predictions | None = None
    for source in sources:
        path = source.test if test else source.oof
        assert path is not None
        try:
            predictions = read_predictions(path)
            first = first or predictions
            if predictions.header.kind == "rows" and predictions.columns != list(truth.table.classes):
                found, expected = some(predictions.columns), some(truth.table.classes)
                advice = f"give a model of other classes with --features {source.folder}, as input of stacking"
                raise_problems(path, [f"their columns are {found}, but the table has {expected}: {advice}"])
            if test:
                raise_problems(path, _test_problems(predictions, truth, first))
            else:
                check_predictions(predictions, truth)
            if predictions.header.kind == "maps":
                raise_problems(path, size_problems(predictions, first))
            yield predictions
        except PredictionsError as error:
            problems.append(str(error))
    refuse_all(problems)


def _test_problems(predictions: Predictions, truth: GroundTruth, first: Predictions) -> list[str]:
    folds = truth.scored_folds
    problems = mismatches(predictions.header, truth, "test")
    found = test_folds(predictions)
    if found not in (folds, [FULL, *folds]):
        problems.append(f"they have the folds {found}, but an ensemble needs the models of all folds {folds}")
    elif found != test_folds(first):
        problems.append(
            f"they or {first.folder} have a full fit (fold {FULL}), but not both: predict both with it or both without"
        )
    ids, expected = set(predictions.frame["id"]), set(first.frame["id"])
    problems += listed(f"ids are missing, compared with {first.folder}", expected - ids)
    return problems + listed(f"ids are not in {first.folder}", ids - expected)


def test_folds(predictions: Predictions) -> list[int]:
    """Sorted folds of the models that predicted; a full fit (FULL) comes first."""
    return sorted(set(predictions.frame["fold"].tolist()))
