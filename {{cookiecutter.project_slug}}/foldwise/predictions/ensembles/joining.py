"""Sources that belong together: of one task, columns, folds and ids; others are refused by name."""

from collections.abc import Iterator, Sequence

from foldwise.data.holdout import FULL
from foldwise.errors import refuse_all
from foldwise.predictions.ground_truth import GroundTruth, check_predictions, mismatches
from foldwise.predictions.schema import PredictionsError, listed, raise_problems
from foldwise.predictions.sources import Source
from foldwise.predictions.store import Predictions, read_header, read_predictions, size_problems


def check_sources(sources: Sequence[Source]) -> list[str]:
    """The names of the sources: those of their folders, or the whole path where two have one name."""
    problems = [] if len(sources) > 1 else ["an ensemble needs two sources or more"]
    with_test = [source for source in sources if source.test is not None]
    if with_test and len(with_test) < len(sources):
        without = ", ".join(str(source.folder) for source in sources if source.test is None)
        problems.append(
            f"{without}: no test predictions, which {with_test[0].folder} has; python predict.py makes them"
        )
    problems += [
        f"{path}: its values are means of ranks and not probabilities; blend its sources instead"
        for source in sources
        for path in filter(None, (source.oof, source.test))
        if read_header(path).ranks
    ]
    refuse_all(problems)
    names = [source.name for source in sources]
    return [name if names.count(name) == 1 else str(source.folder) for name, source in zip(names, sources, strict=True)]


def iter_checked(sources: Sequence[Source], truth: GroundTruth, test: bool = False) -> Iterator[Predictions]:
    """The out-of-fold predictions of each source, or the test ones, one at a time.

    Raises:
        Refusal: after the last, all that do not belong to the ground truth or to the first.
    """
    problems = []
    first: Predictions | None = None
    for source in sources:
        path = source.test if test else source.oof
        assert path is not None
        try:
            predictions = read_predictions(path)
            first = first or predictions
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
    folds = sorted(set(truth.folds.tolist()) - {-1})
    problems = mismatches(predictions.header, truth, "test")
    found = test_folds(predictions)
    if found not in (folds, [FULL, *folds]):
        problems.append(f"they have the folds {found}, and what is fitted without each of {folds} needs its own model")
    elif found != test_folds(first):
        problems.append(
            f"only they or {first.folder}, but not both, have a full fit (fold {FULL}): predict both with one, or none"
        )
    ids, wanted = set(predictions.frame["id"]), set(first.frame["id"])
    problems += listed(f"ids are missing, compared with {first.folder}", wanted - ids)
    return problems + listed(f"ids are too many, compared with {first.folder}", ids - wanted)


def test_folds(predictions: Predictions) -> list[int]:
    """The folds whose models predicted, FULL first where there is a full fit."""
    return sorted(set(predictions.frame["fold"].tolist()))
