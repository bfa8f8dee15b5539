"""A run: all folds of one configuration, from the checked data to the out-of-fold score.

    runs/<experiment>-<hash>/
        config.yaml  identity.json  environment.json
        fold<k>/     see training/fold.py; metrics.json when it is finished
        oof/         the out-of-fold predictions of all folds
        metrics.json report.html

The parent process does all of this without torch; the folds are trained in processes of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table as RichTable

from competition import FORMAT_VERSION
from competition.config import write_config
from competition.data.images import read_mask
from competition.data.prepare import Prepared, prepare
from competition.files import read_json, sha256_file, write_json
from competition.predictions.metrics import score_fold_counts
from competition.predictions.scoring import score_table
from competition.predictions.store import iter_average_maps, merge_folders, read_predictions
from competition.reporting.run_report import report_run
from competition.training.environment import describe_environment
from competition.training.identity import describe_differences, hash_identity, hash_table, make_identity
from competition.training.processes import Place, call, fold_context, run_processes

console = Console()


@dataclass(frozen=True)
class Scores:
    """The competition's metric: of each fold, and overall as the metric says (pooled, or the mean of the folds).

    `counts` are the (N, C, 3) pixel counts behind it, for segmentation.
    """

    metric: Any
    per_fold: dict[int, float]
    overall: float
    counts: np.ndarray | None = None


def train(config: dict[str, Any], runs: Path = Path("runs")) -> Path:
    """Train the folds that are asked for and not finished yet; the folder of the run.

    Args:
        config: resolved, plain values.

    Raises:
        ValueError: the data or the configuration cannot be used; nothing has been written then.
        RuntimeError: a fold failed; the others' results and the state before the failure are kept.
    """
    context = fold_context()  # it imports torch in the background, while the data is checked here
    data = config["data"]
    prepared = prepare(data, config["task"], config["seed"], make_folds=data["name"] == "sample")
    folds = choose_folds(config["fold"], prepared)
    # Imported by name in the child only: this process stays without torch.
    hardware = call(context, _inspect, config, prepared)
    world = count_processes(config["trainer"], hardware)
    identity = make_identity(config, world, hash_contents(config, prepared))
    run = open_run(config, identity, hardware, runs)
    for fold in folds:
        if (run / f"fold{fold}" / "metrics.json").exists():
            console.print(f"fold {fold} is finished")
            continue
        console.rule(f"{run.name}  fold {fold}", style="dim")
        code = run_processes(context, _train_fold, (run, fold), world)
        if code:
            raise RuntimeError(
                f"fold {fold} ended with exit code {code}, see above; what is finished is kept in {run}. "
                "The same command goes on from there"
            )
        finish_fold(run, fold, config, prepared, world)
    finish_run(run, config, prepared)
    return run


def _inspect(config: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    from competition.training.build import inspect_config

    return inspect_config(config, prepared)


def _train_fold(run: Path, fold: int, place: Place) -> None:
    from competition.training.fold import train_fold

    train_fold(run, fold, place)


def choose_folds(chosen: Any, prepared: Prepared) -> list[int]:
    """The folds that `fold=` asks for: "all", a number, or a list of numbers.

    Raises:
        ValueError: a fold that does not exist.
    """
    existing = sorted(set(prepared.folds.values()) - {-1})
    if chosen == "all":
        return existing
    wanted = chosen if isinstance(chosen, list) else [chosen]
    unknown = [fold for fold in wanted if fold not in existing]
    if unknown or not wanted:
        raise ValueError(f"fold={chosen}: the folds are {existing}; give one, a list such as fold=[0,1], or fold=all")
    return sorted(set(wanted))


def count_processes(trainer: Mapping[str, Any], hardware: Mapping[str, Any]) -> int:
    """Processes that train one fold on this machine: one a device.

    Raises:
        ValueError: the accelerator or so many devices are not there.
    """
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if accelerator in ("gpu", "cuda") and hardware["accelerator"] != "gpu":
        raise ValueError("trainer.accelerator=gpu, but torch sees no GPU here: use trainer=auto or trainer=cpu")
    available = len(hardware["devices"]) if accelerator != "cpu" and hardware["accelerator"] == "gpu" else None
    if devices == "auto":
        return available or 1
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices is {devices!r}; give a number, or auto for all GPUs")
    if available and devices > available:
        raise ValueError(f"trainer.devices={devices}, but there are {available} GPUs here")
    return devices


def hash_contents(config: Mapping[str, Any], prepared: Prepared) -> dict[str, str]:
    """Hashes of what a run reads, by name."""
    weights = config["model"]["weights"]
    return {
        "table": hash_table(prepared.table),
        "folds": prepared.folds_hash,
        "images": prepared.images_hash,
        "weights": sha256_file(Path(weights))[:16] if weights else "none",
    }


def open_run(config: dict[str, Any], identity: dict[str, str], hardware: Mapping[str, Any], runs: Path) -> Path:
    """The folder of the run with this identity, made if it is new; says how it differs from the nearest other one.

    Raises:
        ValueError: `run=` is not a run, or is of another version of this code.
    """
    environment = describe_environment(hardware)
    if config["run"] is not None:
        run = Path(config["run"])
        return _continue_run(run, identity, environment)
    experiment = config["experiment_name"] or "train"
    run = runs / f"{experiment}-{hash_identity(identity)}"
    if (run / "identity.json").exists():
        return _continue_run(run, identity, environment)
    nearest = _nearest_run(identity, runs, experiment)
    if nearest is not None:
        console.print(f"new run {run}; it differs from {nearest[0]} in")
        for line in nearest[1][:20]:
            console.print(f"  {line}", markup=False, highlight=False)
    run.mkdir(parents=True, exist_ok=True)
    write_config(run, config)
    write_json(run / "environment.json", {"created": environment, "continued": []})
    # Last, since a run is recognised by it.
    write_json(run / "identity.json", {"format_version": FORMAT_VERSION, "identity": identity})
    return run


def _continue_run(run: Path, identity: Mapping[str, str], environment: dict[str, Any]) -> Path:
    old = _read_identity(run)
    differences = describe_differences(identity, old)
    record = read_json(run / "environment.json")
    if differences:
        console.print(f"{run} goes on in spite of what is different now:")
        for line in differences:
            console.print(f"  {line}", markup=False, highlight=False)
        console.print("its own config.yaml stays in force")
    finished = (run / "metrics.json").exists()
    if differences or not finished:
        record["continued"].append(environment | {"differences": differences})
        write_json(run / "environment.json", record)
    return run


def _read_identity(run: Path) -> dict[str, str]:
    path = run / "identity.json"
    if not path.is_file():
        raise ValueError(f"{run} is not a run: it has no identity.json; runs are the folders that train.py makes in runs/")
    content = read_json(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{run} has the format version {content.get('format_version')}, and this code reads {FORMAT_VERSION}: "
            "use the code that the run was made with (its commit is in environment.json), or train again"
        )
    return content["identity"]


def _nearest_run(identity: Mapping[str, str], runs: Path, experiment: str) -> tuple[Path, list[str]] | None:
    """The run of the same experiment with the fewest differences, the newest of equals."""
    others = []
    for path in runs.glob(f"{experiment}-*/identity.json"):
        try:
            differences = describe_differences(identity, _read_identity(path.parent))
        except ValueError:
            continue  # of another version; it takes no part
        others.append((len(differences), -path.stat().st_mtime, path.parent, differences))
    if not others:
        return None
    _, _, run, differences = min(others, key=lambda other: other[:2])
    return run, differences


def finish_fold(run: Path, fold: int, config: Mapping[str, Any], prepared: Prepared, world: int) -> None:
    """Write the metrics.json of a fold all of whose processes have ended well. Doing it twice is harmless."""
    shards = sorted((run / f"fold{fold}").glob("oof-*-of-*"))
    history = pd.read_csv(run / f"fold{fold}" / "history.csv")
    scores = score_shards(shards, config, prepared)
    write_json(
        run / f"fold{fold}" / "metrics.json",
        {
            "fold": fold,
            "metric": type(scores.metric).__name__,
            "score": plain_number(scores.per_fold[fold]),
            "epochs": len(history),
            "seconds": round(float(history["seconds"].sum()), 1),
            "processes": world,
        },
    )


def score_shards(shards: Sequence[Path], config: Mapping[str, Any], prepared: Prepared) -> Scores:
    """The competition's metric over the predictions in these folders."""
    table = prepared.table
    metric = instantiate(config["metric"], _convert_="all").for_task(config["task"], table.classes)
    row_of = {id: row for row, id in enumerate(table.ids)}
    parts = [read_predictions(shard) for shard in shards]
    if config["task"] == "segmentation":
        counts, folds = [], []
        for part in parts:
            for id, probability in iter_average_maps(part):
                counts.append(metric.counts(read_mask(table.mask_path(row_of[id])), probability))
                folds.append(prepared.folds[id])
        stacked = np.stack(counts)
        return Scores(metric, *score_fold_counts(metric, stacked, np.array(folds)), stacked)
    frame = pd.concat([part.frame for part in parts])
    rows = np.array([row_of[id] for id in frame["id"]])
    probability = frame[list(table.classes)].to_numpy(np.float64)
    return Scores(metric, *score_table(metric, table, rows, probability, frame["fold"].to_numpy()))


