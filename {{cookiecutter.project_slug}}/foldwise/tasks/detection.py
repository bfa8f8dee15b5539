"""Detection: boxes with classes, which other people's detectors find; `tools/boxes.py` reads them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from foldwise.data.cells import text_column
from foldwise.tasks.base import Task

if TYPE_CHECKING:
    from foldwise.data.problems import Check

Named = tuple[str, tuple[float, ...]]  # a class, and the left, top, right and bottom edge in pixels


class Detection(Task):
    """Boxes of a picture, each with a class and a score; targets (N, C) say which classes a picture has.

    A cell of the table has the boxes of its picture, see `parse_boxes`.
    """

    name, column, metric, kind = "detection", "boxes", "detection_map", "boxes"
    metrics = ("detection_map", "detection_map50")

    def read_target(
        self, raw: pd.DataFrame, columns: Sequence[str], soft: bool, names: list[str] | None, check: "Check"
    ) -> tuple[list[str] | None, np.ndarray | None]:
        from foldwise.data.targets import hard_targets

        if soft:
            check.problems.append("detection needs one column, with the boxes: set data.columns.target to that name")
            return names, None
        cells = text_column(raw[columns[0]])
        parsed = [parse_boxes(cell) for cell in cells]
        how = 'write class, left, top, right and bottom edge in pixels, such as "car 10 20 50 60; sign 5 5 9 9"'
        check.cells([each is None for each in parsed], cells, f"{{}} are no boxes: {how}")
        if check.problems:
            return names, None
        of_rows = [tuple(sorted({name for name, _ in boxes or ()})) for boxes in parsed]
        return hard_targets(pd.Series(of_rows, dtype=object), self, names, check)

    def strata(self, target: np.ndarray) -> np.ndarray:
        return (target >= 0.5).astype(np.float64)


def parse_boxes(cell: str) -> list[Named] | None:
    """Read a cell such as "car 10 20 50 60; road sign 5 5 9 9"; None if it has something else."""
    boxes = []
    for text in filter(None, map(str.strip, cell.split(";"))):
        parts = text.split()
        try:
            edges = tuple(map(float, parts[-4:]))
        except ValueError:
            return None
        if len(parts) < 5 or not (edges[0] < edges[2] and edges[1] < edges[3] and np.isfinite(edges).all()):
            return None
        boxes.append((" ".join(parts[:-4]), edges))
    return boxes


def write_boxes(boxes: Sequence[Named]) -> str:
    """The cell that `parse_boxes` reads."""
    return "; ".join(f"{name} {' '.join(f'{edge:.12g}' for edge in edges)}" for name, edges in boxes)
