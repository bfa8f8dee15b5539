"""Predicting a table with the models of finished runs; what predict.py does.

Only files that a run left are read: its config.yaml (where the table is and what its columns are called) and the
model folders of its folds. Nothing is instantiated from a configuration.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from competition.config import read_config
from competition.data.images import read_image
from competition.data.table import Columns, Table, read_table
from competition.files import read_json, write_atomic
from competition.inference.predictor import Predictor
from competition.inference.tta import TTA, load_tta
from competition.inference.weights import ModelSpec, load_model, read_spec
from competition.predictions.members import class_shares
from competition.predictions.store import Header, MapWriter, write_predictions

SNAPSHOT = "last"


@dataclass(frozen=True)
class TrainedRun:
    """A run that has models: its configuration's data section, and the spec of each finished fold's model."""

    folder: Path
    data: dict[str, Any]
    specs: dict[int, ModelSpec]

    @property
    def spec(self) -> ModelSpec:
        return next(iter(self.specs.values()))

    @property
    def folds_hash(self) -> str | None:
        path = self.folder / "identity.json"
        return read_json(path).get("identity", {}).get("content folds") if path.is_file() else None


def predict_runs(
    runs: Sequence[Path],
    table_path: Path | None = None,
    tta_path: Path = Path("configs/tta/none.yaml"),
    out: Path | None = None,
    batch_size: int = 32,
    workers: int = 2,
    device: str = "auto",
    precision: str = "32",
    overlays: int = 0,
    console: Console | None = None,
) -> list[Path]:
    """Predict a table with every fold of the runs, reading each image once; a new prediction folder a run.

    Args:
        runs: folders that train.py made, of one competition.
        table_path: None: the runs' own `data.test_table`.
        tta_path: a file such as configs/tta/d4.yaml.
        out: the folder to write, with several runs the folder of their folders; None: see `output_folders`.
        device: "auto" or a device of torch's.
        overlays: pictures to write with the answer painted over them (segmentation).

    Raises:
        ValueError: whatever is wrong with runs, table, images or choices; nothing is left half-written then.
    """
    console = console or Console()
    tta = load_tta(tta_path)
    trained = [open_run(Path(run)) for run in runs]
    check_together(trained)
    first = trained[0]
    if overlays and first.spec.task != "segmentation":
        raise ValueError(f"--overlay paints masks, and {first.folder} is a {first.spec.task} run")
    if table_path is None and first.data["test_table"] is None:
        raise ValueError(f"{first.folder} was trained without data.test_table: say what to predict with --table <file>")
    table_path = Path(table_path or first.data["test_table"])
    folders = output_folders(trained, table_path, tta_path, out)
    columns = Columns.from_config(first.data["columns"])
    table = read_table(table_path, first.spec.task, first.data["root"], columns, first.spec.classes, has_target=False)
    if table_path.resolve() == Path(first.data["table"]).resolve():
        console.print(
            "[yellow]This is the training table: every image was seen by all folds but its own. "
            "Honest predictions of it are in <run>/oof.[/yellow]"
        )
    for run in trained:
        # With folds given in the table, how many there are stands nowhere else.
        existing = range(run.data["folds"]) if run.data["columns"]["fold"] is None else run.specs
        missing = [fold for fold in existing if fold not in run.specs]
        if missing:
            console.print(f"[yellow]{run.folder}: folds {missing} have no model yet and do not predict.[/yellow]")
    models = [load_model(run.folder / f"fold{fold}" / "model") for run in trained for fold in run.specs]
    device = _choose_device(device)
    console.print(f"{len(table)} images, models: {len(models)}, views: {len(tta.views)}, on {device}")
    predictor = Predictor(models, tta, device, batch_size, workers, precision)
    results = _with_progress(
        predictor.predict([table.image_path(row) for row in range(len(table))]), len(table), console
    )
    write = _write_maps if first.spec.task == "segmentation" else _write_rows
    shares = write(trained, folders, table, tta, results, overlays)
    _print_shares(console, trained, shares, first.spec)
    _print_outputs(console, folders, first.spec, overlays)
    return folders


def open_run(folder: Path) -> TrainedRun:
    """Find the models of a run.

    Raises:
        ValueError: it is not a run, no fold has a model yet, or the folds' models do not go together.
    """
    config = read_config(folder)
    found = {
        int(match[1]): path
        for path in folder.glob("fold*/model/model.json")
        if (match := re.fullmatch(r"fold(\d+)", path.parents[1].name))
    }
    if not found:
        raise ValueError(f"{folder} has no model yet: no fold is finished; go on with python train.py run={folder}")
    specs = {fold: read_spec(found[fold].parent) for fold in sorted(found)}
    first = next(iter(specs.values()))
    for fold, spec in specs.items():
        if (spec.task, spec.classes) != (first.task, first.classes):
            raise ValueError(f"{folder}: the model of fold {fold} has another task or other classes than the first")
    return TrainedRun(folder, config["data"], specs)


def check_together(runs: Sequence[TrainedRun]) -> None:
    """Refuse runs that cannot be predicted in one go, or that are named twice.

    Raises:
        ValueError: names the run and what differs.
    """
    first = runs[0]
    for index, run in enumerate(runs[1:], start=1):
        if run.folder.resolve() in {other.folder.resolve() for other in runs[:index]}:
            raise ValueError(f"{run.folder} is named twice")
        for what, ours, its in (
            ("task", first.spec.task, run.spec.task),
            ("classes", first.spec.classes, run.spec.classes),
            ("data root", first.data["root"], run.data["root"]),
            ("columns", first.data["columns"], run.data["columns"]),
            ("test table", first.data["test_table"], run.data["test_table"]),
        ):
            if ours != its:
                raise ValueError(
                    f"{run.folder} and {first.folder} do not have the same {what} ({its} and {ours}): "
                    "predict them in two commands"
                )


def output_folders(runs: Sequence[TrainedRun], table: Path, tta: Path, out: Path | None) -> list[Path]:
    """Where the predictions go: `<run>/predictions/<table>-<tta>`, or `out`, or `<out>/<run>` with several runs.

    Raises:
        ValueError: some of them exist; the message has a command that works.
    """
    name = f"{table.stem}-{tta.stem}"
    if out is None:
        folders = [run.folder / "predictions" / name for run in runs]
    else:
        folders = [out] if len(runs) == 1 else [out / run.folder.name for run in runs]
    there = [folder for folder in folders if folder.exists()]
    if there:
        left = [str(run.folder) for run, folder in zip(runs, folders, strict=True) if not folder.exists()]
        others = f"python predict.py {shlex.join(left)} ...\n" if left else ""
        raise ValueError(
            f"{', '.join(map(str, there))} exists and is not overwritten. Predict "
            + (f"the other runs alone:\n  {others}or " if left else "")
            + f"under another name:\n  python predict.py {shlex.join(str(run.folder) for run in runs)} "
            f"--table {shlex.quote(str(table))} --tta {tta.stem} --out predictions/{name}-2"
        )
    if len(set(folders)) < len(folders):
        raise ValueError("several runs have the same name: predict them in two commands")
    return folders


def _write_rows(
    runs: Sequence[TrainedRun],
    folders: Sequence[Path],
    table: Table,
    tta: TTA,
    results: Iterator[tuple[int, np.ndarray]],
    overlays: int,
) -> list[pd.Series]:
    """Write classification predictions; the share of each class, a run each."""
    every = np.stack([probability for _, probability in results])  # (N, M, C)
    shares, start = [], 0
    for run, folder in zip(runs, folders, strict=True):
        parts = []
        for fold in run.specs:
            frame = pd.DataFrame({"id": table.ids, "fold": fold, "snapshot": SNAPSHOT, "view": tta.name})
            parts.append(pd.concat([frame, pd.DataFrame(every[:, start], columns=list(run.spec.classes))], axis=1))
            start += 1
        frame, header = pd.concat(parts, ignore_index=True), _header(run, tta)
        write_predictions(folder, frame, header)
        shares.append(class_shares(frame, header))
    return shares


def _write_maps(
    runs: Sequence[TrainedRun],
    folders: Sequence[Path],
    table: Table,
    tta: TTA,
    results: Iterator[tuple[int, np.ndarray]],
    overlays: int,
) -> list[pd.Series]:
    """Write segmentation predictions, one image at a time; the share of each class in the pixels, a run each."""
    classes = runs[0].spec.classes
    pixels = np.zeros((len(runs), len(classes)), np.int64)
    painted = set(np.linspace(0, len(table) - 1, min(overlays, len(table))).astype(int)) if overlays else set()
    with ExitStack() as stack:
        writers = [
            stack.enter_context(MapWriter(folder, _header(run, tta))) for run, folder in zip(runs, folders, strict=True)
        ]
        for row, probability in results:
            start = 0
            for index, (run, writer) in enumerate(zip(runs, writers, strict=True)):
                own = probability[start : start + len(run.specs)]
                start += len(run.specs)
                for fold, member in zip(run.specs, own, strict=True):
                    writer.add(table.ids[row], fold, SNAPSHOT, tta.name, member)
                answer = own.mean(axis=0).argmax(axis=0)
                pixels[index] += np.bincount(answer.ravel(), minlength=len(classes))
                if row in painted:
                    _write_overlay(writer.temporary / "overlays", table, row, answer, classes)
    return [pd.Series(counts / counts.sum(), list(classes)) for counts in pixels]


def _write_overlay(folder: Path, table: Table, row: int, answer: np.ndarray, classes: Sequence[str]) -> None:
    from competition.reporting.figures import overlay, to_png

    image = read_image(table.image_path(row))
    safe = re.sub(r"[^\w.-]+", "_", table.ids[row])[:80]
    with write_atomic(folder / f"{row:06d}-{safe}.png") as temporary:
        temporary.write_bytes(to_png(overlay(image, answer, classes, table.ids[row])))


def _header(run: TrainedRun, tta: TTA) -> Header:
    return Header(
        kind="test",
        task=run.spec.task,
        classes=list(run.spec.classes),
        run=run.folder.resolve().name,
        folds_hash=run.folds_hash,
        tta={"views": list(tta.views), "mean": tta.mean},
        created_by="predict.py",
    )


def _choose_device(name: str) -> str:
    """A device that is there.

    Raises:
        ValueError: it is not.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used ({str(error).splitlines()[0]}): try --device cpu") from error
    return name


