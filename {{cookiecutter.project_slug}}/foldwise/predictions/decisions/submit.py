"""From a source's predictions to a submission file and a line in the ledger; what `submit.py make` does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from foldwise.data.images import read_mask
from foldwise.errors import Refusal
from foldwise.files import check_new
from foldwise.predictions.decisions.deciding import Outcome, bayes_notes, choose_decision
from foldwise.predictions.decisions.ledger import read_ledger, record
from foldwise.predictions.decisions.masks import choose_cleaning
from foldwise.predictions.decisions.material import Material, Request, exclusive_columns, open_material
from foldwise.predictions.decisions.rules import takes_values
from foldwise.predictions.decisions.submission import write_masks, write_table
from foldwise.predictions.ground_truth import align
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.store import average_members, iter_average_maps
from foldwise.progress import Progress, silent, stepping


@dataclass(frozen=True)
class Made:
    """The decisions that were compared, and what was written by one of them.

    Attributes:
        outcomes: of all decisions, out of fold; `place` is that of the chosen one.
        decision: it in words.
        notes: what the user should know, a sentence each.
        shares: (C,) of each class, in the truth and in the answers; `shared` says what is shared.
    """

    outcomes: list[Outcome]
    place: int
    decision: str
    shared: str
    shares: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Submission:
    """A submission that was written and noted down."""

    path: Path
    ledger: Path
    metric: str
    classes: list[str]
    made: Made


def make_submission(request: Request, progress: Progress = silent) -> Submission:
    """Compare decisions out of fold, decide the test predictions by the chosen one, write them, note them down.

    Raises:
        Refusal: whatever is wrong with predictions, truth, sample or choices; nothing is written then.
    """
    noted = read_ledger(request.ledger)["file"].tolist()  # a damaged one is said before the work, not after
    material = open_material(request)
    name = f"{material.source.name}-{material.test.folder.name}{material.layout.suffix}"
    out = request.out or Path("submissions") / name
    check_new(out)
    if out.as_posix() in noted:
        raise Refusal(f"{request.ledger} has a submission {out} already, which is gone: take another name with --out")
    make = _make_masks if material.truth.task.kind == "maps" else _make_rows
    made = make(request, material, out, progress)
    metric, outcome = material.truth.metric, made.outcomes[made.place]
    record(
        request.ledger,
        {
            "file": out.as_posix(),
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "source": request.source.as_posix(),
            "run": material.oof.header.run,
            "oof": material.oof.folder.name,
            "test": material.test.folder.name,
            "format": material.layout.name,
            "decision": made.decision,
            "metric": type(metric).__name__,
            "greater_is_better": metric.greater_is_better,
            "folds": material.truth.folds_hash,
            "oof_score": repr(outcome.overall) if np.isfinite(outcome.overall) else "",
            "fold_scores": " ".join(map(repr, outcome.scores)),
        },
    )
    made = replace(made, notes=[*material.notes, *made.notes])
    return Submission(out, request.ledger, type(metric).__name__, list(material.truth.table.classes), made)


def _make_rows(request: Request, material: Material, out: Path, progress: Progress) -> Made:
    """A submission of rows."""
    truth, metric, classes = material.truth, material.truth.metric, list(material.truth.table.classes)
    rows, predicted = align(material.oof, truth)
    scored = by_unit(truth.table, rows, predicted, truth.folds[rows])
    exclusive = exclusive_columns(request.exclusive, classes)
    chosen = choose_decision(metric, scored, material.ranks, exclusive, request.decision, progress)
    outcomes, place, decision = chosen

    ids, models = _models(material, classes)
    answers = decision.rule.decide(decision.average(models))
    alone = [decision.rule.decide(decision.calibrate(*model)).mean(axis=0) for model in models.items()]
    shares = {
        "truth": scored.target.mean(axis=0),
        "out of fold": chosen.outcome.answers.mean(axis=0),
        "test, one model": np.mean(alone, axis=0),
        f"test, mean of {len(models)}": answers.mean(axis=0),
    }
    write_table(out, material.layout.table(ids, answers), material.sample, request.sample)
    what = "mean value" if takes_values(metric) else "share of positives"
    return Made(
        outcomes,
        place,
        str(decision),
        f"{what} of each class: one model a row out of fold, several averaged in the test",
        shares,
        [f"{note}." for note in bayes_notes(outcomes, metric.greater_is_better)],
    )


def _models(material: Material, classes: Sequence[str]) -> tuple[list[str], dict[int, np.ndarray]]:
    """The ids of what is answered, and its (U, C) predictions by each fold's model.

    Snapshots and views are averaged, and the images of a unit.
    """
    models: dict[int, np.ndarray] = {}
    ids: list[str] = []
    for fold, frame in material.test.frame.groupby("fold"):
        average = average_members(frame, classes).set_index("id")
        if material.units is not None:
            average = average.groupby(material.units, sort=False).mean()
        ids = ids or average.index.tolist()
        models[int(fold)] = average.loc[ids].to_numpy(np.float64)
    return ids, models


def _make_masks(request: Request, material: Material, out: Path, progress: Progress) -> Made:
    """A submission of masks, one image at a time."""
    truth, metric, classes = material.truth, material.truth.metric, list(material.truth.table.classes)
    row_of = {id: row for row, id in enumerate(truth.table.ids)}

    def pictures() -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
        done = stepping(progress, "cleaning masks out of fold", material.oof.frame["id"].nunique())
        for id, probability in iter_average_maps(material.oof):
            yield id, read_mask(truth.table.mask_path(row_of[id])), probability, truth.folds[row_of[id]]
            done()

    (outcomes, place, cleaning), counts = choose_cleaning(metric, pictures(), request.decision)
    pixels = np.zeros((2, len(classes)), np.int64)  # of the test, before and after cleaning

    def answers() -> Iterator[tuple[str, bytes]]:
        done = stepping(progress, "masks of the test", material.test.frame["id"].nunique())
        for id, probability in iter_average_maps(material.test):
            mask = cleaning(probability)
            for row, answer in enumerate((probability.argmax(axis=0), mask)):
                pixels[row] += np.bincount(answer.ravel(), minlength=len(classes))
            yield id, material.layout.encode(mask)
            done()

    write_masks(out, material.layout, answers(), material.sample, request.sample)
    images = np.arange(len(counts))
    before, after = (counts[images, outcome.answers].sum(axis=0) for outcome in (outcomes[0], outcomes[place]))
    columns = {
        "truth": after[:, 2],
        "out of fold": before[:, 1],
        "cleaned": after[:, 1],
        "test": pixels[0],
        "test, cleaned": pixels[1],
    }
    shares = {name: count / count.sum() for name, count in columns.items()}
    shared = "share of pixels: one model an image out of fold, several averaged in the test"
    return Made(outcomes, place, str(cleaning), shared, shares)
