"""Pictures for reports: galleries of thumbnails, mask overlays, and `samples.png`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foldwise.data.boxes import Crop
from foldwise.data.images import default_scale, read_image, resize, resize_mask
from foldwise.data.orientation import oriented
from foldwise.data.prepare import Prepared, present_classes
from foldwise.data.samples import TableItems
from foldwise.data.table import Table
from foldwise.files import write_atomic
from foldwise.predictions.boxes import Boxes, true_boxes
from foldwise.predictions.store import Predictions, iter_average_maps
from foldwise.reporting.figures import DPI, color_of, new_figure, nothing_to_show, shorten, to_png
from foldwise.tasks import Soft, Task, find_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6  # of a gallery
THUMBNAIL, MARGIN, TITLE, LEGEND = 220, 10, 52, 28  # pixels; TITLE fits three lines, LEGEND one
PAINTED = (500, 1500)  # least and most pixels of a painted picture's longer side
OPACITY = 0.6  # of the mask
FRAME, FRAME_COLOR = 3, (255, 0, 160)  # of a box in a thumbnail: pixels
HATCH = 3  # pixels; width of the lines over ignored pixels
MOST_NAMES, NAMES_PER_LINE = 20, 8  # of a legend
SAMPLES = 24


def gallery(
    images: Iterable[np.ndarray], titles: Sequence[str], legend: Sequence[tuple[str, np.ndarray]] = ()
) -> "Figure":
    """Draw thumbnails of images (H, W, C) with titles; only one image is in memory at a time."""
    if not titles:
        return nothing_to_show("no images")
    columns = min(COLUMNS, len(titles))
    cell, line = THUMBNAIL + MARGIN, THUMBNAIL + TITLE
    width, foot = columns * cell, LEGEND * -(-len(legend) // NAMES_PER_LINE)
    height = -(-len(titles) // columns) * line + foot
    figure = new_figure(width / DPI, height / DPI)
    figure.set_layout_engine("none")  # images are placed by pixel: laying out an axis for each takes seconds
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(index, columns)
        inside = THUMBNAIL - 2  # a frame separates white images from the white page
        picture = np.pad(_fit(displayable(image), inside, inside), ((1, 1), (1, 1), (0, 0)), constant_values=192)
        left, top = column * cell + (cell - picture.shape[1]) // 2, row * line + TITLE
        figure.figimage(picture, left, height - top - picture.shape[0], origin="upper")
        text = "\n".join(shorten(part, 28) for part in title.splitlines())
        x, y = (column + 0.5) * cell / width, 1 - (top - 4) / height
        figure.text(x, y, text, ha="center", va="bottom", fontsize=8)
    if legend:
        figure.legend(handles=_patches(legend), loc="lower center", ncols=NAMES_PER_LINE, fontsize=8, frameon=False)
    return figure


def overlay(
    image: np.ndarray, mask: np.ndarray, classes: Sequence[str], title: str = "", ignore_index: int | None = None
) -> "Figure":
    """Draw an image (H, W, C) next to itself painted with a mask, see `paint`, and a legend with pixel shares.

    Ignored pixels are hatched and not counted.
    """
    shown = displayable(image)
    plain, painted = (_fit(picture, *PAINTED) for picture in (shown, paint(shown, mask, len(classes), ignore_index)))
    valid = mask != ignore_index
    if mask.ndim == 3:
        shares = np.where(valid, mask, 0).sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)
    else:
        shares = np.bincount(mask[valid], minlength=len(classes)) / max(valid.sum(), 1)
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index] > 0][:MOST_NAMES]
    named = [(f"{shorten(classes[index])} {shares[index]:.1%}", color_of(int(index))) for index in order]
    height, width = plain.shape[:2]
    step = (0, height + MARGIN) if width > 1.6 * height else (width + MARGIN, 0)  # stack wide pictures
    text = max(1.0, max(height, width) / PAINTED[0])  # scales the font with the picture
    top, foot = round(30 * text), round(LEGEND * text) * -(-len(named) // 4)
    page = max(round(PAINTED[0] * text), step[0] + width), top + step[1] + height + foot
    figure = new_figure(page[0] / DPI / text, page[1] / DPI / text, dpi=DPI * text)
    figure.set_layout_engine("none")
    for number, picture in enumerate((plain, painted)):
        figure.figimage(picture, number * step[0], page[1] - top - number * step[1] - height, origin="upper")
    figure.text(0.5, 1 - top / 2 / page[1], shorten(title, 60), ha="center", va="center", fontsize=9)
    figure.legend(handles=_patches(named), loc="lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def compare_masks(
    caption: str, items: TableItems, table: Table, rows: Sequence[int], predictions: Predictions, ignore_index: int
) -> list[tuple[str, "Figure"]]:
    """Return captions and overlays of the predicted and true masks of these table rows; and of soft ones' error."""
    figures, task = [], predictions.header.meaning
    maps = iter_average_maps(predictions, [table.ids[row] for row in rows])
    for row, (id, probability) in zip(rows, maps, strict=True):
        image, true = items.picture(row), table.read_mask(row)
        masks = {"predicted": task.answer(probability), "ground truth": true}
        if isinstance(task, Soft):
            error = np.where(true == ignore_index, ignore_index, np.abs(probability - true))
            masks |= {"predicted": probability, "absolute error": error}
        for name, mask in masks.items():
            figures.append((f"{caption}: {id}, {name}", overlay(image, mask, table.classes, ignore_index=ignore_index)))
    return figures


