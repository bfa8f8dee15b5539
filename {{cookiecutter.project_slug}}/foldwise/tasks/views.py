"""Views of an image for test-time augmentation, and their inverse for predicted maps.

A view is a symmetry of the square, applied to the whole image, the rescaled image or a crop, to every n-th picture of a
stack, or to what is read with another margin around a box. Symmetries are undone exactly, on odd and non-square sizes
too. Scales and crops resample twice, so their maps are a little smoother.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldwise.errors import Refusal

if TYPE_CHECKING:
    from torch import Tensor

CROPPED = 0.875  # share of height and width that a crop keeps
MARGIN = "margin"  # in names
MULTIPLE = 32  # scaled sizes are rounded to multiples of this, as most decoders need
# Of each symmetry: whether it transposes, and the axes it flips afterwards. Rotations are counterclockwise.
SYMMETRIES: dict[str, tuple[bool, tuple[int, ...]]] = {
    "identity": (False, ()),
    "hflip": (False, (-1,)),
    "vflip": (False, (-2,)),
    "rot180": (False, (-2, -1)),
    "rot90": (True, (-2,)),
    "rot270": (True, (-1,)),
    "transpose": (True, ()),
    "antitranspose": (True, (-2, -1)),
}
# Position of each crop: share of the leftover height above it, and of the leftover width to its left.
CROPS = {
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
    "centre": (0.5, 0.5),
}


@dataclass(frozen=True)
class View:
    """A symmetry, applied to the image at a scale, or to a crop resized to the image's size.

    Attributes:
        frames: (first, step) of the pictures that are taken of a stack; None: all.
        margin: of `samples.crop`; None: that of the run.
    """

    symmetry: str
    scale: float = 1.0
    crop: str | None = None
    frames: tuple[int, int] | None = None
    margin: float | None = None

    @classmethod
    def from_name(cls, name: str) -> "View":
        """Parse the `name` of a view; refuse an unknown one."""
        symmetry, _, where = name.partition("@")
        with suppress(ValueError):
            first, of, step = where.partition("of")
            if of:
                view = cls(symmetry, frames=(int(first) - 1, int(step)))
            elif where.startswith(MARGIN):
                view = cls(symmetry, margin=float(where.removeprefix(MARGIN)))
            else:
                view = cls(symmetry, crop=where) if where in CROPS else cls(symmetry, float(where or 1))
            if symmetry in SYMMETRIES and view.name == name:
                return view
        raise Refusal(f"there is no view {name}")

    @property
    def name(self) -> str:
        """For example `hflip`, `hflip@0.75`, `hflip@top-left`, `hflip@margin0.1`, or `hflip@1of4`, of the frames."""
        where = self.crop or ("" if self.scale == 1 else f"{self.scale:g}")
        where = where if self.frames is None else f"{self.frames[0] + 1}of{self.frames[1]}"
        where = where if self.margin is None else f"{MARGIN}{self.margin:g}"
        return f"{self.symmetry}@{where}" if where else self.symmetry

    def take(self, batch: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        """Take the view's pictures from the stacks of a batch (ragged fields, (B, N, ...), and their `_valid`)."""
        if self.frames is None:
            return dict(batch)
        first, step = self.frames
        ragged = {name.removesuffix("_valid") for name in batch if name.endswith("_valid")}
        return {
            name: value[:, first::step] if name.removesuffix("_valid") in ragged else value
            for name, value in batch.items()
        }

    def forward(self, x: "Tensor") -> "Tensor":
        """Apply the view to (..., H, W). Resampling turns uint8 into float in [0, 1]; int64 takes the nearest pixel."""
        height, width = x.shape[-2:]
        if self.crop is not None:
            top, left, h, w = self._box(height, width)
            x = _resample(x[..., top : top + h, left : left + w], (height, width))
        elif self.scale != 1:
            x = _resample(x, [max(MULTIPLE, round(n * self.scale / MULTIPLE) * MULTIPLE) for n in (height, width)])
        transposes, flips = SYMMETRIES[self.symmetry]
        return (x.mT if transposes else x).flip(flips)

    def inverse(self, maps: "Tensor", size: Sequence[int]) -> "Tensor":
        """Map predictions (B, C, h, w) of the view back to the image's (height, width); NaN outside a crop."""
        height, width = size
        transposes, flips = SYMMETRIES[self.symmetry]
        maps = maps.flip(flips)
        maps = maps.mT if transposes else maps
        if self.crop is None:
            return maps if maps.shape[-2:] == (height, width) else _resample(maps, (height, width))
        top, left, h, w = self._box(height, width)
        whole = maps.new_full((*maps.shape[:-2], height, width), float("nan"))
        whole[..., top : top + h, left : left + w] = _resample(maps, (h, w))
        return whole

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of the crop."""
        down, right = CROPS[str(self.crop)]
        h, w = max(1, round(height * CROPPED)), max(1, round(width * CROPPED))
        return round((height - h) * down), round((width - w) * right), h, w


def view_batches(
    views: Sequence[View], batch: Mapping[str, "Tensor"], spatial: Collection[str]
) -> Iterator[tuple[list[int], dict[str, "Tensor"]]]:
    """Yield the indices of views with equal shapes and their batch, ordered by view; other fields are repeated."""
    import torch

    transformed = [
        {name: view.forward(value) if name in spatial else value for name, value in view.take(batch).items()}
        for view in views
    ]
    by_shape: dict[tuple[object, ...], list[int]] = {}
    for index, fields in enumerate(transformed):
        by_shape.setdefault(tuple((value.shape, value.dtype) for value in fields.values()), []).append(index)
    for indices in by_shape.values():
        yield indices, {name: torch.cat([transformed[index][name] for index in indices]) for name in batch}


def _resample(x: "Tensor", size: Sequence[int]) -> "Tensor":
    import torch
    from torch.nn.functional import interpolate

    if x.dtype == torch.int64:
        planes = x.reshape(-1, 1, *x.shape[-2:]).float()
        return interpolate(planes, tuple(size), mode="nearest-exact").long().view(*x.shape[:-2], *size)
    x = x if x.is_floating_point() else x.float() / 255
    planes = x.reshape(-1, *x.shape[-3:])  # each image of a stack
    resampled = interpolate(planes, tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return resampled.view(*x.shape[:-2], *size)
