"""The ledger `submissions.csv`: what each file was made of, its score out of fold, and on the leaderboard."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.files import write_atomic
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
    "folds",  # their hash: scores on other folds cannot be compared
    "oof_score",
    "fold_scores",  # separated by spaces, in the order of the folds
    "leaderboard",
]


class Final(NamedTuple):
    """The two submissions to select: rows of the ledger. `note` says how the second was found, or why not."""

    best: pd.Series
    different: pd.Series | None
    note: str


def read_ledger(path: Path) -> pd.DataFrame:
    """The ledger, all of it text; empty where there is none yet.

    Raises:
        Refusal: it cannot be read, lacks columns, or has scores that are no numbers.
    """
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS, dtype=str)
    frame = read_text_table(path)
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise Refusal(f"{path} lacks the columns {', '.join(missing)}: it is not a list of submissions")
    for name in ("oof_score", "leaderboard"):
        filled = frame[name][frame[name] != ""]
        bad = filled[~np.isfinite(pd.to_numeric(filled, errors="coerce"))]
        if len(bad):
            raise Refusal(f"{path}: the {name} of {frame['file'][bad.index[0]]} is {bad.iloc[0]!r} and not a number")
    return frame


def record(path: Path, **entry: Any) -> None:
    """Add a submission; `entry` are values of `COLUMNS`."""
    line = pd.DataFrame([{name: str(entry.get(name, "")) for name in COLUMNS}])
    _write(path, pd.concat([read_ledger(path), line], ignore_index=True))


def record_score(path: Path, file: Path, value: float) -> list[str]:
    """Record the leaderboard score of a submission, and draw those that can be compared beside the ledger.

    Args:
        file: its path, or its name alone where that is unique.

    Returns:
        Lines for the user.

    Raises:
        Refusal: not a finite number, no such submission, several of that name, or it has a score already.
    """
    if not np.isfinite(value):
        raise Refusal(f"the score {value} is not a finite number")
    frame = _filled(path)
    rows = [row for row, other in enumerate(frame["file"]) if Path(other).resolve() == file.resolve()]
    rows = rows or [row for row, other in enumerate(frame["file"]) if Path(other).name == str(file)]
    if len(rows) != 1:
        listed = "".join(f"\n  {name}" for name in frame["file"])
        what = f"several submissions of the name {file}: give the path of one" if rows else f"no submission {file}"
        raise Refusal(f"{path} has {what}; it lists{listed}")
    known = frame["leaderboard"][rows[0]]
    if known not in ("", repr(value)):
        raise Refusal(f"{frame['file'][rows[0]]} has the score {known} already: if that is wrong, correct {path}")
    frame.loc[rows[0], "leaderboard"] = repr(value)
    _write(path, frame)
    both = frame[(frame["leaderboard"] != "") & (frame["oof_score"] != "")]
    if both.empty:
        return [f"written  {path}", "no submission has a score both out of fold and on the leaderboard to compare"]
    both = comparable(both)
    picture = path.with_suffix(".png")
    with write_atomic(picture) as temporary:
        score_figure(both).savefig(temporary, format="png", dpi=110)
    scores = both[["oof_score", "leaderboard"]].astype(float)
    lines = [
        f"{name}: out of fold {oof:.4f}, leaderboard {leaderboard:.4f}"
        for name, (oof, leaderboard) in zip(both["file"], scores.to_numpy(), strict=True)
    ]
    if len(both) > 2:
        ranks = scores.corr("spearman").iloc[0, 1]
        lines.append(f"rank correlation of the two: {ranks:.2f} over {len(both)} submissions")
    return [*lines, f"written  {path}, {picture}", "next     python submit.py choose"]


def final_two(frame: pd.DataFrame) -> Final:
    """The best submission out of fold, and the most different of the rest.

    That is the one whose answers differ most from those of the best, among those within one standard error of it by
    their paired fold scores: if the best is wrong about the test, it is the least likely to be wrong in the same way.

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
    near: list[tuple[float, pd.Series]] = []
    for _, row in frame.drop(best.name).iterrows():
        loss, error = paired_error(_fold_scores(best), _fold_scores(row))
        differs = difference(Path(best["file"]), Path(row["file"]), best["format"])
        if sign * loss <= error and row["format"] == best["format"] and differs > 0:
            near.append((differs, row))
    if not near:
        return Final(best, None, "no other submission differs from it and is within one standard error of it")
    differs, different = max(near, key=lambda each: each[0])
    return Final(best, different, f"its answers differ from the best by {differs:.1%}")


def describe_choice(path: Path) -> list[str]:
    """The final two as lines for the user.

    Raises:
        Refusal: as `final_two`.
    """
    frame = _filled(path)
    same = comparable(frame)
    final = final_two(same)
    lines = [f"{len(same)} submissions with {frame['metric'].iloc[-1]} on the folds {frame['folds'].iloc[-1]}"]
    if len(same) < len(frame):
        lines.append(f"{len(frame) - len(same)} others have another metric or other folds, and are left out")
    lines.append(f"best            {_describe(final.best)}")
    lines.append(f"most different  {'none' if final.different is None else _describe(final.different)}: {final.note}")
    return lines


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """The submissions with the metric and the folds of the last one."""
    return frame[(frame[["metric", "folds"]] == frame[["metric", "folds"]].iloc[-1]).all(axis=1)]


def score_figure(frame: pd.DataFrame) -> "Figure":
    """Leaderboard against out-of-fold scores (with their standard error over the folds) of rows that have both."""
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
    axis.set_title("dashed: the leaderboard agrees with the folds")
    axis.grid(alpha=0.3)
    return figure


def _filled(path: Path) -> pd.DataFrame:
    """The ledger; one without submissions is refused."""
    frame = read_ledger(path)
    if frame.empty:
        raise Refusal(f"{path} lists no submissions yet: python submit.py make <source> makes one")
    return frame


def _fold_scores(row: pd.Series) -> list[float]:
    return [float(score) for score in row["fold_scores"].split()]


def _describe(row: pd.Series) -> str:
    leaderboard = f", leaderboard {float(row['leaderboard']):.4f}" if row["leaderboard"] else ""
    return f"{row['file']} ({row['decision']}, out of fold {float(row['oof_score']):.4f}{leaderboard})"


def _write(path: Path, frame: pd.DataFrame) -> None:
    with write_atomic(path) as temporary:
        frame.to_csv(temporary, index=False)