def _with_progress(results: Iterator[Any], total: int, console: Console) -> Iterator[Any]:
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        yield from progress.track(results, total=total)


def _print_shares(console: Console, runs: Sequence[TrainedRun], shares: list[pd.Series], spec: ModelSpec) -> None:
    what = {"multiclass": "images", "multilabel": "images with it", "segmentation": "pixels"}[spec.task]
    console.print(f"share of the {what}, averaged over the folds")
    table = RichTable()
    table.add_column("class")
    for run in runs:
        table.add_column(run.folder.name, justify="right")
    for name in list(spec.classes)[:50]:
        table.add_row(name, *(f"{share[name]:.1%}" for share in shares))
    console.print(table)
    if len(spec.classes) > 50:
        console.print(f"and {len(spec.classes) - 50} more classes")


def _print_outputs(console: Console, folders: Sequence[Path], spec: ModelSpec, overlays: int) -> None:
    for folder in folders:
        console.print(f"written   {folder}", soft_wrap=True, highlight=False, markup=False)
        if overlays:
            console.print(f"overlays  {folder / 'overlays'}", soft_wrap=True, highlight=False, markup=False)
    if spec.task != "segmentation":
        code = (
            "from pathlib import Path; from competition.predictions.members import average_members; "
            "from competition.predictions.store import read_predictions; "
            f"p = read_predictions(Path('{folders[-1]}')); "
            "average_members(p.frame, p.classes).to_csv('probabilities.csv', index=False)"
        )
        console.print(f'next      python -c "{code}"', soft_wrap=True, highlight=False, markup=False)