def finish_run(run: Path, config: Mapping[str, Any], prepared: Prepared) -> None:
    """Put the folds together where all are finished, and say what came out. Doing it twice is harmless."""
    existing = sorted(set(prepared.folds.values()) - {-1})
    finished = [fold for fold in existing if (run / f"fold{fold}" / "metrics.json").exists()]
    if finished == existing and not (run / "metrics.json").exists():
        if not (run / "oof").exists():
            shards = [shard for fold in existing for shard in sorted((run / f"fold{fold}").glob("oof-*-of-*"))]
            merge_folders(shards, run / "oof", [id for id in prepared.table.ids if prepared.folds[id] >= 0])
        scores = score_shards([run / "oof"], config, prepared)
        report_run(
            run,
            config,
            prepared.table,
            scores.metric,
            scores.per_fold,
            scores.overall,
            read_predictions(run / "oof"),
            scores.counts,
        )
        values = list(scores.per_fold.values())
        write_json(
            run / "metrics.json",
            {
                "metric": type(scores.metric).__name__,
                "overall": plain_number(scores.overall),
                "mean": plain_number(np.mean(values)),
                "std": plain_number(np.std(values)),
                "folds": {str(fold): plain_number(score) for fold, score in scores.per_fold.items()},
            },
        )
    print_scores(run, finished, existing)


