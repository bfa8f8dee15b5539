"""Boxes in predicted maps, and the tables of them that a second network is trained and tested on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from foldwise.data.boxes import BOX, SCORE, SCORE_MAP

NEIGHBOURS = 8  # pixels that touch at a corner are one component


class Found(NamedTuple):
    """A box in pixels, with the mean probability of its pixels and the mask (H, W) bool of them."""

    box: tuple[int, int, int, int]
    score: float
    mask: np.ndarray


@dataclass(frozen=True)
class Finder:
    """Finds boxes in the summed probability of some classes.

    Attributes:
        how: "union": around all pixels from `threshold` on; "components": around each connected group of them; "peak":
            a square of `side` pixels where its mean is highest, if that is `threshold` at least.
        least: pixels; smaller components do not count.
        map: the tables name a file of the summed probability, for `samples.channels`.
    """

    how: str
    classes: Sequence[str]
    threshold: float = 0.5
    least: int = 1
    side: int = 64
    map: bool = False

    def score(self, probability: np.ndarray, names: Sequence[str], exclusive: bool) -> tuple[np.ndarray, np.ndarray]:
        """The planes of the classes, and their score (H, W) of 0 to 1, of maps (C, H, W) of the classes `names`."""
        parts = probability[[list(names).index(name) for name in self.classes]]
        return parts, (parts.sum(axis=0) if exclusive else parts.max(axis=0)).clip(0, 1)

    def find(self, score: np.ndarray) -> list[Found]:
        """Find boxes in a score (H, W) of 0 to 1, the largest first."""
        if self.how == "peak":
            return self._peak(score)
        count, labels, figures, _ = cv2.connectedComponentsWithStats(
            (score >= self.threshold).astype(np.uint8), connectivity=NEIGHBOURS
        )
        kept = [n for n in range(1, count) if figures[n, cv2.CC_STAT_AREA] >= self.least]
        kept.sort(key=lambda n: (-int(figures[n, cv2.CC_STAT_AREA]), n))
        masks = [labels == number for number in kept]
        if self.how == "union" and masks:
            masks = [np.any(masks, axis=0)]
        return [Found(_around(mask), float(score[mask].mean()), mask) for mask in masks]

    def _peak(self, score: np.ndarray) -> list[Found]:
        height, width = (min(self.side, side) for side in score.shape)
        sums = cv2.integral(score.astype(np.float64))
        means = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        top, left = np.unravel_index(int(means.argmax()), means.shape)
        mean = float(means[top, left]) / (height * width)
        if mean < self.threshold:
            return []
        mask = np.zeros(score.shape, bool)
        mask[top : top + height, left : left + width] = True
        return [Found((int(left), int(top), int(left) + width, int(top) + height), mean, mask)]

    def describe(self, found: Sequence[Found], parts: np.ndarray) -> list[dict[str, Any]]:
        """Cells of each box that was found, by column; the edges are one cell, `box`."""
        rows: list[dict[str, Any]] = [
            {"box": each.box, SCORE: round(each.score, 6), "area": int(each.mask.sum())} for each in found
        ]
        for row, each in zip(rows, found, strict=True) if self.how == "components" else ():
            row["predicted"] = self.classes[int(parts[:, each.mask].mean(axis=1).argmax())]
        return rows

    def table(
        self,
        frame: pd.DataFrame,
        ids: Sequence[str],
        images: Sequence[str],
        found: Mapping[str, Sequence[Mapping[str, Any]]],
        maps: Mapping[str, str],
        every: bool,
    ) -> pd.DataFrame:
        """The table of boxes of the images `ids`.

        Args:
            frame: the rows of the images.
            found: what `describe` says, by id.
            maps: files of the scores by id, if there are any.
            every: a picture without components has a row too, without a box.
        """
        nothing = {"box": None, SCORE: None}
        if self.how != "components":
            edges = [_edges((found.get(id) or [nothing])[0]) | _map(maps, id) for id in ids]
            return frame.reset_index(drop=True).join(pd.DataFrame(edges).astype(object))
        rows = [
            {"id": f"{id}-{number}", "picture": id, "image": image}
            | _edges(each)
            | {name: value for name, value in each.items() if name not in ("box", SCORE)}
            | _map(maps, id)
            for id, image in zip(ids, images, strict=True)
            for number, each in enumerate(found.get(id) or ([nothing] if every else []))
        ]
        return pd.DataFrame(rows).astype(object)


def write_map(folder: Path, number: int, score: np.ndarray, scale: float) -> str:
    """Write a score (H, W) of 0 to 1 as the pictures are stored, `scale` for 1.0, into a folder beside the table.

    Returns:
        The cell of the table: a path with a hash of the pixels, so that the identity of a run depends on them.
    """
    rounded = np.rint(score * scale)
    stored = rounded.astype(np.uint8) if scale <= 255 else rounded.astype(np.uint16)
    digest = hashlib.sha256(stored.tobytes()).hexdigest()[:8]
    path = folder / f"{number:06d}-{digest}.png"
    path.write_bytes(cv2.imencode(".png", stored)[1].tobytes())
    return path.name


def _map(maps: Mapping[str, str], id: str) -> dict[str, str]:
    return {SCORE_MAP: maps[id]} if maps else {}


def _edges(found: Mapping[str, Any]) -> dict[str, Any]:
    values = found["box"] or (None,) * 4
    return dict(zip(BOX, values, strict=True)) | {SCORE: found[SCORE]}


def _around(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
