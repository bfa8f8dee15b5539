"""Boxes of a picture: overlap, matching, and fusion of what several models found.

- NMS: of boxes that overlap more than a threshold, the one with the highest score stays (greedy non-maximum
  suppression; Felzenszwalb et al. 2010, section 3.2). Scores are multiplied by their model's weight.
- WBF: boxes that overlap become their mean, weighted by score; a box that few models found loses score (weighted boxes
  fusion; Solovyev, Wang and Gabruseva 2021, arXiv:1910.13302).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.data.boxes import BOX
from foldwise.data.decoding import stored_size
from foldwise.data.orientation import oriented
from foldwise.data.table import Table
from foldwise.predictions.schema import MEMBER
from foldwise.predictions.store import Predictions
from foldwise.tasks.detection import parse_boxes

IOU = 0.55  # of WBF, as in its paper
HIT = 0.5  # IoU of a match


class Boxes(NamedTuple):
    """Class indices (B,) int64, scores (B,) and edges (B, 4) in pixels: left, top, right, bottom."""

    label: np.ndarray
    score: np.ndarray
    edges: np.ndarray

    def take(self, which: np.ndarray) -> "Boxes":
        return Boxes(self.label[which], self.score[which], self.edges[which])


@dataclass(frozen=True)
class Fusion:
    """Fuses the boxes of M sources.

    Attributes:
        how: "nms" or "wbf".
        shares: (M,) weights, sum 1.
        floors: (M,) least scores; boxes below do not count.
        iou: boxes that overlap more are one.
    """

    how: str
    shares: tuple[float, ...]
    floors: tuple[float, ...]
    iou: float = IOU

    @property
    def weights(self) -> np.ndarray:
        return np.array(self.shares)

    def predict(self, probability: Any, extra: Any = None) -> Any:
        """Fuse the boxes of a picture, for each source those of its members; those of one member alone stay."""
        lists: list[Boxes] = []
        weights: list[float] = []
        for members, share, floor in zip(probability, self.shares, self.floors, strict=True):
            if share > 0:
                lists += [each.take(each.score >= floor) for each in members]
                weights += [share / len(members)] * len(members)
        if len(lists) == 1:
            return lists[0]
        joined = Boxes(*map(np.concatenate, zip(*lists, strict=True)))
        weight = np.repeat(weights, [len(each.label) for each in lists])
        if self.how == "nms":
            fused = _suppress(joined, weight / max(weights), self.iou)
        else:
            fused = _average(joined, weight / sum(weights), len(lists), self.iou)
        return fused.take(np.argsort(-fused.score, kind="stable"))


def merge(members: Sequence[Boxes]) -> Boxes:
    """Fuse the members of one source (views, snapshots, models) by WBF."""
    return Fusion("wbf", (1.0,), (0.0,)).predict([members])


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (A, B) of edges (A, 4) and (B, 4)."""
    low, high = np.maximum(first[:, None, :2], second[:, :2]), np.minimum(first[:, None, 2:], second[:, 2:])
    both = (high - low).clip(0).prod(axis=2)
    areas = [(edges[:, 2:] - edges[:, :2]).prod(axis=1) for edges in (first, second)]
    return both / (areas[0][:, None] + areas[1] - both)


def _suppress(boxes: Boxes, weight: np.ndarray, iou: float) -> Boxes:
    boxes = boxes._replace(score=boxes.score * weight)
    same = boxes.label[:, None] == boxes.label
    covers = same & (overlaps(boxes.edges, boxes.edges) > iou)
    alive, kept = np.ones(len(boxes.label), bool), []
    for index in np.argsort(-boxes.score, kind="stable"):
        if alive[index]:
            kept.append(index)
            alive &= ~covers[index]
    return boxes.take(np.array(kept, np.int64))


