"""Views of an image for test-time augmentation, and the way back from a view's map to the image.

A view is a symmetry of the square, of the whole image, of the image at another scale, or of a crop. Symmetries move
pixels and never resample, so their maps are turned back exactly, on odd and non-square sizes too. Scales and crops
resample, there and back: their maps are a little smoother than the truth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foldwise.errors import Refusal

CROPPED = 0.875  # the share of height and width that a crop keeps
MULTIPLE = 32  # scaled sizes are rounded to it, since most decoders need it


@dataclass(frozen=True)
class Symmetry:
    """A symmetry of (..., H, W) tensors and its inverse."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


def _rotate(quarters: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.rot90(quarters, (-2, -1))


def _flip(*dims: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flip(dims)


def _transpose(x: Tensor) -> Tensor:
    return x.mT


def _antitranspose(x: Tensor) -> Tensor:
    return x.mT.flip((-2, -1))


# Rotations are counterclockwise. Only those by 90 and 270 degrees are not their own inverse.
SYMMETRIES = {
    "identity": Symmetry(lambda x: x, lambda x: x),
    "hflip": Symmetry(_flip(-1), _flip(-1)),
    "vflip": Symmetry(_flip(-2), _flip(-2)),
    "rot180": Symmetry(_flip(-2, -1), _flip(-2, -1)),
    "rot90": Symmetry(_rotate(1), _rotate(-1)),
    "rot270": Symmetry(_rotate(-1), _rotate(1)),
    "transpose": Symmetry(_transpose, _transpose),
    "antitranspose": Symmetry(_antitranspose, _antitranspose),
}
# Where a crop lies: shares of the room above and to the left of it.
CROPS = {
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
    "centre": (0.5, 0.5),
}


@dataclass(frozen=True)
class View:
    """A symmetry of the whole image (`crop` None) at a scale, or of a crop at the image's own size."""

    symmetry: str
    scale: float = 1.0
    crop: str | None = None

    @classmethod
    def from_name(cls, name: str) -> "View":
        """The view that has this `name`.

        Raises:
            Refusal: there is no such view.
        """
        symmetry, _, where = name.partition("@")
        try:
            view = cls(symmetry, crop=where) if where in CROPS else cls(symmetry, float(where or 1))
        except ValueError:
            view = cls("")
        if symmetry not in SYMMETRIES or view.name != name:
            raise Refusal(f"there is no view {name}")
        return view

    @property
    def name(self) -> str:
        """`hflip`, `hflip@0.75` or `hflip@top-left`."""
        where = self.crop or ("" if self.scale == 1 else f"{self.scale:g}")
        return f"{self.symmetry}@{where}" if where else self.symmetry

    def forward(self, x: Tensor) -> Tensor:
        """The view of (..., H, W): integers where nothing is resampled; else images and maps are float, uint8 as a
        share of 255, and masks (int64) take the nearest pixel."""
        height, width = x.shape[-2:]
        if self.crop is not None:
            top, left, h, w = self._box(height, width)
            x = _resample(x[..., top : top + h, left : left + w], (height, width))
        elif self.scale != 1:
            scaled = [max(MULTIPLE, round(side * self.scale / MULTIPLE) * MULTIPLE) for side in (height, width)]
            x = _resample(x, scaled)
        return SYMMETRIES[self.symmetry].forward(x)

    def inverse(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """The maps (B, C, h, w) of a view on the image's (height, width); NaN where a crop saw nothing."""
        height, width = size
        maps = SYMMETRIES[self.symmetry].inverse(maps)
        if self.crop is None:
            return maps if maps.shape[-2:] == (height, width) else _resample(maps, (height, width))
        top, left, h, w = self._box(height, width)
        whole = maps.new_full((*maps.shape[:-2], height, width), torch.nan)
        whole[..., top : top + h, left : left + w] = _resample(maps, (h, w))
        return whole

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop."""
        assert self.crop is not None
        down, right = CROPS[self.crop]
        h, w = max(1, round(height * CROPPED)), max(1, round(width * CROPPED))
        return round((height - h) * down), round((width - w) * right), h, w


def _resample(x: Tensor, size: Sequence[int]) -> Tensor:
    if x.dtype == torch.int64:
        planes = x.reshape(-1, 1, *x.shape[-2:]).float()
        return interpolate(planes, tuple(size), mode="nearest-exact").long().view(*x.shape[:-2], *size)
    values = x.float() / 255 if x.dtype == torch.uint8 else x
    planes = values.reshape(-1, *values.shape[-3:])  # of stacks, each picture
    resampled = interpolate(planes, tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return resampled.view(*x.shape[:-2], *size)