def compare_values(items: TableItems, table: Table, rows: Sequence[int], values: np.ndarray, task: Task) -> "Figure":
    """Draw a gallery of these table rows, titled with ids, targets and predicted values (N, C)."""
    assert table.target is not None
    titles = [
        f"{table.ids[row]}\n{_describe(table.classes, table.target[row], task)}"
        f"\n→ {_describe(table.classes, predicted, task)}"
        for row, predicted in zip(rows, values, strict=True)
    ]
    return gallery(map(items.picture, rows), titles)


def compare_boxes(
    items: TableItems, table: Table, rows: Sequence[int], boxes: Sequence[tuple[Boxes, Boxes, Any]]
) -> "Figure":
    """Draw a gallery of these table rows with true boxes, white and thick, and found ones; titled with their counts."""

    def picture(row: int, true: Boxes, found: Boxes) -> np.ndarray:
        image = displayable(items.picture(row)).copy()
        width = max(1, round(max(image.shape) / THUMBNAIL))
        for edges in true.edges:
            _frame(image, edges, 2 * width, np.full(3, 255))
        return draw_boxes(image, found)

    titles = [f"{table.ids[row]}\n{len(a.label)} → {len(b.label)}" for row, (a, b, _) in zip(rows, boxes, strict=True)]
    legend = [(shorten(name), color_of(number)) for number, name in enumerate(table.classes[:MOST_NAMES])]
    return gallery((picture(row, a, b) for row, (a, b, _) in zip(rows, boxes, strict=True)), titles, legend)


def draw_boxes(image: np.ndarray, boxes: Boxes) -> np.ndarray:
    """Draw boxes in their class's colour, the lower the score the fainter, best last; return (H, W, 3) uint8."""
    image = displayable(image).copy()
    width = max(1, round(max(image.shape) / THUMBNAIL))
    for row in np.argsort(boxes.score, kind="stable"):
        color = 255 * np.array(color_of(int(boxes.label[row])))
        _frame(image, boxes.edges[row], width, color, 0.2 + 0.8 * boxes.score[row])
    return image


