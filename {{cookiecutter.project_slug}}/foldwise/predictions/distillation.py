"""Distillation: soft targets for the training images, from teachers that saw neither the image nor the scored fold.

The student of fold k is scored on fold k, so its teachers must not have seen fold k's labels. And a teacher that was
trained on an image only repeats its label. So for the student of fold k, an image of fold j is predicted by the model
trained without both folds (`train.py fold=pairs`). The full fit is not scored; it gets plain out-of-fold predictions.

The targets are a table of pseudo labels, see predictions/pseudo/labelling.py. With a share of 0.5, the loss is half on
teacher targets and half on ground truth, as in Hinton et al. (2015, arXiv:1503.02531) with temperature 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.holdout import FULL, choose_holdouts
from foldwise.data.problems import some
from foldwise.data.pseudo import ROW, STUDENT, provenance_path, student_name
from foldwise.errors import Refusal, refuse_all
from foldwise.files import sha256_file, write_atomic, write_json
from foldwise.predictions.ground_truth import GroundTruth, mismatches, read_ground_truth
from foldwise.predictions.pseudo.labelling import COLUMNS
from foldwise.predictions.pseudo.rules import check_output, class_problems, confidence, write_table
from foldwise.predictions.pseudo.teachers import IDENTITY, check_probabilities, run_problems
from foldwise.predictions.store import average_members, read_predictions
from foldwise.shell import command, override


def distill(runs: Sequence[Path], out: Path, weight: float = 1.0) -> list[dict[str, Any]]:
    """Write the soft targets of every student and their provenance, both or neither.

    Args:
        runs: folders made by train.py with `fold=pairs`, to average. If all have out-of-fold predictions too, there
            are also targets for the full fit.
        out: the .csv or .parquet file to write.
        weight: of each row in the loss; real rows have 1.

    Returns:
        Per student: its name in the table, the number of rows, and the sum of the targets of each class.
    """
    check_output(out, weight)
    refuse_all(problem for run in runs for problem in run_problems(run))
    truth = read_ground_truth(runs[0])
    check_probabilities(truth)
    if truth.task.kind == "maps":
        raise Refusal("masks have no soft targets: distill.py is only for classes of whole images")
    folds = truth.scored_folds
    students = folds + [FULL] * all((run / "oof").is_dir() for run in runs)
    shards = {(run, student): _shards(run, student, folds) for run in runs for student in students}
    problems = class_problems(list(truth.table.classes), COLUMNS)
    pairs = [pair.name for pair in choose_holdouts("pairs", folds)]
    for run in runs:
        if missing := [pair for pair in pairs if not (run / pair / "metrics.json").is_file()]:
            advice = f"train them with {command('python', 'train.py', override('run', str(run)), 'fold=pairs')}"
            problems.append(f"{run} lacks the teachers {some(missing)}; {advice}")
    if not problems:
        problems = [
            f"{shard}: {problem}"
            for shard in sorted({shard for found in shards.values() for shard in found})
            for problem in mismatches(read_predictions(shard).header, truth, "oof")
        ]
    refuse_all(problems)
    targets = [_targets(truth, student, [shards[run, student] for run in runs], weight) for student in students]
    frames, summaries = [frame for frame, _ in targets], [summary for _, summary in targets]
    origin = {
        "created_by": "distill.py",
        "task": truth.task.name,
        "classes": list(truth.table.classes),
        "folds_hash": truth.folds_hash,
        "runs": [{"folder": str(run), "identity": sha256_file(run / IDENTITY)[:16]} for run in runs],
        "weight": weight,
        "students": summaries,
    }
    with write_atomic(out) as table_file, write_atomic(provenance_path(out)) as origin_file:
        write_table(table_file, pd.concat(frames, ignore_index=True))
        write_json(origin_file, origin)
    return summaries


def _targets(
    truth: GroundTruth, student: int, shards_of_runs: Sequence[Sequence[Path]], weight: float
) -> tuple[pd.DataFrame, dict[str, Any]]:
    table, classes = truth.table, list(truth.table.classes)
    rows = np.flatnonzero((truth.folds >= 0) & (truth.folds != student))
    ids = [table.ids[row] for row in rows]
    predicted = np.mean([_teach(shards, student, classes).loc[ids] for shards in shards_of_runs], axis=0)
    if truth.task.exclusive:
        predicted /= predicted.sum(axis=1, keepdims=True)  # stored predictions sum to 1 only approximately
    frame = table.frame.iloc[rows][["id", "image"]].reset_index(drop=True)
    frame = frame.assign(
        **{ROW: f"{student_name(student)}/" + frame["id"], STUDENT: student_name(student), "weight": weight}
    )
    frame["confidence"] = confidence(predicted, truth.task.exclusive).astype(np.float32)
    targets = pd.DataFrame(predicted.astype(np.float32), columns=classes)
    summary = {
        STUDENT: student_name(student),
        "rows": len(rows),
        "classes": dict(zip(classes, predicted.sum(axis=0).tolist(), strict=True)),
    }
    return frame[list(COLUMNS)].join(targets), summary


def _teach(shards: Sequence[Path], student: int, classes: Sequence[str]) -> pd.DataFrame:
    """Average the teachers' predictions by id, for rows outside the student's fold."""
    frame = pd.concat([read_predictions(shard).frame for shard in shards])
    return average_members(frame[frame["fold"] != student], classes).set_index("id")


def _shards(run: Path, student: int, folds: Sequence[int]) -> list[Path]:
    """List the predictions that teach a student: of all pairs with its fold, or out-of-fold for the full fit."""
    if student == FULL:
        return [run / "oof"]
    pairs = [pair for pair in choose_holdouts("pairs", list(folds)) if student in pair.folds]
    return [shard for pair in pairs for shard in sorted((run / pair.name).glob("oof-*-of-*"))]
