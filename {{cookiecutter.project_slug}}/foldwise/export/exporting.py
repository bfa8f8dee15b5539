"""Export of a run: variants of one graph, a table that compares them, and the chosen one.

exports/<run>/
    model.onnx        the smallest variant within one standard error of float's score, and within the budgets
    comparison.csv    every variant: megabytes, milliseconds, memory, score, changes; the last ones by subgroup too
    comparison.png    score over megabytes
    predict_folder.py, README.md    for those who have never seen this repository
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from foldwise.errors import Refusal
from foldwise.export.graph import as_feeds, write_graph
from foldwise.export.measuring import FLOAT, compare_answers, measure_speed
from foldwise.export.metadata import PACKAGES, open_session
from foldwise.export.reader import write_reader
from foldwise.export.subject import example_batch, open_subject, read_batches
from foldwise.export.variants import write_half, write_int8
from foldwise.files import check_new, new_folder
from foldwise.reporting.figures import new_figure, to_png

NAME = "model.onnx"
CALIBRATED, JUDGED, BATCH = 96, 32, 8  # training pictures for the ranges, and to find what stays in float


class Budget(NamedTuple):
    """Most megabytes and most milliseconds (95th percentile) of a variant; None: any."""

    mb: float | None = None
    ms: float | None = None

    def excess(self, variant: pd.Series) -> float:
        """By what factor a variant misses the budget at most; up to 1: it does not."""
        factors = [value / most for value, most in ((variant["mb"], self.mb), (variant["p95_ms"], self.ms)) if most]
        return max(factors, default=0.0)


UNLIMITED = Budget()


class Exported(NamedTuple):
    """The table of variants, with `chosen`, and of their subgroups; `missed` says why none was chosen and written."""

    variants: pd.DataFrame
    subgroups: pd.DataFrame
    metric: str
    notes: list[str]
    missed: str


def export_run(
    run: Path,
    out: Path,
    folds: Sequence[str] = ("0",),
    *,
    half: bool = False,
    int8: bool = False,
    budget: Budget = UNLIMITED,
    threads: int = 0,
    oof: str = "oof",
    decision: str | None = None,
) -> Exported:
    """Write the new folder `out`, unless no variant is within the budget.

    Args:
        folds, oof, decision: as in `open_subject`.
        threads: of the measured milliseconds; 0: one per core.

    Raises:
        Refusal: the graph differs from torch.
    """
    require_packages()
    check_new(out)
    subject = open_subject(run, folds, oof, decision)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        paths = {FLOAT: work / "float.onnx"}
        write_graph(paths[FLOAT], subject.graph(), example_batch(subject), subject.fields, subject.describe())
        if half:
            paths["half"] = work / "half.onnx"
            write_half(paths[FLOAT], paths["half"])
        session = open_session(paths[FLOAT])
        if int8:
            drawn = np.random.default_rng(0).permutation(subject.trained)[: CALIBRATED + JUDGED].tolist()
            feeds = [as_feeds(batch, session) for batch in read_batches(subject, drawn, BATCH)]
            judged = max(1, len(feeds) * JUDGED // (CALIBRATED + JUDGED))
            paths |= write_int8(paths[FLOAT], work, feeds[judged:] or feeds, feeds[:judged])
        answers = compare_answers(subject, paths)
        one = as_feeds(next(read_batches(subject, subject.held[:1], 1)), session)
        speed = measure_speed(subject, paths, one, threads)
        overall = answers[answers["column"] == ""]
        variants = speed.merge(overall.drop(columns=["column", "value", "images"]), on="variant")
        chosen, missed = choose(variants, budget)
        variants["chosen"] = variants["variant"] == chosen
        groups = answers[answers["column"] != ""]
        exported = Exported(variants, groups, subject.truth.metric.name, subject.notes, missed)
        if missed:
            return exported
        with new_folder(out) as folder:
            shutil.copyfile(paths[chosen], folder / NAME)
            exported.notes.extend(write_reader(folder / NAME, subject))
            pd.concat([variants, groups]).to_csv(folder / "comparison.csv", index=False)
            (folder / "comparison.png").write_bytes(draw(exported))
    return exported


def require_packages() -> None:
    """Refuse without the packages of the extra `export`."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise Refusal(f"{', '.join(missing)}: not installed; pip install {' '.join(PACKAGES)} (the extra `export`)")


def choose(variants: pd.DataFrame, budget: Budget) -> tuple[str, str]:
    """Name the smallest variant that loses at most one standard error of float's score and is within the budget.

    If there is none, the name is empty, and the text says what came nearest.
    """
    float_error = variants["error"].iat[1]
    usable = variants.iloc[1:]
    usable = usable[(usable["loss"] <= 0) | (usable["loss"] <= float_error)]
    excess = usable.apply(budget.excess, axis=1)
    within = usable[excess <= 1]
    if not len(within):
        nearest, others = usable.loc[excess.idxmin()], variants.drop(usable.index).iloc[1:]
        text = f"no variant is within the budget; nearest: {describe(nearest)}"
        text += "".join(f"\n{describe(other)}, but loses {other.loss:.4f}, and one standard error is {float_error:.4f}"
                        for _, other in others.iterrows() if budget.excess(other) <= 1)  # fmt: skip
        return "", f"{text}\nTrain a smaller network, distill this one into it, or raise the budget"
    return str(within.loc[within["mb"].idxmin(), "variant"]), ""


def describe(variant: pd.Series) -> str:
    return f"{variant['variant']} with {variant['mb']:.2f} MB and {variant['p95_ms']:.1f} ms (95th percentile)"


def draw(exported: Exported) -> bytes:
    """Scores with intervals over megabytes."""
    figure = new_figure(7, 4)
    axis = figure.subplots()
    for row in exported.variants.itertuples():
        ends = np.abs(np.array([[row.score - row.low], [row.high - row.score]]))
        label = f"{row.variant}{' (chosen)' if row.chosen else ''}"
        mark, size = ("*", 14) if row.chosen else ("o", 6)
        axis.errorbar(
            [row.mb], [row.score], ends, fmt=mark, markersize=size, capsize=3, label=label, zorder=2 + row.chosen
        )
    axis.set(xlabel="megabytes", ylabel=exported.metric)
    axis.legend(fontsize=8)
    return to_png(figure)
