"""Outcome of a search: an experiment with the best settings, and its comparison with the start at full size."""

from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import yaml

from foldwise.config import experiment_text
from foldwise.files import write_text
from foldwise.locks import lock
from foldwise.reporting.console import format_interval, format_score
from foldwise.reporting.tuning_report import Tuned
from foldwise.settings import OWNER
from foldwise.shell import command
from foldwise.training.run import train
from foldwise.tuning.space import Space

HEADER = """# {experiment} with the best settings of trial {trial} in {folder}.
#   {command}
# {verdict}
"""


def conclude(tuned: Tuned, space: Space, seeds: int, log: TextIO) -> str:
    """Compare the best settings with the experiment over `seeds` full trainings each, and return the verdict.

    They are written as an experiment unless they are not better. With 0 seeds nothing is compared.
    """
    if (tuned.trials["state"] == "running").any():
        return "other commands still run trials: the last one to end, or the same command later, concludes"
    if tuned.best is None:
        return "not better: no trial was finished; raise --budget, or see why in trials.csv"
    if tuned.is_start_best:
        return "not better: no trial scored better than the experiment itself"
    scores, values = tuned.ranked.set_index("trial")["score"], tuned.params[tuned.best]
    own = next((scores[number] for number in scores.index if tuned.params[number] == tuned.start), float("nan"))
    verdict = (
        f"not confirmed: {tuned.metric} {format_score(scores[tuned.best])} in a small trial, the best of "
        f"{len(scores)}; the experiment itself has {format_score(own)}. Add --confirm 3"
    )
    if seeds:
        with lock(tuned.folder / ".confirm.lock", wait=False):
            verdict = _confirm(space, values, seeds, log)
    if not verdict.startswith("not better"):
        _write_experiment(tuned, space, tuned.best, values, verdict)
    return verdict


def _confirm(space: Space, values: Mapping[str, Any], seeds: int, log: TextIO) -> str:
    """Train both sides with each seed and compare them out of fold, paired."""
    from foldwise.predictions.evaluation.evaluate import evaluate

    sides: tuple[list[Path], list[Path]] = [], []
    start = space.config({}, small=False)
    for number in range(seeds):
        for runs, side, ending in zip(sides, (values, {}), ("_tuned", ""), strict=True):
            config = space.config({**side, "seed": start["seed"] + number}, small=False)
            config["experiment_name"] += ending
            print(f"confirm  {config['experiment_name']}, seed {config['seed']}", flush=True)
            with redirect_stdout(log), redirect_stderr(log):
                runs.append(train(config))
    found = evaluate(sides[0], sides[1], by=[]).differences.iloc[0]
    what = f"{found['metric']} {format_score(found['first'])} against {format_score(found['second'])}"
    interval = format_interval(found["low"], found["high"])
    over = f", over seeds {format_interval(found['seed_low'], found['seed_high'])}" if seeds > 1 else ""
    better = "better" if found["verdict"].startswith("better") else "not better"
    return f"{better}: {what}, difference {found['difference']:+.4f} {interval}{over}, {seeds} full trainings each"


def _write_experiment(tuned: Tuned, space: Space, trial: int, values: Mapping[str, Any], verdict: str) -> None:
    """Write configs/experiment/<experiment>_tuned.yaml, under the first free name, and print how to train it."""
    experiment = next(word.partition("=")[2] for word in space.base if word.startswith("experiment="))
    given = {word.partition("=")[0].lstrip("+"): word for word in space.base}  # the command line would win
    others = [word for name, word in given.items() if name != "experiment" and name not in tuned.start]
    changed = {name: value for name, value in values.items() if value != tuned.start[name] or name in given}
    settings = {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in changed.items()}
    for number in count(1):
        name = f"{experiment}_tuned" + (f"_{number}" if number > 1 else "")
        line = command("python", "train.py", f"experiment={name}", *others)
        header = HEADER.format(experiment=experiment, trial=trial, folder=tuned.folder, command=line, verdict=verdict)
        text = experiment_text(header, [experiment], settings)
        path = OWNER / "experiment" / f"{name}.yaml"
        if not path.exists() or path.read_text(encoding="utf-8") == text:
            break
    write_text(path, text)
    print(f"written  {path.relative_to(OWNER.parent)}\nnext     {line}", flush=True)
