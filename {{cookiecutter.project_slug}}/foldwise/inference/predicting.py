"""Predicting a table with the models of finished runs; what predict.py does."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from foldwise.data.folds import table_folds
from foldwise.data.samples import TableItems
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal
from foldwise.inference.device import choose_devices
from foldwise.inference.inspection import equal_images, print_shares, write_overlays
from foldwise.inference.runs import TrainedRun, check_together, open_run
from foldwise.inference.sharing import Choices, Job, Work, predict_work
from foldwise.inference.tta import TTA, load_tta
from foldwise.inference.weights import load_samples
from foldwise.predictions.schema import Header
from foldwise.predictions.sources import output_folder, source_name
from foldwise.predictions.writers import PredictionWriter
from foldwise.progress import progress_bar, stepping
from foldwise.tasks.outputs import Output


def predict_runs(
    runs: Sequence[Path],
    choices: Choices,
    table_path: Path | None = None,
    out: Path | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Predict a table with every model of the runs, reading each image once; a new prediction folder a run.

    Interrupted, the same call goes on where it stopped.

    Args:
        runs: folders that train.py made, of one competition.
        table_path: None: the runs' own `data.test_table`, or with `oof` their `data.table`.
        out: the folder to write, with several runs the folder of their folders; None: see `output_folders`.

    Raises:
        Refusal: whatever is wrong with runs, table, images or choices.
    """
    console = console or Console()
    tta = load_tta(choices.tta)
    trained = [open_run(Path(run)) for run in runs]
    check_together(trained)
    first = trained[0]
    if first.spec.main.meaning.kind != "maps" and (choices.overlays or choices.tiles):
        raise Refusal(f"--overlay and --tiles are for masks, and {first.folder} is a {first.spec.task} run")
    source = _read_table(first, choices.oof, table_path)
    samples = load_samples(next(iter(first.models.values())))
    items = TableItems.of(source, samples)
    table = items.table
    folders = output_folders(trained, "oof" if choices.oof else table.path.stem, choices, out)
    _print_notes(console, trained, table, choices.oof)
    jobs = oof_jobs(first, table) if choices.oof else [Job(list(range(len(table))), None)]
    devices = choose_devices(choices.device, choices.devices)
    writers = [
        {output.name: _writer(run, output, folder, table, tta, jobs, choices) for output in run.spec.outputs}
        for run, folder in zip(trained, folders, strict=True)
    ]
    every = [writer for of_run in writers for writer in of_run.values()]
    with ExitStack() as stack:
        for writer in every:
            stack.enter_context(writer)
        done = set.intersection(*(writer.done for writer in every))
        if done:
            console.print(f"{len(done)} images were predicted before the last command was interrupted")
        total = sum(len(job.rows) for job in jobs)
        left = [Job([row for row in job.rows if table.ids[row] not in done], job.fold) for job in jobs]
        console.print(
            f"{total} images, models: {sum(len(run.models) for run in trained)}, views: {len(tta.names)}, "
            f"on {', '.join(devices)}"
        )
        with progress_bar("predicting", console) as progress:
            step = stepping(progress, "predicting", total, len(done))
            predict_work(
                Work(trained, left, table, source, tta, choices),
                devices,
                lambda: [{name: writer.new_shard() for name, writer in of_run.items()} for of_run in writers],
                step,
            )
    for folder in folders:
        write_overlays(folder, items, choices.overlays)
    print_shares(console, folders)
    for run, folder in zip(trained, folders, strict=True):
        console.print(f"written   {folder}", soft_wrap=True, highlight=False, markup=False)
        for output in run.spec.outputs[1:]:
            console.print(f"          {_folder_of(run, output, folder)}", soft_wrap=True, highlight=False, markup=False)
        if choices.overlays:
            console.print(f"overlays  {folder / 'overlays'}", soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"next      {_next_command(trained, folders, choices)}", soft_wrap=True, highlight=False, markup=False
    )
    return folders


def oof_jobs(run: TrainedRun, table: Table) -> list[Job]:
    """The held-out rows of each fold.

    Raises:
        Refusal: a row has no fold, or a fold no model yet.
    """
    if not run.folds:
        raise Refusal(f"{run.folder} was trained on every row: there is none that its model did not see")
    if run.missing_folds:
        raise Refusal(f"folds {run.missing_folds} have no model yet: every row needs the model of its fold")
    fold_of = table_folds(table, run.data)
    return [Job([row for row, id in enumerate(table.ids) if fold_of[id] == fold], fold) for fold in run.folds]


