"""What train.py prints at its end: the scores of a run's models, where everything is, and the next command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from foldwise.data.holdout import fold_name
from foldwise.files import read_json

console = Console()


def print_run(run: Path, folds: Sequence[int], greater_is_better: bool) -> None:
    """Print the score of each finished model, of all folds together, and what to do next.

    Args:
        folds: all that there are.
        greater_is_better: of the metric.
    """
    names = [*map(fold_name, folds), "full", *(path.name for path in sorted(run.glob("without-*")))]
    models = {name: read_json(path) for name in names if (path := run / name / "metrics.json").exists()}
    missing = [fold for fold in folds if fold_name(fold) not in models]
    _print_scores(run, models, None if missing else read_json(run / "metrics.json")["overall"])
    if any(model["chosen_on_own_fold"] for model in models.values()):
        console.print("[yellow]optimistic: epochs or rates were chosen by the fold that is scored[/yellow]")
    if "full" in models:
        console.print("full                 trained on every row: nothing is left that could score it")
    if any(name.startswith("without-") for name in models):
        console.print(f"teach a student      python tools/distill.py {run} --out <table>.csv")
    if missing and len(missing) < len(folds):
        console.print(f"folds {missing} are not finished: the same command with fold=all trains them")
    if not missing:
        console.print(f"models and history   {run}/fold<k>/\nout-of-fold          {run}/oof/")
        console.print(f"report               {run}/report.html")
        console.print(f"epochs               {_describe_epochs(run, folds, greater_is_better)}")
        if "full" not in models:
            console.print(f"to train every row   python train.py run={run} fold=full")
    if not missing or "full" in models:
        console.print(f"next                 python predict.py {run}")


def _print_scores(run: Path, models: dict[str, dict[str, Any]], overall: float | None) -> None:
    table = Table(title=run.name, title_justify="left")
    for name in ("model", next(iter(models.values()))["metric"], "epochs", "seconds"):
        table.add_column(name, justify="right")
    for name, model in models.items():
        table.add_row(name, _shown(model["score"]), str(model["epochs"]), f"{model['seconds']:.0f}")
    scores = [model["score"] for name, model in models.items() if name.startswith("fold")]
    scores = [score for score in scores if score is not None]
    if len(scores) > 1:
        table.add_section()
        table.add_row("mean ± std", f"{np.mean(scores):.4f} ± {np.std(scores):.4f}")
    if (run / "oof").exists():
        table.add_row("OOF overall", _shown(overall))
    console.print(table)


def _describe_epochs(run: Path, folds: Sequence[int], greater_is_better: bool) -> str:
    """After how many epochs the mean of the folds' validations was best, which no single fold can say."""
    histories = [pd.read_csv(run / fold_name(fold) / "history.csv") for fold in folds]
    mean = pd.concat(histories).groupby("epoch")["score"].mean().dropna()
    if mean.empty:
        return "no validation had a score"
    best = int(mean.idxmax() if greater_is_better else mean.idxmin())
    last = int(mean.index[-1])
    found = f"the folds' mean validation was best after {best} of {last}: {mean[best]:.4f}"
    return found if best == last else f"{found}, at the end {mean[last]:.4f}"


def _shown(score: float | None) -> str:
    return "—" if score is None else f"{score:.4f}"
