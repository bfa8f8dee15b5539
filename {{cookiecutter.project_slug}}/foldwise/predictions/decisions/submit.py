"""Turn a source's predictions into a submission file and a ledger entry (`submit.py make`)."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import check_new
from foldwise.predictions.boxes import Boxes, found_boxes, merge, picture_sides
from foldwise.predictions.decisions.deciding import (
    Chosen,
    Decision,
    Outcome,
    bayes_notes,
    choose_decision,
)
from foldwise.predictions.decisions.layers import choose_masks, class_sums, shares_of
from foldwise.predictions.decisions.ledger import read_ledger, record
from foldwise.predictions.decisions.material import Material, open_material
from foldwise.predictions.decisions.naming import choose_naming, name_images, share_of_new
from foldwise.predictions.decisions.presence import Presence, read_presence
from foldwise.predictions.decisions.rules import takes_values
from foldwise.predictions.decisions.submission import write_masks, write_table
from foldwise.predictions.evaluation.evidence import gather_boxes
from foldwise.predictions.ground_truth import align, read_test_table
from foldwise.predictions.metrics import score_fold_evidence
from foldwise.predictions.scoring import by_unit
from foldwise.predictions.search import Found, search_test
from foldwise.predictions.store import average_members, iter_average_maps
from foldwise.progress import Progress, silent, stepping


class Submission(NamedTuple):
    """A submission that was written and recorded.

    Attributes:
        chosen: its `shares` include the test answers; `shared` describes them.
        notes: warnings to print.
    """

    path: Path
    ledger: Path
    metric: str
    classes: list[str]
    chosen: Chosen
    shared: str
    notes: list[str]


def make_submission(
    source: Path,
    *,
    oof: str = "oof",
    test: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    sample: Path | None = None,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    decision: str | None = None,
    exclusive: Sequence[Sequence[str]] | None = None,
    sums: Sequence[Sequence[str]] = (),
    presence: Path | None = None,
    out: Path | None = None,
    ledger: Path = Path("submissions.csv"),
    progress: Progress = silent,
) -> Submission:
    """Choose post-processing out of fold, apply it to the test predictions, write the file and record it.

    Args:
        source, oof, test: predictions, see `sources.find_sources`.
        data, overrides: ground truth of a source without config.yaml, see `ground_truth.read_ground_truth`.
        sample: the competition's sample submission.
        kind, options: the format, see `material.choose_layout`.
        decision: name of the method; None: the simplest within one standard error of the best.
        exclusive, sums: see `deciding.choose_decision`.
        presence: for masks, a source that predicts which classes an image has, see `presence`.
        out: the file to write; None: `submissions/<source>-<test>` with the format's suffix.
    """
    recorded = read_ledger(ledger)["file"].tolist()  # first, to fail early on a damaged ledger
    material = open_material(source, oof, test, data, overrides, sample, kind, options or {})
    truth, metric = material.truth, material.truth.metric
    name = f"{material.source.name}-{material.test.folder.name}{material.layout.suffix}"
    out = out or Path("submissions") / name
    check_new(out)
    if out.as_posix() in recorded:
        raise Refusal(f"{ledger} already lists {out}, which no longer exists: choose another name with --out")
    notes = material.notes
    if presence is not None and truth.task.kind != "maps":
        raise Refusal(f"--presence is for masks, but the task is {truth.task.name}")
    if truth.task.kind == "maps":
        found = presence and read_presence(presence, truth, oof, test, (material.oof, material.test))
        chosen = _write_masks(material, out, decision, found or (None, None), progress)
        shared = "share of pixels of each class: out of fold from one model an image, test from the average of several"
    elif truth.task.kind == "vectors":
        chosen = _write_names(material, out, decision)
        shared = "share of images named new first: out of fold by one model an image, test by the mean of several"
        if not chosen.shares["ground truth"][0]:
            notes.append("Out of fold no individual is new, so no threshold was fitted and no test image is named new.")
    elif truth.task.kind == "boxes":
        chosen = _write_boxes(material, out, decision)
        shared = "boxes a picture of each class"
    else:
        chosen = _write_rows(material, out, decision, exclusive, sums, progress)
        what = "mean value" if takes_values(metric) else "share of positives"
        shared = f"{what} of each class: out of fold from one model a row, test from the average of several"
        notes += [f"{note}." for note in bayes_notes(chosen.outcomes, metric.greater_is_better)]
    outcome = chosen.outcome
    record(
        ledger,
        file=out.as_posix(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        source=source.as_posix(),
        run=material.oof.header.run,
        oof=material.oof.folder.name,
        test=material.test.folder.name,
        format=material.layout.name,
        decision=chosen.decision,
        metric=metric.name,
        greater_is_better=metric.greater_is_better,
        folds=truth.folds_hash,
        oof_score=repr(outcome.overall) if np.isfinite(outcome.overall) else "",
        fold_scores=" ".join(map(repr, outcome.scores)),
    )
    classes = ["new", "known"] if truth.task.kind == "vectors" else list(truth.table.classes)
    return Submission(out, ledger, metric.name, classes, chosen, shared, notes)


def _write_rows(
    material: Material,
    out: Path,
    decision: str | None,
    exclusive: Sequence[Sequence[str]] | None,
    sums: Sequence[Sequence[str]],
    progress: Progress,
) -> Chosen:
    truth, ranks = material.truth, material.oof.header.ranks
    rows, predicted = align(material.oof, truth)
    scored = by_unit(truth.table, rows, predicted, truth.folds[rows])
    chosen = choose_decision(truth.metric, scored, ranks, exclusive, decision, progress, sums)
    fitted: Decision = chosen.decision
    ids, models = _models(material)
    answers = fitted.rule.decide(fitted.average(models))
    single = [fitted.rule.decide(fitted.calibrate(*model)).mean(axis=0) for model in models.items()]
    write_table(out, material.layout.table(ids, answers), material.sample)
    of_test = {"test, one model": np.mean(single, axis=0), f"test, mean of {len(models)}": answers.mean(axis=0)}
    return chosen._replace(shares=chosen.shares | of_test)


def _write_names(material: Material, out: Path, decision: str | None) -> Chosen:
    truth, test, layout = material.truth, material.test, material.layout
    chosen = choose_naming(truth, material.oof, decision)
    naming, ids = chosen.decision, test.frame["id"].drop_duplicates().tolist()

    def find(folds: list[int] | None = None) -> Found:
        return search_test(material.oof, test, truth.table, ids, truth.metric.k, naming.centres, folds)

    found = find()
    answers = name_images(found, naming, layout.written, layout.new)
    write_table(out, layout.table(ids, answers), material.sample)
    single = [share_of_new(naming.place(find([fold])) == 0) for fold in sorted(set(test.frame["fold"]))]
    of_test = {"test, one model": np.mean(single, axis=0), "test": share_of_new(naming.place(found) == 0)}
    return chosen._replace(shares=chosen.shares | of_test)


def _write_boxes(material: Material, out: Path, decision: str | None) -> Chosen:
    """Write the members' boxes, fused; there is nothing to fit: floors are fitted by ensemble.py."""
    truth, layout = material.truth, material.layout
    if decision not in (None, "none"):
        raise Refusal(f"--decision {decision} is not for boxes: their scores are written as they are; leave it out")
    rows = np.flatnonzero(truth.folds >= 0)
    boxes = gather_boxes(material.oof, truth, rows)
    evidence = np.fromiter((truth.metric.measure(true, found) for true, found, _ in boxes), object, len(boxes))
    outcome = Outcome("none", *score_fold_evidence(truth.metric, evidence, truth.folds[rows]), np.zeros(len(rows)))
    answers = {id: merge(members) for id, members in found_boxes(material.test).items()}

    def share(each: Sequence[Boxes]) -> np.ndarray:
        labels = np.concatenate([boxes.label for boxes in each])
        return np.bincount(labels, minlength=len(truth.table.classes)) / len(each)

    shares = {"ground truth": share([true for true, _, _ in boxes]), "out of fold": share([f for _, f, _ in boxes])}
    shares["test"] = share(list(answers.values()))
    if layout.shares:
        table = read_test_table(truth)
        answers = {id: boxes._replace(edges=boxes.edges / picture_sides(table, id)) for id, boxes in answers.items()}
    write_table(out, layout.table(list(answers), list(answers.values())), material.sample)
    return Chosen([outcome], 0, "none", shares)