def _average(boxes: Boxes, weight: np.ndarray, members: int, iou: float) -> Boxes:
    """A box joins the cluster whose mean it overlaps most; the score is their sum, times min(1, members / size)."""
    score = boxes.score * weight
    order = np.argsort(-score, kind="stable")
    order = order[score[order] > 0]
    label, edges = np.zeros(len(order), np.int64), np.zeros((len(order), 4))
    sums, sizes, count = np.zeros(len(order)), np.zeros(len(order), np.int64), 0
    for index in order:
        found = overlaps(boxes.edges[index : index + 1], edges[:count])[0]
        found[label[:count] != boxes.label[index]] = -1
        best = int(found.argmax()) if count else 0
        if not count or found[best] <= iou:
            best, count = count, count + 1
            label[best] = boxes.label[index]
        sums[best] += score[index]
        sizes[best] += 1
        edges[best] += (boxes.edges[index] - edges[best]) * (score[index] / sums[best])
    # Several boxes of one model with a large weight could sum to more than 1.
    fused = (sums * np.minimum(1, members / sizes.clip(1))).clip(0, 1)
    return Boxes(label[:count], fused[:count], edges[:count])


def match(first: Boxes, second: Boxes, iou: float = HIT) -> np.ndarray:
    """Index in `second` (A,) of the box that each box of `first` is matched with, -1 for none; largest IoU first."""
    found = overlaps(first.edges, second.edges)
    found[first.label[:, None] != second.label] = -1
    partner = np.full(len(first.label), -1)
    free = np.ones(len(second.label), bool)
    for flat in np.argsort(-found, axis=None, kind="stable")[: int((found >= iou).sum())]:
        one, two = divmod(int(flat), len(second.label))
        if partner[one] < 0 and free[two]:
            partner[one], free[two] = two, False
    return partner


def difference(first: Boxes, second: Boxes) -> float:
    """Sum of the differences in score between matched boxes, and of the scores of those without a match."""
    partner = match(first, second)
    found = partner >= 0
    pairs = np.abs(first.score[found] - second.score[partner[found]]).sum()
    return float(pairs + first.score[~found].sum() + np.delete(second.score, partner[found]).sum())


def true_boxes(table: Table, row: int) -> Boxes:
    """Boxes of the ground truth, with score 1."""
    boxes = parse_boxes(table.frame["boxes"].iat[row]) or []
    label = np.array([table.classes.index(name) for name, _ in boxes], np.int64)
    edges = np.array([edges for _, edges in boxes], np.float64).reshape(-1, 4)
    return Boxes(label, np.ones(len(boxes)), edges)


def picture_sides(table: Table, id: str) -> np.ndarray:
    """Width, height, width and height of a picture, as read from its header."""
    with oriented(table.exif):
        height, width = stored_size(table.image_path(table.row_of[id]))
    return np.array([width, height, width, height], np.float64)


def found_boxes(predictions: Predictions, fold: int | None = None) -> dict[str, list[Boxes]]:
    """Boxes by id, a list of the members' (of one `fold`)."""
    frame = predictions.frame
    frame = frame if fold is None else frame[frame["fold"] == fold]
    label = pd.Index(predictions.columns).get_indexer(frame["class"])
    score, edges = frame["score"].to_numpy(np.float64), frame[list(BOX)].to_numpy(np.float64)
    found: dict[str, list[Boxes]] = {id: [] for id in frame["id"].unique()}
    for (id, *_), rows in frame.groupby(["id", *MEMBER]).indices.items():
        rows = rows[label[rows] >= 0]  # a row without a box says that nothing was found
        found[id].append(Boxes(label[rows], score[rows], edges[rows]))
    return found


def boxes_frame(
    found: Iterable[tuple[str, Boxes]], classes: Sequence[str], member: Mapping[str, object]
) -> pd.DataFrame:
    """Rows of a prediction folder of one member; an id without boxes gets an empty one."""
    ids, parts = [], []
    nothing = Boxes(np.array([-1]), np.array([np.nan]), np.full((1, 4), np.nan))
    for id, boxes in found:
        boxes = boxes if len(boxes.label) else nothing
        ids += [id] * len(boxes.label)
        parts.append(boxes)
    joined = Boxes(*map(np.concatenate, zip(*parts, strict=True)))
    names = np.array([*classes, ""], object)[joined.label]
    frame = pd.DataFrame({"id": ids, **member, "class": names, "score": joined.score})
    return frame.join(pd.DataFrame(joined.edges, columns=list(BOX)))
