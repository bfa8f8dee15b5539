"""Formats of masks: run-length codes, or a zip of image files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foldwise.data.class_masks import encode_layers
from foldwise.data.problems import some
from foldwise.data.run_lengths import encode_runs, run_pixels
from foldwise.files import name_problem
from foldwise.predictions.decisions.formats.base import Format, jaccard_distance
from foldwise.tasks import Kind


@dataclass(frozen=True, kw_only=True)
class RunLengths(Format):
    """Masks as run-length codes.

    Args:
        painted: the classes that get rows; empty: all but the first, which is the background.
        row_id: as in `Format`; None: {id}_{class}, or {id} if only one class is painted.
        by_row: see `foldwise.data.run_lengths`.
    """

    painted: Sequence[str] = ()
    by_row: bool = False

    name: ClassVar[str] = "rle"
    kind: ClassVar[Kind] = "maps"

    def __post_init__(self) -> None:
        self.check_classes(self.painted)
        super().__post_init__()

    @property
    def template(self) -> str:
        return self.row_id or ("{id}" if len(self._indices) == 1 else "{id}_{class}")

    @property
    def by_class(self) -> bool:
        return True

    @property
    def _indices(self) -> list[int]:
        return [self.classes.index(name) for name in self.painted or self.classes[1:]]

    def encode(self, mask: np.ndarray) -> bytes:
        """Encode each painted class of a mask (H, W), or of masks per class (C, H, W), one line per class."""
        layers = [mask == index if mask.ndim == 2 else mask[index] >= 0.5 for index in self._indices]
        return "\n".join(encode_runs(layer, self.by_row) or self.empty for layer in layers).encode()

    @staticmethod
    def differ(first: str, second: str) -> float:
        return jaccard_distance(run_pixels(first), run_pixels(second))


@dataclass(frozen=True, kw_only=True)
class Masks(Format):
    """A zip of image files; a sample submission provides only the ids.

    Args:
        layers: masks per class, with values from 0 to 255, instead of class numbers.
    """

    layers: bool = False

    name: ClassVar[str] = "masks"
    kind: ClassVar[Kind] = "maps"
    suffix: ClassVar[str] = ".zip"

    def file_name(self, id: str) -> str:
        name, suffix = self.row_ids([id])[0], ".tif" if self.layers and len(self.classes) > 1 else ".png"
        return name if name.lower().endswith(suffix) else f"{name}{suffix}"

    def id_problems(self, ids: Sequence[str]) -> list[str]:
        bad = {id: problem for id in ids if (problem := name_problem(self.file_name(id)))}
        return [f"{len(bad):,} ids cannot be file names: {some([f'{id!r} {bad[id]}' for id in bad], 3)}"] if bad else []

    def encode(self, mask: np.ndarray) -> bytes:
        import cv2

        if mask.ndim == 3:
            return encode_layers(np.rint(mask * np.float32(255)).astype(np.uint8))
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return cv2.imencode(".png", mask.astype(dtype))[1].tobytes()