def _models(material: Material) -> tuple[list[str], dict[int, np.ndarray]]:
    """Return the ids of images or units, and each fold's predictions (U, C), averaged over snapshots and views."""
    models: dict[int, np.ndarray] = {}
    ids: list[str] = []
    for fold, frame in material.test.frame.groupby("fold"):
        average = average_members(frame, material.truth.table.classes).set_index("id")
        if material.units is not None:
            unit, names = pd.factorize(average.index.map(material.units))
            truth = material.truth
            reduced = truth.task.of_units(average.to_numpy(np.float64), unit, truth.table.reduction)
            average = pd.DataFrame(reduced, names, truth.table.classes)
        ids = ids or average.index.tolist()
        models[int(fold)] = average.loc[ids].to_numpy(np.float64)
    return ids, models


def _write_masks(
    material: Material,
    out: Path,
    decision: str | None,
    presence: tuple[Presence | None, Presence | None],
    progress: Progress,
) -> Chosen:
    truth, layout, (of_oof, of_test) = material.truth, material.layout, presence

    def images() -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
        scored = set(np.array(truth.table.ids)[truth.folds >= 0].tolist())
        ids = [id for id in material.oof.frame["id"].unique() if id in scored]
        done = stepping(progress, "cleaning masks out of fold", len(ids))
        for id, probability in iter_average_maps(material.oof, ids):
            row = truth.table.row_of[id]
            yield id, truth.table.read_mask(row), probability, truth.folds[row]
            done()

    chosen = choose_masks(truth.metric, images(), decision, of_oof)
    pixels = np.zeros((2, len(truth.table.classes)))  # of the test, before and after cleaning

    def answers() -> Iterator[tuple[str, bytes]]:
        done = stepping(progress, "cleaning the test masks", material.test.frame["id"].nunique())
        for id, probability in iter_average_maps(material.test):
            present = () if of_test is None else (of_test[id],)
            mask = chosen.decision(probability, *present)
            for row, answer in enumerate((truth.task.answer(probability), mask)):
                pixels[row] += class_sums(answer, pixels.shape[1])
            yield id, layout.encode(mask)
            done()

    write_masks(out, layout, answers(), material.sample)
    shares = dict(zip(("test", "test, cleaned"), shares_of(pixels), strict=True))
    return chosen._replace(shares=chosen.shares | shares)
