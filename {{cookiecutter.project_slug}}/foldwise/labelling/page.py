"""A page to label a list of images by hand: one HTML file, without a server, that keeps its answers in the browser."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
import pandas as pd

from foldwise.data.boxes import BOX
from foldwise.data.images import read_image, resize
from foldwise.data.orientation import oriented
from foldwise.data.prepare import read_items
from foldwise.data.samples import Samples
from foldwise.data.table import Table
from foldwise.data.table_file import read_file
from foldwise.errors import Refusal
from foldwise.files import check_new, sha256_file, write_text
from foldwise.reporting.pictures import displayable, paint
from foldwise.reporting.report import escape
from foldwise.tasks import find_task

TEMPLATE = Path(__file__).parent / "page.html"
MOST = 2000  # images of a page, which is loaded as a whole
SIDE, QUALITY = 900, 85  # of an embedded JPEG: longest side in pixels
ACCEPT, REJECT = "accept", "reject"


@dataclass(frozen=True)
class ToLabel:
    """A list and the data that it belongs to.

    Attributes:
        kind: what is asked: "label", "labels", "mask" (accept or reject), or "box".
        frame: the list, all columns as text.
        table: the training table.
    """

    path: Path
    kind: str
    frame: pd.DataFrame
    table: Table
    data: Mapping[str, Any]

    @property
    def base(self) -> Path:
        """The table that answers change: the training table, or the list if that has no boxes."""
        own = self.kind == "box" and not set(BOX) <= set(self.table.frame)
        return self.path if own else self.table.path

    @property
    def classes(self) -> list[str]:
        return [ACCEPT, REJECT] if self.kind == "mask" else [] if self.kind == "box" else list(self.table.classes)

    @property
    def separator(self) -> str:
        return self.data["label_separator"] or " "


def open_list(path: Path, config: Mapping[str, Any]) -> ToLabel:
    """Read a list for the data of a configuration; columns of boxes or masks decide what is asked, else the task."""
    data = config["data"]
    frame = read_file(path).reset_index(drop=True).astype(str).replace("nan", "")
    missing = [name for name in ("id", "image") if name not in frame]
    if missing or frame.empty:
        raise Refusal(
            f"{path} has no {'column ' + ' and '.join(missing) if missing else 'rows'}: it is no list of images"
        )
    if frame["id"].duplicated().any():
        raise Refusal(f"{path} has ids more than once, so an answer would be ambiguous: keep one row of each")
    table = read_items(data, config["task"], Samples(data["mode"])).table
    task = find_task(config["task"])
    if set(BOX) <= set(frame):
        kind = "box"
    elif "mask" in frame:
        kind = "mask"
    elif task.kind == "rows" and task.probabilities:
        kind = "label" if task.exclusive else "labels"
    else:
        raise Refusal(
            f"{path} has no columns mask or {', '.join(BOX)}, and the task {task.name} has no classes to choose"
        )
    return ToLabel(path, kind, frame, table, data)


def write_page(listed: ToLabel, out: Path) -> int:
    """Write the page; returns its number of images."""
    check_new(out)
    if len(listed.frame) > MOST:
        raise Refusal(f"{listed.path} has {len(listed.frame):,} images; a page takes {MOST:,}: split the list")
    with oriented(listed.table.exif):
        items = [_item(listed, row) for _, row in listed.frame.iterrows()]
    page = {
        "name": f"{listed.path.name} {sha256_file(listed.path)[:12]}",
        "kind": listed.kind,
        "classes": listed.classes,
        "separator": listed.separator,
        "box": list(BOX),
        "items": items,
    }
    text = json.dumps(page).replace("<", "\\u003c")  # no name can end the script
    write_text(
        out, Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(listed.path.name), data=text)
    )
    return len(items)


def _item(listed: ToLabel, row: "pd.Series[str]") -> dict[str, Any]:
    file = listed.table.root / row["image"]
    if not file.resolve().is_relative_to(listed.table.root.resolve()):
        raise Refusal(f"{listed.path}: the image {row['image']!r} of id {row['id']!r} is not under {listed.table.root}")
    picture = displayable(read_image(file))
    height, width = picture.shape[:2]
    if listed.kind == "mask":
        masks = listed.table.masks
        mask = masks.read([row["mask"]], listed.table.root, file)
        painted = paint(picture, mask, len(listed.table.classes), listed.data["ignore_index"])
        picture = np.concatenate([picture, painted], axis=1)
    classes = list(listed.table.classes)
    known = listed.table.row_of.get(row["id"])
    labels: list[str] = []
    if known is not None and listed.table.target is not None and listed.kind in ("label", "labels"):
        labels = [name for name, on in zip(classes, listed.table.target[known], strict=True) if on == 1]
    has_values = listed.kind in ("label", "labels") and set(classes) <= set(row.index)
    edges = [row[name] for name in BOX] if listed.kind == "box" else []
    return {
        "id": row["id"],
        "picture": _jpeg(picture),
        "width": width,
        "height": height,
        "note": _note(row, labels),
        "labels": labels,
        "values": [float(row[name]) for name in classes] if has_values else [],
        "box": [float(edge) for edge in edges] if edges and all(edges) else None,
    }


def _note(row: "pd.Series[str]", labels: list[str]) -> str:
    """What the page says beside an image: its label now, and why it is in the list."""
    parts = [f"label now: {' '.join(labels)}"] if labels else []
    shown = ("likely", "doubt", "entropy", "disagreement", "boxes", "box_score", "confidence")
    parts += [f"{name.replace('box_score', 'score')}: {row[name]}" for name in shown if row.get(name)]
    return "; ".join(parts)


def _jpeg(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as the address of an embedded JPEG."""
    longest = max(picture.shape[:2])
    if longest > SIDE:
        picture = resize(picture, [max(1, round(side * SIDE / longest)) for side in picture.shape[:2]])
    data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