def plain_number(value: float) -> float | None:
    """A float for JSON, which has no NaN: None stands for a score that does not exist."""
    return float(value) if np.isfinite(value) else None


def print_scores(run: Path, finished: list[int], existing: list[int]) -> None:
    """The score of each finished fold, of all together, and what to do next."""
    folds = [read_json(run / f"fold{fold}" / "metrics.json") for fold in finished]
    metric = folds[0]["metric"]
    table = RichTable(title=run.name, title_justify="left")
    for name in ("fold", metric, "epochs", "seconds"):
        table.add_column(name, justify="right")
    for fold in folds:
        table.add_row(str(fold["fold"]), _shown(fold["score"]), str(fold["epochs"]), f"{fold['seconds']:.0f}")
    if len(folds) > 1:
        values = [fold["score"] for fold in folds if fold["score"] is not None]
        table.add_section()
        table.add_row("mean ± std", f"{np.mean(values):.4f} ± {np.std(values):.4f}")
    if finished == existing:
        table.add_row("OOF overall", _shown(read_json(run / "metrics.json")["overall"]))
    console.print(table)
    if finished != existing:
        missing = [fold for fold in existing if fold not in finished]
        console.print(f"folds {missing} are not finished: the same command with fold=all trains them")
        return
    console.print(f"models and history   {run}/fold<k>/\nout-of-fold          {run}/oof/\nreport               {run}/report.html")
    console.print(f"next                 python predict.py {run}")


def _shown(score: float | None) -> str:
    return "—" if score is None else f"{score:.4f}"
