"""Teachers: runs whose predictions of unlabelled images may become targets of students.

The student of fold k is trained without fold k and scored on it, so no teacher of it may have seen fold k's labels.
Only a run's own fold-k models qualify: they were trained on the other folds (and pseudo labels of student k, if any).
These would leak fold k's labels:

- models of the other folds, which were trained on fold k;
- an ensemble's fold-k member: it was fitted on out-of-fold rows, predicted by models of the other folds;
- checkpoints, restarts or learning rates that were chosen by the validation on fold k.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.config import followers, read_config
from foldwise.data.holdout import GOLD
from foldwise.data.pseudo import same_scene
from foldwise.data.table import Table
from foldwise.errors import Refusal, refuse_all
from foldwise.files import sha256_file
from foldwise.predictions.ground_truth import GroundTruth, mismatches, read_ground_truth, read_test_table
from foldwise.predictions.schema import listed
from foldwise.predictions.sources import Source, find_sources
from foldwise.predictions.store import Predictions, average_members, iter_side_by_side, read_predictions, size_problems
from foldwise.shell import command
from foldwise.tasks import Task

IDENTITY = "identity.json"
UNFITTED = ("predict.py", "average.py")


@dataclass(frozen=True)
class Teachers:
    """Checked runs with predictions of the N unlabelled images in `table` by the models of every fold."""

    sources: list[Source]
    predictions: list[Predictions]
    truth: GroundTruth
    table: Table

    @property
    def classes(self) -> list[str]:
        return list(self.truth.table.classes)

    @property
    def task(self) -> Task:
        return self.truth.task

    @property
    def ignore_index(self) -> int:
        return int(self.truth.config["data"]["ignore_index"])

    @property
    def folds(self) -> list[int]:
        return self.truth.scored_folds

    def probability(self, fold: int | None = None) -> np.ndarray:
        """Average the predictions of the fold's models over runs, snapshots and views, (N, C) float64.

        None averages over all folds, which leaks labels: do not train on it.
        """
        total = np.zeros((len(self.table), len(self.classes)))
        for part in self.predictions:
            frame = part.frame if fold is None else part.frame[part.frame["fold"] == fold]
            total += average_members(frame, self.classes).set_index("id").loc[self.table.ids].to_numpy(np.float64)
        if self.task.exclusive:
            return total / total.sum(axis=1, keepdims=True)  # stored predictions sum to 1 only approximately
        return total / len(self.predictions)

    def maps(self, rows: np.ndarray, fold: int | None = None) -> Iterator[np.ndarray]:
        """As `probability` for segmentation: (C, H, W) float32 of these rows of the table, one image at a time."""
        from rich.console import Console
        from rich.progress import track

        ids = self.table.frame["id"].iloc[rows].tolist()
        text = "reading the maps" if fold is None else f"masks for the student of fold {fold}"
        console = Console(stderr=True)
        images = iter_side_by_side(self.predictions, ids, fold)
        hidden = not console.is_terminal
        for _, maps in track(images, text, len(ids), console=console, transient=True, disable=hidden):
            yield maps.mean(axis=0)

    def held_out(self, fold: int) -> np.ndarray:
        """Find images that share a file, group or unit with the fold or with gold rows, (N,) bool."""
        return same_scene(self.table.frame, self.truth.table.frame[np.isin(self.truth.folds, (fold, GOLD))])

    def describe(self) -> dict[str, Any]:
        """Return the origin of the targets as plain values."""
        return {
            "task": self.task.name,
            "classes": self.classes,
            "folds_hash": self.truth.folds_hash,
            "unlabelled": str(self.table.path),
            "runs": [
                {
                    "folder": str(source.folder),
                    "predictions": part.folder.name,
                    "identity": sha256_file(source.folder / IDENTITY)[:16],
                    "members": part.header.members,
                }
                for source, part in zip(self.sources, self.predictions, strict=True)
            ],
        }


def open_teachers(runs: Sequence[Path], test: str | None = None, table: Path | None = None) -> Teachers:
    """Read the predictions of unlabelled images and check that their runs may teach.

    Args:
        runs: folders made by train.py, with the same folds.
        test: a name in `<run>/predictions`; None: the only ones there.
        table: the predicted images; None: `data.test_table` of the first run.
    """
    refuse_all(problem for run in runs for problem in run_problems(Path(run)))
    sources = find_sources(runs, test=test)
    refuse_all(
        f"{source.folder} has no predictions of unlabelled images; make them with "
        + command("python", "predict.py", source.folder)
        for source in sources
        if source.test is None
    )
    truth = read_ground_truth(sources[0].folder)
    check_probabilities(truth)
    unlabelled = read_test_table(truth, table)
    predictions = [read_predictions(source.test) for source in sources if source.test is not None]
    problems = [problem for part in predictions for problem in _prediction_problems(part, truth, unlabelled)]
    if not problems and truth.task.kind == "maps":
        problems = [f"{part.folder}: {text}" for part in predictions for text in size_problems(part, predictions[0])]
    refuse_all(problems)
    return Teachers(sources, predictions, truth, unlabelled)


def check_probabilities(truth: GroundTruth) -> None:
    if not truth.task.probabilities:
        raise Refusal(f"pseudo labels need probabilities, which the task {truth.task.name} does not predict")


def run_problems(run: Path) -> list[str]:
    """Explain why a run may not teach; empty if it may."""
    if (run / "ensemble.json").is_file():
        return [
            f"{run} is an ensemble: its member for fold k was fitted on out-of-fold rows of other folds, predicted "
            "by models that had seen fold k's labels. Pass the runs that it combines instead; they are averaged"
        ]
    if (run / "averaging.json").is_file():
        return [
            f"{run} has averaged weights: their number for fold k was chosen by scores of models that had seen fold "
            "k's labels. Pass the run that it was made from instead"
        ]
    if not (run / IDENTITY).is_file():
        return [f"{run} is not a run of train.py, so it is unknown which labels its models have seen"]
    reasons = followers(read_config(run))
    return reasons and [
        f"{run}: its fold-k models were tuned by validation on fold k ({', '.join(reasons)}), which leaks its labels. "
        "Train teachers without that"
    ]


def _prediction_problems(predictions: Predictions, truth: GroundTruth, table: Table) -> list[str]:
    header, frame = predictions.header, predictions.frame
    problems = mismatches(header, truth, "test")
    if header.folds_hash is None:
        problems.append("their folds are unknown, so it is unknown which rows their models saw")
    if header.created_by not in UNFITTED:
        problems.append(
            f"they are from {header.created_by!r}; only those of {' and '.join(UNFITTED)} are not fitted to any fold"
        )
    if header.ranks:
        problems.append("they are mean ranks, not probabilities")
    missing = sorted({*truth.scored_folds} - set(frame["fold"].tolist()))
    if missing:
        problems.append(f"the models of the folds {missing} are missing; each student needs those of its held-out fold")
    predicted, expected = set(frame["id"]), set(table.ids)
    problems += listed(f"ids are not in {table.path}", predicted - expected)
    problems += listed(f"ids of {table.path} have no prediction", expected - predicted)
    return [f"{predictions.folder}: {problem}" for problem in problems]
