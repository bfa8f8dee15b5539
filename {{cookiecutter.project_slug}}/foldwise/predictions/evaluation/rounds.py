"""Rounds of labelling: what each run brought over the run before it, on rows that all of them are scored on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from foldwise.config import read_config
from foldwise.data.cells import is_gold
from foldwise.data.columns import Columns
from foldwise.data.table_file import read_file
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.predictions.evaluation.evaluate import Evaluation
from foldwise.tasks import find_task

SHOWN = 3  # settings of a row
Labels: TypeAlias = "pd.Series[str] | None"  # targets by id; None: the table is gone


def by_time(runs: Sequence[Path]) -> list[Path]:
    """Sort runs by when their training began."""
    other = [str(run) for run in runs if not (run / "environment.json").is_file()]
    if other or len(runs) < 2:
        what = f"{', '.join(other)}: not made by train.py" if other else f"{runs[0]} is one round"
        raise Refusal(f"{what}; --rounds compares two runs of train.py or more")
    return sorted(runs, key=_time)


def _time(run: Path) -> str:
    return read_json(run / "environment.json")["created"]["time"]


def tabulate_rounds(
    evaluation: Evaluation, runs: Sequence[Path], changes: Sequence[Sequence[str]], gold: bool
) -> pd.DataFrame:
    """One row per run: its table, labels and settings, score and difference from the run before, with intervals.

    Args:
        runs, gold: what was evaluated, in that order.
        changes: how each run differs from the one before, see `training.run_folder.describe_changes`.
    """
    metric = evaluation.metrics[0].name
    scores, differences = (
        frame[frame["metric"] == metric].reset_index(drop=True)
        for frame in (evaluation.scores[evaluation.scores["column"] == ""], evaluation.differences)
    )
    differences = differences[["difference", "low", "high", "verdict"]].set_index(differences.index + 1)
    labels = [_read_labels(run) for run in runs]
    about = [_describe(*each) for each in zip(runs, labels, [None, *labels], changes, strict=False)]
    frame = pd.DataFrame(about).assign(scored_on="gold rows" if gold else "out of fold")
    frame = frame.join(scores[["images", "metric", "score", "low", "high"]])
    return frame.join(differences.rename(columns={"low": "difference_low", "high": "difference_high"})).round(6)


def _describe(run: Path, labels: Labels, old: Labels, changes: Sequence[str]) -> dict[str, Any]:
    """What a run was trained on, and how that differs from the run before; empty where a table is gone."""
    data = read_config(run)["data"]
    counts: dict[str, Any] = {"rows": "" if labels is None else len(labels), "new": "", "changed": "", "removed": ""}
    if labels is not None and old is not None:
        both = labels.index.intersection(old.index)
        changed = int((labels[both] != old[both]).sum())
        counts |= {"new": len(labels) - len(both), "changed": changed, "removed": len(old) - len(both)}
    settings = [line for line in changes if not line.startswith("content ")]
    return {
        "when": _time(run),
        "run": run.name,
        "table": data["table"],
        **counts,
        "pseudo": data.get("pseudo") or "",
        "pseudo_share": data["pseudo_share"] if data.get("pseudo") else "",
        "settings": "; ".join(settings[:SHOWN] + ["..."] * (len(settings) > SHOWN)),
    }


def _read_labels(run: Path) -> Labels:
    """The targets of a run's table without gold rows, by id, as text; None if the table is gone."""
    config = read_config(run)
    table, columns = Path(config["data"]["table"]), Columns.from_config(config["data"]["columns"])
    if not table.is_file():
        return None
    target = columns.target or find_task(config["task"]).column
    frame = read_file(table)
    frame = frame if columns.gold is None else frame[~is_gold(frame[columns.gold])]
    frame = frame.astype(str).set_index(columns.id)
    return frame[[target] if isinstance(target, str) else list(target)].agg("\n".join, axis=1)
