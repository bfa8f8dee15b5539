"""A picture of the data: some images with their labels, masks laid over them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from competition.data.images import read_image, read_mask, resize, resize_mask, to_unit
from competition.data.table import Table
from competition.files import write_atomic

SHOWN = 24
COLUMNS = 6
LONGEST = 256  # pixels of an image's longer side in the picture


def write_gallery(path: Path, table: Table, present: np.ndarray, data: Mapping[str, Any]) -> None:
    """Write a PNG with images of every class.

    Args:
        present: (N, C) which classes an image has; images of all classes take turns, and of none.
        data: the `data` part of the config: mode, scale, ignore_index.
    """
    from matplotlib import color_sequences
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = choose_samples(present, SHOWN)
    height = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.5 * height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(height, COLUMNS, squeeze=False).ravel()
    palette = color_sequences["tab10" if len(table.classes) <= 10 else "tab20"]
    colors = np.array([palette[number % len(palette)] for number in range(len(table.classes))])
    first = int(table.classes[:1] == ("background",))  # a background stays as it is
    for axis in axes:
        axis.set_axis_off()
    for axis, row in zip(axes, rows, strict=False):
        image = _shown(read_image(table.image_path(row), data["mode"]), data["scale"])
        if "mask" in table.frame:
            image = overlay(image, read_mask(table.mask_path(row)), colors, data["ignore_index"], first)
        axis.imshow(image, interpolation="nearest")
        axis.set_title(_title(table, row), fontsize=8)
    if "mask" in table.frame:
        handles = [Patch(color=color, label=name) for color, name in zip(colors, table.classes, strict=True)]
        figure.legend(handles=handles[first:20], loc="outside lower center", ncols=8, fontsize=8)
    with write_atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def choose_samples(present: np.ndarray, count: int) -> list[int]:
    """Rows in which the classes (and no class at all) take turns, at random but the same every time."""
    order = np.random.default_rng(0).permutation(len(present))
    queues = [order[present[order, number] > 0].tolist() for number in range(present.shape[1])]
    queues.append(order[~(present[order] > 0).any(axis=1)].tolist())
    chosen: dict[int, None] = {}
    while len(chosen) < min(count, len(present)):
        for queue in queues:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < count:
                chosen[queue.pop(0)] = None
    return list(chosen)


def overlay(
    image: np.ndarray, mask: np.ndarray, colors: np.ndarray, ignore_index: int | None, first: int = 1
) -> np.ndarray:
    """The image (H, W, 3) in [0, 1] with the classes from `first` on in their colours; ignored pixels are hatched."""
    mask = resize_mask(mask, image.shape[:2])
    result = image.copy()
    ignored = np.zeros(mask.shape, bool) if ignore_index is None else mask == ignore_index
    painted = (mask >= first) & ~ignored & (mask < len(colors))
    # Over grey, since two colours mixed look like a third class.
    result[painted] = 0.4 * image[painted].mean(axis=1, keepdims=True) + 0.6 * colors[mask[painted]]
    result[ignored & ((np.indices(mask.shape).sum(axis=0) // 3) % 2 == 0)] = 0.5
    return result


def _shown(image: np.ndarray, scale: float | None) -> np.ndarray:
    """(H, W, 3) in [0, 1] to look at: gray, or the first three channels; other than 8 bit is stretched."""
    unit = to_unit(image, scale)
    unit = unit.astype(np.float32) / 255 if unit.dtype == np.uint8 else unit
    longer = max(unit.shape[:2])
    if longer > LONGEST:
        unit = resize(unit, [max(1, round(side * LONGEST / longer)) for side in unit.shape[:2]])
    unit = np.repeat(unit[:, :, :1], 3, axis=2) if unit.shape[2] < 3 else unit[:, :, :3]
    if image.dtype != np.uint8:
        low, high = np.percentile(unit, [1, 99], axis=(0, 1))
        unit = (unit - low) / np.maximum(high - low, 1e-6)
    return np.clip(unit, 0, 1)


def _title(table: Table, row: int) -> str:
    name = table.ids[row]
    lines = [name if len(name) <= 24 else f"…{name[-23:]}"]
    if table.target is not None:
        labels = _labels(table.classes, table.target[row])
        lines += [labels if len(labels) <= 30 else f"{labels[:29]}…"]
    return "\n".join(lines)


def _labels(classes: Sequence[str], target: np.ndarray) -> str:
    some = [number for number in np.argsort(-target, kind="stable") if target[number] > 0]
    if not some:
        return "—"
    return " ".join(classes[n] if target[n] == 1 else f"{classes[n]} {target[n]:.2f}" for n in some)
