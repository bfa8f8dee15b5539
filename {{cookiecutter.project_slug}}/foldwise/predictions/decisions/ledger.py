"""The ledger `submissions.csv`: which file was made of what, what it scored out of fold, and on the leaderboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import write_atomic
from foldwise.predictions.decisions.submission import difference
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
    "folds",  # their hash: scores on other folds cannot be compared
    "oof_score",
    "fold_scores",  # separated by blanks, in the order of the folds
    "leaderboard",
]
LEDGER = "submissions.csv"
NONE_YET = "{} lists no submissions yet: python submit.py make <source> makes one"


class Final(NamedTuple):
    """The two to submit last: rows of the ledger. `note` says how the second was found; it may be missing."""

    best: pd.Series
    boldest: pd.Series | None
    note: str


def read_ledger(path: Path) -> pd.DataFrame:
    """The ledger, all of it text; empty where there is none yet.

    Raises:
        Refusal: it cannot be read, lacks columns, or has scores that are no numbers.
    """
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS, dtype=str)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read as CSV ({str(error).strip()})") from error
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise Refusal(f"{path} lacks the columns {', '.join(missing)}: it is not a list of submissions")
    for name in ("oof_score", "leaderboard"):
        filled = frame[name][frame[name] != ""]
        bad = filled[~np.isfinite(pd.to_numeric(filled, errors="coerce"))]
        if len(bad):
            raise Refusal(f"{path}: the {name} of {frame['file'][bad.index[0]]} is {bad.iloc[0]!r} and not a number")
    return frame


def record(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a submission."""
    line = pd.DataFrame([{name: str(entry.get(name, "")) for name in COLUMNS}])
    _write(path, pd.concat([read_ledger(path), line], ignore_index=True))


def record_score(path: Path, file: Path, value: float) -> pd.DataFrame:
    """Note the leaderboard's score of a submission; the new ledger.

    Args:
        file: its path, or its name alone where that is clear.

    Raises:
        Refusal: not a finite number, no such submission, several of that name, or it has a score already.
    """
    if not np.isfinite(value):
        raise Refusal(f"the score {value} is not a finite number")
    frame = read_ledger(path)
    if frame.empty:
        raise Refusal(NONE_YET.format(path))
    files = frame["file"].map(Path)
    rows = np.flatnonzero([other.resolve() == file.resolve() for other in files])
    if not len(rows):
        rows = np.flatnonzero([other.name == str(file) for other in files])
    if len(rows) != 1:
        listed = "".join(f"\n  {name}" for name in frame["file"])
        what = f"several submissions of the name {file}: give the path of one" if len(rows) else f"no submission {file}"
        raise Refusal(f"{path} has {what}; it lists{listed}")
    row = rows[0]
    if frame["leaderboard"][row] not in ("", repr(value)):
        raise Refusal(
            f"{frame['file'][row]} has the score {frame['leaderboard'][row]} already: if that is wrong, correct {path}"
        )
    frame.loc[row, "leaderboard"] = repr(value)
    _write(path, frame)
    return frame


def final_two(frame: pd.DataFrame) -> Final:
    """The best by cross-validation, and the boldest of the rest.

    The boldest is the one whose answers differ most from those of the best, among those that are not clearly worse:
    within one standard error of it, by their paired scores of the folds. If the first is wrong about the test, the
    second is the least likely to be wrong in the same way, and costs nothing that could be measured.

    Args:
        frame: rows of the ledger of one metric and one set of folds, see `comparable`.

    Raises:
        Refusal: there is no submission with a score out of fold.
    """
    frame = frame[frame["oof_score"] != ""]
    if frame.empty:
        raise Refusal("there is no submission with a score out of fold yet")
    sign = 1 if frame["greater_is_better"].iloc[0] == "True" else -1
    best = frame.loc[(sign * frame["oof_score"].astype(float)).idxmax()]
    near, differences = [], []
    for index, row in frame.drop(best.name).iterrows():
        loss, error = paired_error(fold_scores(best), fold_scores(row))
        differs = difference(Path(best["file"]), Path(row["file"]), best["format"])
        if sign * loss <= error and row["format"] == best["format"] and differs > 0:
            near.append(index)
            differences.append(differs)
    if not near:
        return Final(best, None, "no other submission differs from it and is within one standard error of it")
    boldest = int(np.argmax(differences))
    return Final(best, frame.loc[near[boldest]], f"its answers differ from the best by {differences[boldest]:.1%}")


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """The submissions with the metric and the folds of the last one."""
    return frame[(frame[["metric", "folds"]] == frame[["metric", "folds"]].iloc[-1]).all(axis=1)]


