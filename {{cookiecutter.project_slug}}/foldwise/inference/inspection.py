"""What there is to look at in predictions: shares of the classes, painted pictures, test images that are known."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from foldwise.data.samples import TableItems
from foldwise.data.table import Table
from foldwise.files import sha256_file, write_atomic
from foldwise.predictions.store import class_shares, iter_average_maps, read_predictions
from foldwise.tasks import Classes, find_task

SHOWN_CLASSES = 50


def equal_images(table: Table, training: Table) -> list[tuple[str, str]]:
    """(id, training id) of images whose files are the same, byte for byte."""
    digest = cache(sha256_file)
    of_size: dict[int, list[int]] = {}
    for row in range(len(training)):
        of_size.setdefault(training.image_path(row).stat().st_size, []).append(row)
    return [
        (table.ids[row], training.ids[other])
        for row in range(len(table))
        for other in of_size.get(table.image_path(row).stat().st_size, [])
        if digest(table.image_path(row)) == digest(training.image_path(other))
    ]


def print_shares(console: Console, folders: Sequence[Path]) -> None:
    """The share of each class in the answers, to be compared with the training table's."""
    predictions = [read_predictions(folder) for folder in folders]
    task, classes = find_task(predictions[0].header.task), predictions[0].columns
    if not isinstance(task, Classes) or task.kind == "maps":
        return  # it would read every map again; the painted pictures say more
    what = "images" if task.exclusive else "images with it"
    table = RichTable(title=f"share of the {what}, averaged over the models", title_justify="left")
    table.add_column("class")
    for each in predictions:
        table.add_column(each.header.run, justify="right")
    shares = [class_shares(each.frame, each.header) for each in predictions]
    for name in classes[:SHOWN_CLASSES]:
        table.add_row(name, *(f"{share[name]:.1%}" for share in shares))
    console.print(table)
    if len(classes) > SHOWN_CLASSES:
        console.print(f"and {len(classes) - SHOWN_CLASSES} more classes")


def write_overlays(folder: Path, items: TableItems, count: int) -> None:
    """Paint the answer over `count` images, evenly spread, into `<folder>/overlays`."""
    if not count:
        return
    from foldwise.reporting.figures import to_png
    from foldwise.reporting.pictures import overlay

    predictions = read_predictions(folder)
    ids = predictions.frame["id"].drop_duplicates().tolist()
    some = [ids[place] for place in np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)]
    for id, probability in iter_average_maps(predictions, some):
        row = items.table.row_of[id]
        safe = re.sub(r"[^\w.-]+", "_", id)[:80]
        with write_atomic(folder / "overlays" / f"{row:06d}-{safe}.png") as temporary:
            temporary.write_bytes(
                to_png(overlay(items.picture(row), probability.argmax(axis=0), predictions.columns, id))
            )
