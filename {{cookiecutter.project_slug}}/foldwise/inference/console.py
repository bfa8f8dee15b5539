"""Console output and overlays of predict.py."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from foldwise.data.problems import some
from foldwise.data.samples import TableItems
from foldwise.data.table import Columns, Table, read_table
from foldwise.files import equal_files, write_atomic
from foldwise.inference.items import BadImage
from foldwise.inference.runs import TrainedRun
from foldwise.inference.sharing import Choices
from foldwise.predictions.store import class_shares, iter_average_maps, read_predictions
from foldwise.predictions.writers import BAD
from foldwise.reporting.console import make_table, print_line
from foldwise.shell import command
from foldwise.tasks import Classes

SHOWN_CLASSES, SHOWN_BAD = 50, 20


def print_notes(console: Console, runs: Sequence[TrainedRun], table: Table, oof: bool) -> None:
    """Print notes on folds without a model and on images whose label is already known."""
    data, spec = runs[0].data, runs[0].spec
    notes = [
        f"{run.folder}: folds {run.missing_folds} have no model yet; predicting without them."
        for run in runs
        if run.missing_folds
    ]
    if not oof and table.path.resolve() == Path(data["table"]).resolve():
        notes.append(
            "This is the training table: each image was in the training data of all folds but one. "
            "Out-of-fold predictions are in <run>/oof; for other views use --oof."
        )
    elif not oof and Path(data["table"]).exists():  # may be missing on a machine that only predicts
        columns = Columns.from_config(data["columns"])
        training = read_table(data["table"], spec.task, data["root"], columns, spec.classes, has_target=False)
        pairs = _equal_images(table, training)
        if pairs:
            notes.append(f"{len(pairs)} images are identical to a training image with a known label: {some(pairs)}")
    for note in notes:
        console.print(f"[yellow]{note}[/yellow]")


def _equal_images(table: Table, training: Table) -> list[str]:
    """Images whose files are byte-identical to a training image, as "id = training id"."""
    files, ids, count = [table.image_path(row) for row in range(len(table))], [*table.ids], len(table)
    sizes = {file.stat().st_size for file in files}
    for row, id in enumerate(training.ids):
        if (file := training.image_path(row)).stat().st_size in sizes:
            files.append(file)
            ids.append(id)
    return [f"{ids[row]} = {ids[same[-1]]}" for same in equal_files(files) for row in same if row < count <= same[-1]]


def print_shares(console: Console, folders: Sequence[Path]) -> None:
    """Print the share of each class in the predictions, to compare with the training table."""
    predictions = [read_predictions(folder) for folder in folders]
    task, classes = predictions[0].header.meaning, predictions[0].columns
    if not isinstance(task, Classes) or task.kind == "maps":
        return  # would read every map again; overlays show more
    what = "images" if task.exclusive else "images with the label"
    title = f"share of {what}, averaged over the models"
    table = make_table(title, ["class"], [each.header.run for each in predictions])
    shares = [class_shares(each.frame, each.header) for each in predictions]
    for name in classes[:SHOWN_CLASSES]:
        table.add_row(name, *(f"{share[name]:.1%}" for share in shares))
    console.print(table)
    if len(classes) > SHOWN_CLASSES:
        console.print(f"and {len(classes) - SHOWN_CLASSES} more classes")


def print_bad(console: Console, bad: Sequence[BadImage], total: int, folders: Sequence[Path]) -> None:
    if bad:
        console.print(f"[yellow]{len(bad)} of {total} images could not be read and got the fallback:[/yellow]")
    for id, _, problem in bad[:SHOWN_BAD]:
        print_line(console, f"  {id}: {problem}")
    for folder in folders if bad else ():
        print_line(console, f"bad       {folder / BAD}")


def write_overlays(folder: Path, items: TableItems, count: int, bad: Collection[str] = ()) -> None:
    """Paint the predicted masks over `count` evenly spaced images, but for `bad` ids, into `<folder>/overlays`."""
    from foldwise.reporting.figures import to_png
    from foldwise.reporting.pictures import overlay

    predictions = read_predictions(folder)
    meaning = predictions.header.meaning
    ids = [id for id in predictions.frame["id"].drop_duplicates() if id not in bad]
    shown = [ids[index] for index in np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)]
    for id, probability in iter_average_maps(predictions, shown):
        row, safe = items.table.row_of[id], re.sub(r"[^\w.-]+", "_", id)[:80]
        picture = overlay(items.picture(row), meaning.answer(probability), predictions.columns, id)
        with write_atomic(folder / "overlays" / f"{row:06d}-{safe}.png") as temporary:
            temporary.write_bytes(to_png(picture))


def print_written(
    console: Console, runs: Sequence[TrainedRun], folders: Sequence[Mapping[str, Path]], choices: Choices
) -> None:
    """Print the folders that were written and the next command."""
    lines = []
    for main, *others in (of_run.values() for of_run in folders):
        lines += [f"written   {main}", *(f"          {other}" for other in others)]
        lines += [f"overlays  {main / 'overlays'}"] if choices.overlays else []
    sources, first = [run.folder for run in runs], folders[0][""]
    if choices.keep_views:
        words = ["tools/average.py", first, "--mean", "geometric"]
    elif choices.oof:
        words = ["evaluate.py", *sources, "--oof", first.name]
    else:
        words = [*(["ensemble.py"] if len(runs) > 1 else ["submit.py", "make"]), *sources, "--test", first.name]
    for line in [*lines, f"next      {command('python', *words)}"]:
        print_line(console, line)
