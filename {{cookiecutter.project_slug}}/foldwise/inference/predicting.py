"""Prediction of a table with the models of finished runs, as predict.py does it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from foldwise.data.folds import table_folds
from foldwise.data.samples import TableItems
from foldwise.data.table import Columns, Table, read_table, target_settings
from foldwise.errors import Refusal
from foldwise.inference.console import print_bad, print_notes, print_shares, print_written, write_overlays
from foldwise.inference.device import choose_devices
from foldwise.inference.fallback import add_fallback, fallback_values, find_bad
from foldwise.inference.items import describe_model, write_bad_images
from foldwise.inference.runs import TrainedRun, check_together, load_run
from foldwise.inference.sharing import Choices, PredictionJob, Work, predict_work
from foldwise.inference.spec import read_spec
from foldwise.inference.tta import TTA, load_tta
from foldwise.predictions.schema import Header
from foldwise.predictions.sources import output_folder, source_name
from foldwise.predictions.writers import BAD, PredictionWriter
from foldwise.progress import progress_bar, stepping
from foldwise.shell import command, override
from foldwise.tasks.outputs import Output

Folders = Mapping[str, Path]  # output name -> prediction folder, of one run


def predict_runs(
    runs: Sequence[Path],
    choices: Choices,
    table_path: Path | None = None,
    out: Path | None = None,
    console: Console | None = None,
    root: Path | None = None,
) -> list[Path]:
    """Predict a table with every model of the runs into a new folder per run; if interrupted, call again to resume.

    Args:
        table_path: default: the runs' `data.test_table`, or with `oof` their `data.table`.
        root: folder that the paths of the table are relative to; default: the runs' `data.root`.
        out: folder to write, or the parent folder if there are several runs; default: see `output_folders`.

    Returns:
        The prediction folder of each run's main output.
    """
    console = console or Console()
    tta = load_tta(choices.tta)
    trained = [load_run(Path(run)) for run in runs]
    check_together(trained)
    first = trained[0]
    if first.spec.main.meaning.kind != "maps" and (choices.overlays or choices.tiles):
        raise Refusal(f"--overlay and --tiles are for masks, and {first.folder} is a {first.spec.task} run")
    source = _read_table(first, choices.oof, table_path, root)
    items = TableItems.of(source, describe_model(next(iter(first.models.values()))).samples)
    table = items.table
    if choices.features and tta.names != ["identity"]:
        raise Refusal("--features reads stored features in one view: choose --tta none")
    features = [run.features(source) for run in trained] if choices.features else []
    folders = output_folders(trained, "oof" if choices.oof else table.path.stem, choices, out)
    print_notes(console, trained, table, choices.oof)
    fallback = fallback_values(first) if choices.fallback else {}
    jobs = oof_jobs(first, table) if choices.oof else [PredictionJob(list(range(len(table))), None)]
    devices = choose_devices(choices.device, choices.devices)
    writers = [
        {output.name: _writer(run, output, of_run, table, tta, jobs, choices) for output in run.spec.outputs}
        for run, of_run in zip(trained, folders, strict=True)
    ]
    with ExitStack() as stack:
        opened = [stack.enter_context(writer) for of_run in writers for writer in of_run.values()]
        done = set.intersection(*(writer.done for writer in opened))
        if done:
            console.print(f"{len(done)} images were predicted before the last command was interrupted")
        total = sum(len(job.rows) for job in jobs)
        remaining = [PredictionJob([row for row in job.rows if table.ids[row] not in done], job.fold) for job in jobs]
        models = sum(len(run.models) for run in trained)
        console.print(f"{total} images, models: {models}, views: {len(tta.names)}, on {', '.join(devices)}")
        shards = [[{name: one.new_shard() for name, one in of_run.items()} for of_run in writers] for _ in devices]
        with progress_bar("predicting", console) as progress:
            step = stepping(progress, "predicting", total, len(done))
            predict_work(Work(trained, remaining, table, source, tta, choices, features), devices, shards, step)
        bad: dict[int, Any] = {}
        if choices.fallback:
            work, finished = (
                Work(trained, jobs, table, source, tta, choices, features),
                [each.finished() for each in opened],
            )
            done = set.intersection(*finished)
            left = [PredictionJob([row for row in job.rows if table.ids[row] not in done], job.fold) for job in jobs]
            bad = find_bad(work, left)
            for writer in opened if bad else ():
                write_bad_images(writer.temporary / BAD, [image for image, _ in bad.values()])
            fallbacks = [{name: one.new_shard() for name, one in of_run.items()} for of_run in writers]
            add_fallback(work, left, fallback, {row: size for row, (_, size) in bad.items()}, fallbacks)
    main = [of_run[""] for of_run in folders]
    for folder in main if choices.overlays else ():
        write_overlays(folder, items, choices.overlays, {table.ids[row] for row in bad})
    print_bad(console, [image for image, _ in bad.values()], total, main)
    print_shares(console, main)
    print_written(console, trained, folders, choices)
    return main


def oof_jobs(run: TrainedRun, table: Table) -> list[PredictionJob]:
    """List the held-out rows of each fold; refuse a fold without a model."""
    if not run.folds:
        raise Refusal(f"{run.folder} is a full fit: its model saw every row, so there are no out-of-fold predictions")
    if run.missing_folds:
        raise Refusal(
            f"{run.folder}: folds {run.missing_folds} have no model yet: --oof needs every fold; "
            f"resume with {command('python', 'train.py', override('run', str(run.folder)))}"
        )
    fold_of = table_folds(table, run.data)
    every = run.spec.main.meaning.kind == "vectors"  # held-out images are searched among the others
    return [
        PredictionJob([row for row, id in enumerate(table.ids) if every or fold_of[id] == fold], fold)
        for fold in run.folds
    ]


def output_folders(runs: Sequence[TrainedRun], prefix: str, choices: Choices, out: Path | None) -> list[Folders]:
    """Name new prediction folders: `<run>/predictions/<prefix>-<tta>[-views][-tiles]`, `out`, or `<out>/<run>`."""
    name = f"{prefix}-{choices.tta.stem}"
    name += ("-views" if choices.keep_views else "") + ("-tiles" if choices.tiles else "")
    folders: list[Folders] = []
    for run in runs:
        default = run.folder / "predictions" / name
        main = default if out is None else out / run.folder.name if len(runs) > 1 else out
        in_run = main.parent == default.parent  # then further outputs go to <run>/outputs/<output>/predictions
        folders.append(
            {
                output.name: output_folder(run.folder, output) / "predictions" / main.name
                if in_run
                else beside(main, output.name)
                for output in run.spec.outputs
            }
        )
    existing = [folder for of_run in folders for folder in of_run.values() if folder.exists()]
    if existing:
        new = [str(run.folder) for run, of_run in zip(runs, folders, strict=True) if not of_run[""].exists()]
        others = f"the other runs alone:\n  {command('python', 'predict.py', *new)} ...\nor " if new else ""
        options = ("--tta", choices.tta.stem, "--out", f"predictions/{name}-2")
        again = command("python", "predict.py", *(run.folder for run in runs), *options)
        raise Refusal(
            f"{', '.join(map(str, existing))} exists and is not overwritten. Predict {others}under another name:\n"
            f"  {again}"
        )
    if len({of_run[""] for of_run in folders}) < len(folders):
        raise Refusal("several runs have the same name: predict them in two commands")
    return folders


def beside(folder: Path, output: str) -> Path:
    """Folder for the predictions of `output`, next to `folder` of the main output."""
    return folder.with_name(f"{folder.name}-{output}") if output else folder


def _read_table(run: TrainedRun, oof: bool, table_path: Path | None, root: Path | None) -> Table:
    if oof and table_path is not None:
        raise Refusal("--oof predicts the training table of the runs: remove --table")
    path = run.data["table"] if oof else table_path or run.data["test_table"]
    if path is None:
        raise Refusal(f"{run.folder} was trained without data.test_table: add --table <file>")
    columns, spec = Columns.from_config(run.data["columns"]), run.spec
    settings = target_settings(run.data) | {"exif": spec.exif}
    return read_table(
        Path(path), spec.task, root or run.data["root"], columns, spec.classes, has_target=oof, **settings
    )


def _writer(
    run: TrainedRun,
    output: Output,
    folders: Folders,
    table: Table,
    tta: TTA,
    jobs: Sequence[PredictionJob],
    choices: Choices,
) -> PredictionWriter:
    views = len(tta.names) if choices.keep_views else 1
    ids = hashlib.sha256(json.dumps([table.ids, table.frame["image"].tolist()]).encode()).hexdigest()
    request = {
        "models": [read_spec(path).sha256 for path in run.models.values()],
        "views": tta.names,
        "mean": tta.mean,
        "transforms": list(tta.transforms),
        "tiles": choices.tiles,
        "precision": choices.precision,
        **({"features": True} if choices.features else {}),
        "ids": ids,
        **({} if table.root == Path(run.data["root"]) else {"root": str(table.root.resolve())}),
        "members": sum(len(job.members(run)) for job in (jobs if output.meaning.kind == "vectors" else jobs[:1]))
        * views,
    }
    header = Header(
        split="oof" if choices.oof else "test",
        task=output.task,
        columns=output.stored,
        run=source_name(run.folder.resolve(), output),
        folds_hash=run.folds_hash,
        tta=tta.describe(choices.tiles or run.spec.fit == "tiles"),
        created_by="predict.py",
    )
    return PredictionWriter(folders[output.name], header, request, table.ids)