def fold_scores(row: pd.Series) -> list[float]:
    """The scores of a row's folds."""
    return [float(score) for score in row["fold_scores"].split()]


def score_figure(frame: pd.DataFrame) -> "Figure":
    """Leaderboard against out-of-fold scores (with their standard error over the folds) of rows that have both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for _, row in frame.iterrows():
        folds, x, y = fold_scores(row), float(row["oof_score"]), float(row["leaderboard"])
        error = float(np.std(folds, ddof=1) / np.sqrt(len(folds)))
        axis.errorbar(x, y, xerr=error, fmt="o", capsize=3)
        axis.annotate(Path(row["file"]).stem, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    middle = float(frame["oof_score"].iloc[0])
    axis.axline((middle, middle), slope=1, color="0.7", linestyle="--", zorder=0)
    axis.set(xlabel="out of fold (± standard error over the folds)", ylabel="leaderboard")
    axis.set_title("dashed: the leaderboard says what the folds said")
    axis.grid(alpha=0.3)
    return figure


def note_score(path: Path, file: Path, value: float) -> list[str]:
    """Record a score and draw those that can be compared beside the ledger; lines for the user.

    Raises:
        Refusal: as `record_score`.
    """
    from foldwise.reporting.figures import to_png

    frame = record_score(path, file, value)
    both = frame[(frame["leaderboard"] != "") & (frame["oof_score"] != "")]
    if both.empty:
        return [
            f"written  {path}",
            "no submission has a score out of fold beside the leaderboard's: nothing to compare",
        ]
    both = comparable(both)
    picture = path.with_suffix(".png")
    with write_atomic(picture) as temporary:
        temporary.write_bytes(to_png(score_figure(both)))
    lines = [
        f"{row['file']}: out of fold {float(row['oof_score']):.4f}, leaderboard {float(row['leaderboard']):.4f}"
        for _, row in both.iterrows()
    ]
    if len(both) > 2:
        ranks = both[["oof_score", "leaderboard"]].astype(float).corr("spearman").iloc[0, 1]
        lines.append(f"rank correlation of the two: {ranks:.2f} over {len(both)} submissions")
    return [*lines, f"written  {path}, {picture}", "next     python submit.py choose"]


def describe_choice(path: Path) -> list[str]:
    """The final two as lines for the user.

    Raises:
        Refusal: as `final_two`.
    """
    frame = read_ledger(path)
    if frame.empty:
        raise Refusal(NONE_YET.format(path))
    same = comparable(frame)
    final = final_two(same)
    lines = [f"{len(same)} submissions with {frame['metric'].iloc[-1]} on the folds {frame['folds'].iloc[-1]}"]
    if len(same) < len(frame):
        lines.append(f"{len(frame) - len(same)} others have another metric or other folds, and are left out")
    lines.append(f"best     {_described(final.best)}")
    lines.append(f"boldest  {'none' if final.boldest is None else _described(final.boldest)}: {final.note}")
    return lines


def _described(row: pd.Series) -> str:
    leaderboard = f", leaderboard {float(row['leaderboard']):.4f}" if row["leaderboard"] else ""
    return f"{row['file']} ({row['decision']}, out of fold {float(row['oof_score']):.4f}{leaderboard})"


def _write(path: Path, frame: pd.DataFrame) -> None:
    with write_atomic(path) as temporary:
        frame.to_csv(temporary, index=False)
