"""The ledger `submissions.csv`: origin, out-of-fold score and leaderboard score of each submission."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import write_atomic, write_csv
from foldwise.predictions.decisions.submission import difference, read_text_table
from foldwise.predictions.selection import paired_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = [
    "file",
    "made",  # UTC
    "source",
    "run",
    "oof",
    "test",
    "format",
    "decision",
    "metric",
    "greater_is_better",
    "folds",  # hash; scores on different folds are not comparable
    "oof_score",
    "fold_scores",  # in fold order, separated by spaces
    "leaderboard",
]


class Final(NamedTuple):
    """The two submissions to select (rows of the ledger), and a note on the second."""

    best: pd.Series
    different: pd.Series | None
    note: str


def read_ledger(path: Path) -> pd.DataFrame:
    """Read and check the ledger, as text; an empty table if there is no file yet."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS, dtype=str)
    frame = read_text_table(path)
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise Refusal(f"{path} is not a list of submissions: it lacks the columns {', '.join(missing)}")
    for name in ("oof_score", "leaderboard"):
        filled = frame[name][frame[name] != ""]
        bad = filled[~np.isfinite(pd.to_numeric(filled, errors="coerce"))]
        if len(bad):
            raise Refusal(
                f"{path}: the {name} of {frame['file'][bad.index[0]]} is {bad.iloc[0]!r}, not a finite number"
            )
    return frame


def record(path: Path, **entry: Any) -> None:
    """Add a submission with these values of `COLUMNS`."""
    line = pd.DataFrame([{name: str(entry.get(name, "")) for name in COLUMNS}])
    write_csv(path, pd.concat([read_ledger(path), line], ignore_index=True))


def record_score(path: Path, file: Path, value: float) -> list[str]:
    """Record a leaderboard score, plot all comparable submissions beside the ledger, and return lines to print.

    `file` is the path of the submission, or its file name if that is unique. A different score is not overwritten.
    """
    if not np.isfinite(value):
        raise Refusal(f"the score {value} is not a finite number")
    frame = _read_filled(path)
    rows = [row for row, other in enumerate(frame["file"]) if Path(other).resolve() == file.resolve()]
    rows = rows or [row for row, other in enumerate(frame["file"]) if Path(other).name == str(file)]
    if len(rows) != 1:
        listed = "".join(f"\n  {name}" for name in frame["file"])
        what = f"several submissions named {file}: give the path of one" if rows else f"no submission {file}"
        raise Refusal(f"{path} has {what}; it lists{listed}")
    recorded = frame["leaderboard"][rows[0]]
    if recorded not in ("", repr(value)):
        raise Refusal(
            f"{frame['file'][rows[0]]} already has the score {recorded}: if that is wrong, correct it in {path}"
        )
    frame.loc[rows[0], "leaderboard"] = repr(value)
    write_csv(path, frame)
    both = frame[(frame["leaderboard"] != "") & (frame["oof_score"] != "")]
    if both.empty:
        return [f"written  {path}", "no submission has both an out-of-fold and a leaderboard score to compare"]
    both = comparable(both)
    plot = path.with_suffix(".png")
    with write_atomic(plot) as temporary:
        score_figure(both).savefig(temporary, format="png", dpi=110)
    scores = both[["oof_score", "leaderboard"]].astype(float)
    lines = [
        f"{name}: out of fold {oof:.4f}, leaderboard {leaderboard:.4f}"
        for name, (oof, leaderboard) in zip(both["file"], scores.to_numpy(), strict=True)
    ]
    if len(both) > 2:
        ranks = scores.corr("spearman").iloc[0, 1]
        lines.append(f"rank correlation of both scores: {ranks:.2f} over {len(both)} submissions")
    return [*lines, f"written  {path}, {plot}", "next     python submit.py choose"]


def final_two(frame: pd.DataFrame) -> Final:
    """Select the best submission out of fold, and the most different one within one standard error of it.

    The standard error is that of the paired fold scores. The most different submission hedges: it is least likely to
    share the errors of the best. Pass `comparable` rows only.
    """
    frame = frame[frame["oof_score"] != ""]
    if frame.empty:
        raise Refusal("no submission has an out-of-fold score yet")
    sign = 1 if frame["greater_is_better"].iloc[0] == "True" else -1
    best = frame.loc[(sign * frame["oof_score"].astype(float)).idxmax()]
    near: list[tuple[float, pd.Series]] = []
    for _, row in frame.drop(best.name).iterrows():
        loss, error = paired_error(_fold_scores(best), _fold_scores(row))
        differs = difference(Path(best["file"]), Path(row["file"]), best["format"])
        if sign * loss <= error and row["format"] == best["format"] and differs > 0:
            near.append((differs, row))
    if not near:
        return Final(best, None, "no different submission is within one standard error of the best")
    differs, different = max(near, key=lambda each: each[0])
    return Final(best, different, f"its answers differ from those of the best by {differs:.1%}")


def describe_choice(path: Path) -> list[str]:
    """Describe the final two in lines to print."""
    frame = _read_filled(path)
    same = comparable(frame)
    final = final_two(same)
    lines = [f"submissions     {len(same)}, with {frame['metric'].iloc[-1]} on the folds {frame['folds'].iloc[-1]}"]
    if len(same) < len(frame):
        lines.append(f"{len(frame) - len(same)} others are left out: they have another metric or other folds")
    lines.append(f"best            {_describe(final.best)}")
    lines.append(f"most different  {'none' if final.different is None else _describe(final.different)}: {final.note}")
    return lines


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the submissions with the same metric and folds as the last one."""
    return frame[(frame[["metric", "folds"]] == frame[["metric", "folds"]].iloc[-1]).all(axis=1)]


def score_figure(frame: pd.DataFrame) -> "Figure":
    """Plot leaderboard against out-of-fold scores; the error bars are standard errors over the folds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    for _, row in frame.iterrows():
        folds, x, y = _fold_scores(row), float(row["oof_score"]), float(row["leaderboard"])
        axis.errorbar(x, y, xerr=float(np.std(folds, ddof=1) / np.sqrt(len(folds))), fmt="o", capsize=3)
        axis.annotate(Path(row["file"]).stem, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    middle = float(frame["oof_score"].iloc[0])
    axis.axline((middle, middle), slope=1, color="0.7", linestyle="--", zorder=0)
    axis.set(xlabel="out of fold (± standard error over the folds)", ylabel="leaderboard")
    axis.set_title("dashed: both scores are equal")
    axis.grid(alpha=0.3)
    return figure


def _read_filled(path: Path) -> pd.DataFrame:
    frame = read_ledger(path)
    if frame.empty:
        raise Refusal(f"{path} lists no submissions yet; make one with python submit.py make <source>")
    return frame


def _fold_scores(row: pd.Series) -> list[float]:
    return [float(score) for score in row["fold_scores"].split()]


def _describe(row: pd.Series) -> str:
    leaderboard = f", leaderboard {float(row['leaderboard']):.4f}" if row["leaderboard"] else ""
    return f"{row['file']} ({row['decision']}, out of fold {float(row['oof_score']):.4f}{leaderboard})"
