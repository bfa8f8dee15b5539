"""Views of an image for test-time augmentation, and the way back from a view's map to the image.

A view is one of the square's symmetries, of the whole image, of the image at another scale, or of a crop. Symmetries
never resample: their maps are turned back exactly, on odd and non-square sizes too. Scales and crops resample there and
back, so their maps are a little smoother than the image.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foldwise.data.batches import unit_range
from foldwise.errors import Refusal

CROPPED = 0.875  # the share of height and width that a crop keeps
MULTIPLE = 32  # scaled sizes are rounded to it, since most decoders need it
# Of each symmetry: whether it transposes, and the axes that it flips then. Rotations are counterclockwise.
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
    """A symmetry of the whole image (`crop` None) at a scale, or of a crop resized to the image's own size."""

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
        with suppress(ValueError):
            view = cls(symmetry, crop=where) if where in CROPS else cls(symmetry, float(where or 1))
            if symmetry in SYMMETRIES and view.name == name:
                return view
        raise Refusal(f"there is no view {name}")

    @property
    def name(self) -> str:
        """`hflip`, `hflip@0.75` or `hflip@top-left`."""
        where = self.crop or ("" if self.scale == 1 else f"{self.scale:g}")
        return f"{self.symmetry}@{where}" if where else self.symmetry

    def forward(self, x: Tensor) -> Tensor:
        """The view of (..., H, W); resampled, uint8 becomes float in [0, 1] and int64 takes the nearest pixel."""
        height, width = x.shape[-2:]
        if self.crop is not None:
            top, left, h, w = self._box(height, width)
            x = _resample(x[..., top : top + h, left : left + w], (height, width))
        elif self.scale != 1:
            x = _resample(x, [max(MULTIPLE, round(n * self.scale / MULTIPLE) * MULTIPLE) for n in (height, width)])
        transposes, flips = SYMMETRIES[self.symmetry]
        return (x.mT if transposes else x).flip(flips)

    def inverse(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """The maps (B, C, h, w) of a view on the image's (height, width); NaN where a crop saw nothing."""
        height, width = size
        transposes, flips = SYMMETRIES[self.symmetry]
        maps = maps.flip(flips)
        maps = maps.mT if transposes else maps
        if self.crop is None:
            return maps if maps.shape[-2:] == (height, width) else _resample(maps, (height, width))
        top, left, h, w = self._box(height, width)
        whole = maps.new_full((*maps.shape[:-2], height, width), torch.nan)
        whole[..., top : top + h, left : left + w] = _resample(maps, (h, w))
        return whole

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop."""
        down, right = CROPS[str(self.crop)]
        h, w = max(1, round(height * CROPPED)), max(1, round(width * CROPPED))
        return round((height - h) * down), round((width - w) * right), h, w


def view_batches(
    views: Sequence[View], batch: Mapping[str, Tensor], spatial: Collection[str]
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """One batch for all views of a shape, with the numbers of these views: all samples in the first, then the next.

    Args:
        spatial: names of the fields that views turn; the others are repeated for each view.
    """
    turned = [{name: view.forward(batch[name]) for name in spatial} for view in views]
    alike: dict[tuple[object, ...], list[int]] = {}
    for number, fields in enumerate(turned):
        alike.setdefault(tuple((value.shape, value.dtype) for value in fields.values()), []).append(number)
    for numbers in alike.values():
        yield (
            numbers,
            {
                name: torch.cat([turned[number][name] for number in numbers])
                if name in spatial
                else value.expand(len(numbers), *value.shape).flatten(0, 1)
                for name, value in batch.items()
            },
        )


def _resample(x: Tensor, size: Sequence[int]) -> Tensor:
    if x.dtype == torch.int64:
        planes = x.reshape(-1, 1, *x.shape[-2:]).float()
        return interpolate(planes, tuple(size), mode="nearest-exact").long().view(*x.shape[:-2], *size)
    planes = unit_range(x).reshape(-1, *x.shape[-3:])  # each picture of a stack
    resampled = interpolate(planes, tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return resampled.view(*x.shape[:-2], *size)
