"""Runs whose predictions of unlabelled images may teach students, and the targets that each student gets.

The student of fold k is a model that is trained without fold k and scored on it, so nothing may teach it that ever saw
fold k's labels. A run's fold-k models have not: they were trained on the other folds, and where they were trained on
pseudo labels, on those of student k. Everything else has:

- models of the other folds were trained on fold k's labels;
- an ensemble's fold-k member was fitted on other folds' out-of-fold rows, which come from models of those other folds;
- a checkpoint, restart or learning rate that was chosen by the validation of fold k knows how well it did on fold k.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.config import followers, read_config
from foldwise.data.table import Table
from foldwise.errors import Refusal, refuse_all
from foldwise.files import sha256_file
from foldwise.predictions.ground_truth import GroundTruth, mismatches, read_ground_truth, read_test_table
from foldwise.predictions.schema import listed
from foldwise.predictions.sources import Source, find_sources
from foldwise.predictions.store import Predictions, average_members, iter_side_by_side, read_predictions, size_problems
from foldwise.tasks import Task

IDENTITY = "identity.json"
UNFITTED = ("predict.py", "average.py")


@dataclass(frozen=True)
class Teachers:
    """Checked runs; `table` has the N unlabelled images that each of them predicted with the models of every fold."""

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
        """The folds, which are the numbers of the students."""
        return sorted(set(self.truth.folds.tolist()) - {-1})

    def probability(self, fold: int | None = None) -> np.ndarray:
        """(N, C) float64: the mean over the runs of the predictions of their models of this fold.

        Snapshots and views are averaged. None takes the models of all folds, which is for looking and not for training.
        """
        total = np.zeros((len(self.table), len(self.classes)))
        for part in self.predictions:
            frame = part.frame if fold is None else part.frame[part.frame["fold"] == fold]
            total += average_members(frame, self.classes).set_index("id").loc[self.table.ids].to_numpy(np.float64)
        if self.task.exclusive:
            return total / total.sum(axis=1, keepdims=True)  # exactly, which predictions need not be
        return total / len(self.predictions)

    def maps(self, rows: np.ndarray, fold: int | None = None) -> Iterator[np.ndarray]:
        """As `probability`, of segmentation: (C, H, W) float32 of these rows of the table, one image at a time.

        As stored, in steps of 1 / 255. A bar is shown on a terminal.
        """
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
        """(N,) bool: images that belong to the fold, by their file, group or unit.

        With them a student would be scored on scenes that it was trained on, if under labels of its own making.
        """
        result = np.zeros(len(self.table), bool)
        training = self.truth.table.frame[self.truth.folds == fold]
        for column in ("image", "group", "unit"):
            if column in training and column in self.table.frame:
                result |= self.table.frame[column].isin(training[column]).to_numpy()
        return result

    def describe(self) -> dict[str, Any]:
        """Where the targets come from, as plain values."""
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
    """Find the predictions of unlabelled images and check that their runs may teach.

    Args:
        runs: folders that train.py made, of one competition and the same folds.
        test: a name in `<run>/predictions`; None: the only ones.
        table: of the predicted images; None: `data.test_table` of the first run.

    Raises:
        Refusal: runs that may not teach, predictions that are missing or do not belong together; all are listed.
    """
    refuse_all(problem for run in runs for problem in run_problems(Path(run)))
    sources = find_sources(runs, test=test)
    refuse_all(
        f"{source.folder} has no predictions of unlabelled images; python predict.py {source.folder} makes them"
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
    """Refuse a task whose values are no probabilities: there is no confidence in them."""
    if not truth.task.probabilities:
        raise Refusal(f"pseudo labels are made of probabilities, which the task {truth.task.name} has not")


def run_problems(run: Path) -> list[str]:
    """Why a source may not teach; empty where it may."""
    if (run / "ensemble.json").is_file():
        return [
            f"{run} is an ensemble: its member for fold k was fitted on the out-of-fold rows of the other folds, whose "
            "models had seen fold k's labels. Name the runs that it is made of, and their plain mean is taken"
        ]
    if (run / "averaging.json").is_file():
        return [
            f"{run} has averaged weights: how many are averaged for fold k was chosen by the scores of models that had "
            "seen fold k's labels. Name the run that it was made from"
        ]
    if not (run / IDENTITY).is_file():
        return [f"{run} is not a run of train.py: nobody can tell what its models of fold k have seen"]
    reasons = followers(read_config(run))
    return reasons and [
        f"{run}: its models of fold k followed the validation on fold k ({', '.join(reasons)}), and so its labels. "
        "Train without that"
    ]


def _prediction_problems(predictions: Predictions, truth: GroundTruth, table: Table) -> list[str]:
    header, frame = predictions.header, predictions.frame
    problems = mismatches(header, truth, "test")
    if header.folds_hash is None:
        problems.append("their folds are unknown: nobody can tell which rows their models saw")
    if header.created_by not in UNFITTED:
        problems.append(
            f"they were made by {header.created_by!r}; only what {' and '.join(UNFITTED)} write is fitted to no fold"
        )
    if header.ranks:
        problems.append("their values are means of ranks and not probabilities")
    missing = sorted(set(truth.folds.tolist()) - {-1} - set(frame["fold"].tolist()))
    if missing:
        problems.append(f"the models of the folds {missing} are missing, and each student needs those of its own fold")
    predicted, asked = set(frame["id"]), set(table.ids)
    problems += listed(f"ids are not in {table.path}", predicted - asked)
    problems += listed(f"ids have no prediction but are in {table.path}", asked - predicted)
    return [f"{predictions.folder}: {problem}" for problem in problems]
