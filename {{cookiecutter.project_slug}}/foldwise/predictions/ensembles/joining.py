"""What goes together: sources of the same task, columns, folds and ids (others are refused by name), and the output."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foldwise.data.holdout import FULL
from foldwise.errors import Refusal
from foldwise.predictions.ground_truth import GroundTruth, align, mismatches
from foldwise.predictions.schema import Header, PredictionsError, listed, raise_problems
from foldwise.predictions.sources import Source
from foldwise.predictions.store import Predictions, read_header, read_predictions


def check_sources(sources: Sequence[Source]) -> list[str]:
    """The names of the sources: those of their folders, or the whole path where two have one name."""
    problems = [] if len(sources) > 1 else ["an ensemble needs two sources or more"]
    with_test = [source for source in sources if source.test is not None]
    if with_test and len(with_test) < len(sources):
        without = ", ".join(str(source.folder) for source in sources if source.test is None)
        problems.append(
            f"{without}: no test predictions, which {with_test[0].folder} has; python predict.py makes them"
        )
    for source in sources:
        for path in filter(None, (source.oof, source.test)):
            if read_header(path).ranks:
                problems.append(
                    f"{path}: its values are means of ranks and not probabilities; blend its sources instead"
                )
    if problems:
        raise Refusal("\n".join(problems))
    names = [source.name for source in sources]
    return [name if names.count(name) == 1 else str(source.folder) for name, source in zip(names, sources, strict=True)]


def read_oof(sources: Sequence[Source], truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) of the table that are scored, and the members' (M, N, C) float32."""
    scored = np.flatnonzero(truth.folds >= 0)
    probability = np.empty((len(sources), len(scored), len(truth.table.classes)), np.float32)
    problems = []
    for number, source in enumerate(sources):
        try:
            probability[number] = align(read_predictions(source.oof), truth)[1]
        except PredictionsError as error:
            problems.append(str(error))
    if problems:
        raise Refusal("\n".join(problems))
    return scored, probability


def check_tests(sources: Sequence[Source], truth: GroundTruth) -> list[str] | None:
    """The test ids in the order of the first source; None where there are no test predictions.

    Raises:
        Refusal: a source's test predictions do not go with the others or with the folds.
    """
    if sources[0].test is None:
        return None
    ids: list[str] = []
    problems = []
    for source in sources:
        assert source.test is not None
        try:
            predictions = read_predictions(source.test)
            check_test(predictions, truth, sources[0].test, ids)
            ids = ids or predictions.frame["id"].drop_duplicates().tolist()
        except PredictionsError as error:
            problems.append(str(error))
    if problems:
        raise Refusal("\n".join(problems))
    return ids


def check_test(predictions: Predictions, truth: GroundTruth, first: Path, ids: Sequence[str]) -> None:
    """Refuse test predictions of another task, columns or folds, or of other ids than those of the `first` ones.

    Args:
        ids: of the first ones; empty: whatever they are.

    Raises:
        PredictionsError: all that is wrong.
    """
    header, folds = predictions.header, sorted(set(truth.folds.tolist()) - {-1})
    problems = mismatches(header, truth, "test")
    found = sorted(set(predictions.frame["fold"].tolist()))
    if found not in (folds, [FULL, *folds]):
        problems.append(
            f"they have the folds {found}, and a second level of each of {folds} needs its own fold's model"
        )
    elif found != predicted_folds(first):
        problems.append(
            f"only they or {first}, but not both, have a model of every row: predict both with one, or none"
        )
    if ids:
        wanted, found_ids = set(ids), set(predictions.frame["id"])
        problems += listed(f"ids are missing, compared with {first}", wanted - found_ids)
        problems += listed(f"ids are too many, compared with {first}", found_ids - wanted)
    raise_problems(predictions.folder, problems)


def predicted_folds(folder: Path) -> list[int]:
    """The folds whose models made predictions, FULL first where there is one of every row."""
    return sorted({member["fold"] for member in read_header(folder).members})


def output_header(truth: GroundTruth, run: str, mean: str = "arithmetic") -> Header:
    """The header of an ensemble's out-of-fold predictions; `mean` "rank" says that they are not probabilities."""
    return Header(
        split="oof",
        task=truth.task.name,
        columns=truth.table.classes,
        run=run,
        folds_hash=truth.folds_hash,
        tta={"views": ["mean"], "mean": mean},
        created_by="ensemble.py",
    )
