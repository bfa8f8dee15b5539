"""Speed, memory and answers of the variants of an export, on the held-out pictures."""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from foldwise.errors import Refusal
from foldwise.export.graph import Feeds, as_feeds, graph_name
from foldwise.export.metadata import open_session
from foldwise.export.subject import Subject
from foldwise.inference.predictor import Predictor, Values
from foldwise.inference.tta import TTA
from foldwise.models.network import Batch
from foldwise.predictions.evaluation.bootstrap import FEWEST_GROUPS, interval, resample, resampled_groups
from foldwise.predictions.evaluation.subgroups import subgroup_columns, subgroups
from foldwise.predictions.metrics import fold_score
from foldwise.predictions.scoring import by_unit

TOLERANCE = 1e-4  # of a probability; of a number, relative to it if it is above 1
RESAMPLES, TURNS, SECONDS = 1000, 50, 20.0
BATCH = 8  # pictures, of which all variants' maps are in memory at once
FLOAT = "float"
ROOT = Path(__file__).parents[2]
# Peak memory of a fresh process that loads a model and predicts one picture.
MEMORY = """
import resource, sys
import numpy as np
feeds = dict(np.load(sys.argv[2]))
if sys.argv[1].endswith(".onnx"):
    from foldwise.export.metadata import open_session
    session = open_session(sys.argv[1], int(sys.argv[3]))
    run = lambda: session.run(None, feeds)
else:
    import torch
    from foldwise.inference.weights import load_model
    torch.set_num_threads(int(sys.argv[3]) or torch.get_num_threads())
    networks = [load_model(folder).network for folder in sys.argv[1].split("|")]
    batch = {name: torch.from_numpy(value) for name, value in feeds.items()}
    run = torch.inference_mode()(lambda: [network(batch) for network in networks])
for _ in range(3):
    run()
if sys.platform == "linux":  # there ru_maxrss begins with that of the process that started this one
    with open("/proc/self/status") as status:
        print(1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class Lockstep(Predictor):
    """Reads each item once, and predicts it with the networks in torch and with every session of onnxruntime."""

    def __init__(self, subject: Subject, sessions: Sequence[Any]) -> None:
        super().__init__([*subject.models, *subject.models[:1] * len(sessions)], TTA(), "cpu", BATCH)
        self.subject, self.sessions = subject, sessions

    def _values(self, model: int, batch: Batch) -> dict[str, torch.Tensor]:
        number = model - len(self.subject.models)
        if number < 0:
            return super()._values(model, batch)
        session, names = self.sessions[number], [graph_name(output) for output in self.outputs]
        found = session.run(names, as_feeds(batch, session))
        return {output.name: torch.from_numpy(each) for output, each in zip(self.outputs, found, strict=True)}

    def compare(self) -> Iterator[tuple[int, Values, list[Values]]]:
        """Yield row of the table, the values of torch, and those of each session, by output."""
        networks = len(self.subject.models)
        for number, values in self.predict(self.subject.truth.items.source, self.subject.held):
            scale = 255 if self.tiles else 1
            ours = self.subject.combine({name: each[:networks] for name, each in values.items()})
            its = [
                {name: each[networks + one, 0] / scale for name, each in values.items()}
                for one in range(len(self.sessions))
            ]
            yield self.subject.held[number], ours, its


def compare_answers(subject: Subject, paths: Mapping[str, Path]) -> pd.DataFrame:
    """Score torch and every variant, over all held-out items and by subgroup.

    Returns:
        variant, column, value, images; change (largest, of a value) and changed (share of answers that differ from
        torch's, of masks of pixels); score with its interval (low, high) and standard error; loss against the float
        graph, positive if worse, with its interval, paired.

    Raises:
        Refusal: the float graph differs from torch by more than TOLERANCE.
    """
    truth, names = subject.truth, ["torch", *paths]
    metric, table, comparable = truth.metric, truth.table, truth.task.probabilities  # numbers always differ
    values, change, changed = [], [], []
    for row, ours, its in Lockstep(subject, [open_session(path) for path in paths.values()]).compare():
        _check(subject, row, ours, its[0])
        main = [each[""] for each in (ours, *its)]
        answers = [subject.answers(each) for each in main]
        change.append([_difference(each, main[0]) for each in main])
        changed.append([float(np.mean(each != answers[0])) if comparable else np.nan for each in answers])
        if subject.maps:
            mask = table.read_mask(row)
            values.append([metric.measure(mask, each) for each in main])
        else:
            values.append([subject.decided(each) for each in main])
    rows, of_items = np.array(subject.held), np.stack([np.stack(each) for each in values], axis=1)
    first = np.arange(len(rows))
    if subject.maps:
        arrays: list[tuple[np.ndarray, ...]] = [(each,) for each in of_items]
    else:
        units = [by_unit(table, rows, each, np.zeros(len(rows), int)) for each in of_items]
        arrays = [(scored.target, scored.probability, scored.rows) for scored in units]
        if "unit" in table.frame:
            first = np.flatnonzero(~table.frame["unit"].iloc[rows].duplicated().to_numpy())
    groups, _ = resampled_groups(table, rows[first])
    subsets = [("", "all", np.arange(len(first)))]
    for column in subgroup_columns(table, truth.config["data"]["columns"]):
        subsets += subgroups(table, column, rows[first])
    records, parts, scores = [], [], list[float]()
    for column, value, chosen in subsets:
        for number, name in enumerate(names):
            score = fold_score(metric, [array[chosen] for array in arrays[number]], np.zeros(len(chosen), int))
            parts.append((chosen, score))
            with warnings.catch_warnings(action="ignore"):  # about classes that a subgroup lacks
                scores.append(score(np.ones(len(chosen))))
            moved = np.array(change)[first[chosen], number].max(), np.array(changed)[first[chosen], number].mean()
            records.append((name, column, value, len(chosen), *moved))
    frame = pd.DataFrame(records, columns=["variant", "column", "value", "images", "change", "changed"])
    samples, point = resample(parts, groups, RESAMPLES, seed=0), np.array(scores)
    compared = [index - index % len(names) + 1 for index in range(len(frame))]  # the float graph of each subset
    sign = 1 if metric.greater_is_better else -1
    losses = sign * (samples[:, compared] - samples)
    enough = [len(np.unique(groups[chosen])) >= FEWEST_GROUPS for chosen, _ in parts]
    ends = [
        (*interval(draws), *interval(lost)) if many else (np.nan,) * 4
        for many, draws, lost in zip(enough, samples.T, losses.T, strict=True)
    ]
    frame[["low", "high", "loss_low", "loss_high"]] = ends
    return frame.assign(score=point, error=np.nanstd(samples, axis=0, ddof=1), loss=sign * (point[compared] - point))


def _difference(values: np.ndarray, reference: np.ndarray) -> float:
    return float((np.abs(values - reference) / np.maximum(np.abs(reference), 1)).max())


def _check(subject: Subject, row: int, ours: Values, its: Values) -> None:
    for name, reference in ours.items():
        worst = _difference(its[name], reference)
        if not worst <= (TOLERANCE + 1 / 255 if subject.tiles else TOLERANCE):  # tiles are stored in 8 bits
            output = f", output {name}" if name else ""
            raise Refusal(
                f"the graph differs from torch by {worst:.2g} on {subject.truth.table.ids[row]}{output}, and at most "
                f"{TOLERANCE:g} is allowed, so nothing was written: an operation of the network is exported differently"
            )


def measure_speed(subject: Subject, paths: Mapping[str, Path], feeds: Feeds, threads: int) -> pd.DataFrame:
    """Time one picture (or unit) in torch and with each variant, in turns; megabytes, milliseconds, ratios, memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    graph, batch = subject.graph().eval(), {name: torch.from_numpy(value) for name, value in feeds.items()}
    sessions = {name: open_session(path, threads) for name, path in paths.items()}
    runs: dict[str, Callable[[], object]] = {"torch": lambda: graph(batch)}
    runs |= {name: partial(session.run, None, feeds) for name, session in sessions.items()}
    took: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    with torch.inference_mode():
        for turn in range(-3, TURNS):
            if turn > 9 and time.perf_counter() - start > SECONDS:
                break
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                if turn >= 0:  # after three to warm up
                    took[name].append(1000 * (time.perf_counter() - began))
    torch.set_num_threads(before)
    models = [subject.run.models[member] for member in subject.members]
    where = {"torch": "|".join(map(str, models)), **{name: str(path) for name, path in paths.items()}}
    sizes = {"torch": sum((model / "model.safetensors").stat().st_size for model in models)}
    sizes |= {name: path.stat().st_size for name, path in paths.items()}
    records = []
    for name, times in took.items():
        (p50, p95), ours = np.percentile(times, [50, 95]), np.percentile(took["torch"], [50, 95])
        memory = _memory(where[name], feeds, threads) / 1e6
        records.append((name, sizes[name] / 1e6, p50, p95, p50 / ours[0], p95 / ours[1], memory))
    columns = ["variant", "mb", "p50_ms", "p95_ms", "p50_ratio", "p95_ratio", "memory_mb"]
    return pd.DataFrame(records, columns=columns)


def _memory(models: str, feeds: Feeds, threads: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "feeds.npz", **cast(Any, feeds))
        words = [sys.executable, "-c", MEMORY, models, str(Path(folder) / "feeds.npz"), str(threads)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)
