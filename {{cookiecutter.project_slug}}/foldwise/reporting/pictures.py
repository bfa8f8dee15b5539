"""Pictures to look at: thumbnails with titles, answers painted over images, `samples.png`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foldwise.data.images import default_scale, read_mask, resize
from foldwise.data.prepare import Prepared, present_classes
from foldwise.data.samples import TableItems
from foldwise.data.table import Table
from foldwise.files import write_atomic
from foldwise.reporting.figures import DPI, new_figure, nothing_to_show, shorten, to_png
from foldwise.reporting.palette import class_colors, paint
from foldwise.tasks import Task, find_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6  # of a gallery
THUMBNAIL, MARGIN, TITLE, LEGEND = 220, 10, 52, 28  # pixels; a title has up to three lines, a legend line one
PAINTED = (500, 1500)  # least and most pixels of the longer side of a painted picture
MOST_NAMES, NAMES_A_LINE = 20, 8  # of a legend
SAMPLES = 24


def gallery(
    images: Iterable[np.ndarray], titles: Sequence[str], legend: Sequence[tuple[str, np.ndarray]] = ()
) -> "Figure":
    """Thumbnails of images (H, W, C), as read or `displayable`, with their titles; one image is held at a time.

    Args:
        legend: names and their (3,) colours in [0, 1].
    """
    if not titles:
        return nothing_to_show("no images")
    columns = min(COLUMNS, len(titles))
    cell, line = THUMBNAIL + MARGIN, THUMBNAIL + TITLE
    width, foot = columns * cell, LEGEND * -(-len(legend) // NAMES_A_LINE)
    height = -(-len(titles) // columns) * line + foot
    figure = new_figure(width / DPI, height / DPI)
    figure.set_layout_engine("none")  # placed by the pixel: to lay out an axis for each image takes seconds
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(place, columns)
        inside = THUMBNAIL - 2  # of a frame, without which a white sky has no edge on white paper
        picture = np.pad(_fit(displayable(image), inside, inside), ((1, 1), (1, 1), (0, 0)), constant_values=192)
        left, top = column * cell + (cell - picture.shape[1]) // 2, row * line + TITLE
        figure.figimage(picture, left, height - top - picture.shape[0], origin="upper")
        text = "\n".join(shorten(part, 28) for part in title.splitlines())
        x, y = (column + 0.5) * cell / width, 1 - (top - 4) / height
        figure.text(x, y, text, ha="center", va="bottom", fontsize=8)
    if legend:
        figure.legend(handles=_patches(legend), loc="lower center", ncols=NAMES_A_LINE, fontsize=8, frameon=False)
    return figure


def overlay(
    image: np.ndarray, answer: np.ndarray, classes: Sequence[str], title: str = "", ignore_index: int | None = None
) -> "Figure":
    """The image (H, W, C) as read, beside itself with the answer (H, W) in colours and a legend with pixel shares.

    Ignored pixels are hatched and have no part in the shares.
    """
    shown, colors = displayable(image), class_colors(len(classes))
    plain, painted = (_fit(picture, *PAINTED) for picture in (shown, paint(shown, answer, len(classes), ignore_index)))
    counts = np.bincount(answer[answer != ignore_index], minlength=len(classes))
    shares = counts / max(counts.sum(), 1)
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index] > 0][:MOST_NAMES]
    named = [(f"{shorten(classes[index])} {shares[index]:.1%}", colors[index]) for index in order]
    height, width = plain.shape[:2]
    step = (0, height + MARGIN) if width > 1.6 * height else (width + MARGIN, 0)  # wide pictures: one below the other
    text = max(1.0, max(height, width) / PAINTED[0])  # letters grow with the picture
    top, foot = round(30 * text), round(LEGEND * text) * -(-len(named) // 4)
    page = max(round(PAINTED[0] * text), step[0] + width), top + step[1] + height + foot
    figure = new_figure(page[0] / DPI / text, page[1] / DPI / text, dpi=DPI * text)
    figure.set_layout_engine("none")
    for number, picture in enumerate((plain, painted)):
        figure.figimage(picture, number * step[0], page[1] - top - number * step[1] - height, origin="upper")
    figure.text(0.5, 1 - top / 2 / page[1], shorten(title, 60), ha="center", va="center", fontsize=9)
    figure.legend(handles=_patches(named), loc="lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def displayable(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to look at: gray, or the first three channels; other than 8 bit is stretched to its 1-99 %."""
    image = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    if image.dtype == np.uint8:
        return image
    unit = image.astype(np.float32) / default_scale(image.dtype)
    low, high = np.percentile(unit, [1, 99], axis=(0, 1))
    return np.rint(np.clip((unit - low) / np.maximum(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def draw_samples(data: Mapping[str, Any], prepared: Prepared) -> Path:
    """Draw `samples.png`, images of every class with their labels or masks, unless it is up to date.

    Args:
        data: the `data` part of the config.
    """
    path, table = Path(data["prepared"]) / "samples.png", prepared.table
    sources = (table.path, Path(data["prepared"]) / "images.csv")
    if path.exists() and all(path.stat().st_mtime_ns >= source.stat().st_mtime_ns for source in sources):
        return path
    masks = "mask" in table.frame
    items = TableItems.of(prepared.source, prepared.samples)

    def picture(row: int) -> np.ndarray:
        image = _fit(displayable(items.picture(row)), THUMBNAIL, THUMBNAIL)
        return (
            paint(image, read_mask(table.mask_path(row)), len(table.classes), data["ignore_index"]) if masks else image
        )

    rows = choose_samples(present_classes(table, prepared.scan), SAMPLES)
    names = [shorten(name) for name in table.classes]
    legend = list(zip(names, class_colors(len(names)), strict=True))[:MOST_NAMES] if masks else ()
    figure = gallery(map(picture, rows), [_title(table, row) for row in rows], legend)
    with write_atomic(path) as temporary:
        temporary.write_bytes(to_png(figure))
    return path


def name_answer(classes: Sequence[str], values: np.ndarray, task: Task) -> str:
    """The largest class with its probability, or the labels from 0.5 on; what is no probability as it is."""
    if not task.probabilities:
        return " ".join(f"{name} {value:.4g}" for name, value in zip(classes, values, strict=True))
    if not task.exclusive:
        return " ".join(name for name, value in zip(classes, values, strict=True) if value >= 0.5) or "(none)"
    best = int(values.argmax())
    return classes[best] if values[best] == 1 else f"{classes[best]} {values[best]:.2f}"


def choose_samples(present: np.ndarray, count: int) -> list[int]:
    """Rows of `present` (N, C), which classes an image has, in which the classes (and none) take turns.

    They are drawn at random, but the same every time.
    """
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


def _fit(image: np.ndarray, least: int, most: int) -> np.ndarray:
    """The image with a longer side of `least` to `most` pixels; one that grows keeps its pixels sharp."""
    longer = max(image.shape[:2])
    size = [max(1, round(side * np.clip(longer, least, most) / longer)) for side in image.shape[:2]]
    if longer > most:
        return resize(image, size)
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, image.shape[:2], strict=True))
    return image[rows][:, columns]


def _patches(named: Sequence[tuple[str, Any]]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(facecolor=color, edgecolor="0.6", label=name) for name, color in named]


def _title(table: Table, row: int) -> str:
    name = table.ids[row]
    lines = [name if len(name) <= 24 else f"…{name[-23:]}"]
    if table.target is not None:
        target = table.target[row]
        if not (task := find_task(table.task)).probabilities:
            return "\n".join([*lines, name_answer(table.classes, target, task)])
        some = [index for index in np.argsort(-target, kind="stable") if target[index] > 0]
        shares = [table.classes[n] if target[n] == 1 else f"{table.classes[n]} {target[n]:.2f}" for n in some]
        lines.append(" ".join(shares) or "—")
    return "\n".join(lines)