def paint(image: np.ndarray, mask: np.ndarray, classes: int, ignore_index: int | None = None) -> np.ndarray:
    """Paint the classes of a mask over an image (H, W, 3) uint8; ignored pixels are hatched.

    Args:
        mask: class numbers (H, W); or a mask per class (C, H, W), bool or 0 to 1: more opaque where it is higher, with
            the mean colour where classes overlap.
    """
    colors = np.array([color_of(number) for number in range(classes)])
    if mask.ndim == 3:
        layers = resize_mask(np.moveaxis(mask, 0, -1).astype(np.float32), image.shape[:2])
        ignored = np.zeros(layers.shape, bool) if ignore_index is None else layers == ignore_index
        layers, ignored = np.where(ignored, 0, layers), ignored.all(axis=2)
        opacity = OPACITY * layers.max(axis=2, keepdims=True)
        color = layers @ colors / np.maximum(layers.sum(axis=2, keepdims=True), 1e-6)
    else:
        mask = resize_mask(mask, image.shape[:2])
        ignored = np.zeros(mask.shape, bool) if ignore_index is None else mask == ignore_index
        opacity, color = np.full((*mask.shape, 1), OPACITY), colors[np.where(ignored, 0, mask)]
    # Over grey, because mixed colours would look like another class.
    gray = image.mean(axis=2, keepdims=True)
    painted = np.rint((1 - opacity) * gray + opacity * 255 * color).astype(np.uint8)
    result = image.copy()
    result[~ignored] = painted[~ignored]
    result[ignored & ((np.indices(ignored.shape).sum(axis=0) // HATCH) % 2 == 0)] = 128
    return result


def displayable(image: np.ndarray) -> np.ndarray:
    """Convert to (H, W, 3) uint8: grey or the first three channels; stretch images that are not 8 bit to 1-99 %."""
    image = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    if image.dtype == np.uint8:
        return image
    unit = image.astype(np.float32) / default_scale(image.dtype)
    low, high = np.percentile(unit, [1, 99], axis=(0, 1))
    return np.rint(np.clip((unit - low) / np.maximum(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def draw_samples(data: Mapping[str, Any], prepared: Prepared) -> Path:
    """Draw `samples.png`, images of every class with labels or masks, unless it is up to date."""
    path, table = Path(data["prepared"]) / "samples.png", prepared.table
    sources = (table.path, Path(data["prepared"]) / "images.csv")
    if path.exists() and all(path.stat().st_mtime_ns >= source.stat().st_mtime_ns for source in sources):
        return path
    masks, count = "mask" in table.frame, len(table.classes)
    items = TableItems.of(prepared.source, prepared.samples)

    def picture(row: int) -> np.ndarray:
        crop = items.samples.crop
        shown = items.picture(row) if crop is None else _with_box(items, row, crop)
        shown = draw_boxes(shown, true_boxes(table, row)) if find_task(table.task).kind == "boxes" else shown
        image = _fit(displayable(shown), THUMBNAIL, THUMBNAIL)
        return paint(image, table.read_mask(row), count, data["ignore_index"]) if masks else image

    rows = choose_samples(present_classes(table, prepared.scan), SAMPLES)
    names = table.classes[:MOST_NAMES] if masks or find_task(table.task).kind == "boxes" else ()
    legend = [(shorten(name), color_of(number)) for number, name in enumerate(names)]
    figure = gallery(map(picture, rows), [_title(table, row) for row in rows], legend)
    with write_atomic(path) as temporary:
        temporary.write_bytes(to_png(figure))
    return path


def _with_box(items: TableItems, row: int, crop: Crop) -> np.ndarray:
    """The whole picture (H, W, 3) uint8 of an item, with a frame around what is cut out of it."""
    first = items.items[row].rows[0]
    with oriented(items.rows.exif):
        image = displayable(read_image(items.rows.path(first), items.samples.mode)).copy()
    window = crop.window(image.shape[:2], items.rows, first, None)
    if window is not None:
        _frame(image, window, max(1, round(max(image.shape) / THUMBNAIL * FRAME)), np.array(FRAME_COLOR))
    return image


def _frame(image: np.ndarray, edges: Sequence[float], width: int, color: np.ndarray, opacity: float = 1.0) -> None:
    """Draw a frame of some pixels' width inside of a box, into the image (H, W, 3) uint8."""
    left, top, right, bottom = (max(0, round(float(edge))) for edge in edges)
    frame = image[top:bottom, left:right]
    line = np.ones(frame.shape[:2], bool)
    line[width:-width, width:-width] = False
    frame[line] = np.rint((1 - opacity) * frame[line] + opacity * color).astype(np.uint8)


def choose_samples(present: np.ndarray, count: int) -> list[int]:
    """Choose rows at random, with a fixed seed, alternating between the classes of `present` (N, C) and empty rows."""
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
    """Resize an image to a longer side of `least` to `most` pixels; enlarged pixels stay sharp."""
    longer = max(image.shape[:2])
    size = [max(1, round(side * np.clip(longer, least, most) / longer)) for side in image.shape[:2]]
    if longer > most:
        return resize(image, size)
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, image.shape[:2], strict=True))
    return image[rows][:, columns]


def _patches(named: Sequence[tuple[str, Any]]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(facecolor=color, edgecolor="0.6", label=name) for name, color in named]


def _describe(classes: Sequence[str], values: np.ndarray, task: Task) -> str:
    """Format the argmax with its probability, labels from 0.5 on, a name with its similarity, or all known numbers."""
    if task.kind == "vectors":
        return " ".join([classes[int(values[0])], *(f"{value:.2f}" for value in values[1:])])
    if not task.probabilities:
        return " ".join(f"{name} {value:.4g}" for name, value in zip(classes, values, strict=True) if value == value)
    if not task.exclusive:
        return " ".join(name for name, value in zip(classes, values, strict=True) if value >= 0.5) or "(none)"
    best = int(values.argmax())
    return classes[best] if values[best] == 1 else f"{classes[best]} {values[best]:.2f}"


def _title(table: Table, row: int) -> str:
    name = table.ids[row]
    lines = [name if len(name) <= 24 else f"…{name[-23:]}"]
    if table.target is not None:
        lines.append(describe_target(table.classes, table.target[row], find_task(table.task)))
    return "\n".join(lines)


def describe_target(classes: Sequence[str], target: np.ndarray, task: Task) -> str:
    """Name the classes of a target (C,), shares with their value, or all known numbers."""
    if not task.probabilities:
        return _describe(classes, target, task)
    present = [index for index in np.argsort(-target, kind="stable") if target[index] > 0]
    shares = [classes[n] if target[n] == 1 else f"{classes[n]} {target[n]:.2f}" for n in present]
    return " ".join(shares) or "—"