def output_folders(runs: Sequence[TrainedRun], what: str, choices: Choices, out: Path | None) -> list[Path]:
    """Where predictions go: `<run>/predictions/<table>-<tta>[-views]`, or `out`, or `<out>/<run>` with several runs.

    Raises:
        Refusal: some of them exist; the message has a command that works.
    """
    name = f"{what}-{choices.tta.stem}" + ("-views" if choices.keep_views else "") + ("-tiles" if choices.tiles else "")
    if out is None:
        folders = [run.folder / "predictions" / name for run in runs]
    else:
        folders = [out] if len(runs) == 1 else [out / run.folder.name for run in runs]
    there = [folder for folder in folders if folder.exists()]
    there += [
        other
        for run, folder in zip(runs, folders, strict=True)
        for output in run.spec.outputs[1:]
        if (other := _folder_of(run, output, folder)).exists()
    ]
    if there:
        left = [str(run.folder) for run, folder in zip(runs, folders, strict=True) if not folder.exists()]
        others = f"python predict.py {shlex.join(left)} ...\n" if left else ""
        raise Refusal(
            f"{', '.join(map(str, there))} exists and is not overwritten. Predict "
            + (f"the other runs alone:\n  {others}or " if left else "")
            + f"under another name:\n  python predict.py {shlex.join(str(run.folder) for run in runs)} "
            f"--tta {choices.tta.stem} --out predictions/{name}-2"
        )
    if len(set(folders)) < len(folders):
        raise Refusal("several runs have the same name: predict them in two commands")
    return folders


def _read_table(run: TrainedRun, oof: bool, table_path: Path | None) -> Table:
    columns = Columns.from_config(run.data["columns"])
    if oof and table_path is not None:
        raise Refusal("--oof predicts the table that the runs were trained on: leave --table out")
    if oof:
        return read_table(run.data["table"], run.spec.task, run.data["root"], columns, run.spec.classes)
    if table_path is None and run.data["test_table"] is None:
        raise Refusal(f"{run.folder} was trained without data.test_table: say what to predict with --table <file>")
    path = Path(table_path or run.data["test_table"])
    return read_table(path, run.spec.task, run.data["root"], columns, run.spec.classes, has_target=False)


def _folder_of(run: TrainedRun, output: Output, folder: Path) -> Path:
    """Where a run's predictions of an output go, when those of its main one go to `folder`."""
    if output.name and folder.parent == run.folder / "predictions":
        return output_folder(run.folder, output) / "predictions" / folder.name
    return beside(folder, output.name)


def beside(folder: Path, output: str) -> Path:
    """Where predictions of an output go, by its name, when a folder is named for those of the main one."""
    return folder.with_name(f"{folder.name}-{output}") if output else folder


def _writer(
    run: TrainedRun, output: Output, folder: Path, table: Table, tta: TTA, jobs: Sequence[Job], choices: Choices
) -> PredictionWriter:
    views = len(tta.names) if choices.keep_views else 1
    ids = hashlib.sha256(json.dumps([table.ids, table.frame["image"].tolist()]).encode()).hexdigest()
    request = {
        "models": run.hashes(),
        "views": tta.names,
        "mean": tta.mean,
        "transforms": list(tta.transforms),
        "tiles": choices.tiles,
        "precision": choices.precision,
        "ids": ids,
        "members": len(jobs[0].members(run)) * views,
    }
    header = Header(
        split="oof" if choices.oof else "test",
        task=output.task,
        columns=output.columns,
        run=source_name(run.folder.resolve(), output),
        folds_hash=run.folds_hash,
        tta=tta.describe(choices.tiles or run.spec.fit == "tiles"),
        created_by="predict.py",
    )
    return PredictionWriter(_folder_of(run, output, folder), header, request, table.ids)


def _next_command(runs: Sequence[TrainedRun], folders: Sequence[Path], choices: Choices) -> str:
    named = shlex.join(str(run.folder) for run in runs)
    if choices.keep_views:
        return f"python tools/average.py {shlex.quote(str(folders[0]))} --mean geometric"
    if choices.oof:
        return f"python evaluate.py {named} --oof {folders[0].name}"
    if len(runs) > 1:
        return f"python ensemble.py {named} --test {folders[0].name}"
    return f"python submit.py make {named} --test {folders[0].name}"


def _print_notes(console: Console, runs: Sequence[TrainedRun], table: Table, oof: bool) -> None:
    data = runs[0].data
    for run in runs:
        if run.missing_folds:
            console.print(
                f"[yellow]{run.folder}: folds {run.missing_folds} have no model yet and do not predict.[/yellow]"
            )
    if oof:
        return
    if table.path.resolve() == Path(data["table"]).resolve():
        console.print(
            "[yellow]This is the training table: every image was seen by all folds but its own. "
            "Honest predictions of it are in <run>/oof, or come with --oof.[/yellow]"
        )
        return
    if not Path(data["table"]).exists():
        return  # another machine, that only predicts
    columns, spec = Columns.from_config(data["columns"]), runs[0].spec
    training = read_table(data["table"], spec.task, data["root"], columns, spec.classes, has_target=False)
    pairs = equal_images(table, training)
    if pairs:
        shown = ", ".join(f"{id} = {other}" for id, other in pairs[:5]) + (", …" if len(pairs) > 5 else "")
        console.print(f"[yellow]{len(pairs)} images equal a training image, whose label is known: {shown}[/yellow]")
