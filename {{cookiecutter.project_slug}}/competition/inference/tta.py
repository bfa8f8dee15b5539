"""Test-time augmentation: an image is predicted in several views, and the probabilities are averaged.

The views are the eight symmetries of the square. They move pixels and never resample, so the map of a view is turned
back exactly, on odd and non-square sizes too; four of them swap height and width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

MEANS = ("arithmetic", "geometric")
# The smallest probability in a geometric mean: one view that is sure of zero must not rule a class out for good.
SMALLEST = 1e-7


@dataclass(frozen=True)
class View:
    """A symmetry of (..., H, W) tensors and its inverse; `swaps` says that height and width change places."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    swaps: bool = False


def _rotate(quarters: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.rot90(quarters, (-2, -1))


def _flip(*dims: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flip(dims)


def _transpose(x: Tensor) -> Tensor:
    return x.mT


def _antitranspose(x: Tensor) -> Tensor:
    return x.mT.flip((-2, -1))


# Rotations are counterclockwise. Only those by 90 and 270 degrees are not their own inverse.
VIEWS = {
    "identity": View(lambda x: x, lambda x: x),
    "hflip": View(_flip(-1), _flip(-1)),
    "vflip": View(_flip(-2), _flip(-2)),
    "rot180": View(_flip(-2, -1), _flip(-2, -1)),
    "rot90": View(_rotate(1), _rotate(-1), swaps=True),
    "rot270": View(_rotate(-1), _rotate(1), swaps=True),
    "transpose": View(_transpose, _transpose, swaps=True),
    "antitranspose": View(_antitranspose, _antitranspose, swaps=True),
}


class TTA:
    """Predicts a batch in all views and averages.

    Args:
        views: names of `VIEWS`, each once.
        mean: "arithmetic" or "geometric", see `average`.

    Raises:
        ValueError: an unknown or repeated view, or an unknown mean.
    """

    def __init__(self, views: Sequence[str] = ("identity",), mean: str = "arithmetic") -> None:
        if isinstance(views, str) or not views or len(set(views)) < len(views):
            raise ValueError(f"tta.views is {views!r}; it must be a list of different views out of {', '.join(VIEWS)}")
        unknown = [str(view) for view in views if view not in VIEWS]
        if unknown:
            raise ValueError(f"tta.views has {', '.join(unknown)}; there are {', '.join(VIEWS)}")
        if mean not in MEANS:
            raise ValueError(f"tta.mean is {mean!r}; it must be one of {', '.join(MEANS)}")
        self.views = tuple(views)
        self.mean = mean

    @property
    def name(self) -> str:
        """The `view` of the prediction that comes out: that of the one view, or "mean"."""
        return self.views[0] if len(self.views) == 1 else "mean"

    def predict(self, probabilities: Callable[[Tensor], Tensor], x: Tensor, exclusive: bool) -> Tensor:
        """Averaged probabilities of a batch: (B, C), or (B, C, H, W) turned back to the image's orientation.

        Views of one shape go through `probabilities` as one batch: all of them when the images are square, else two.

        Args:
            probabilities: (N, channels, H, W) to (N, C) or (N, C, H, W).
            x: (B, channels, H, W).
            exclusive: the classes are (softmax), or are not (sigmoid).
        """
        square = x.shape[-1] == x.shape[-2]
        results: dict[str, Tensor] = {}
        for swaps in (False, True):
            names = [view for view in self.views if (VIEWS[view].swaps and not square) == swaps]
            if names:
                batch = torch.cat([VIEWS[view].forward(x) for view in names])
                for view, result in zip(names, probabilities(batch).chunk(len(names)), strict=True):
                    results[view] = VIEWS[view].inverse(result) if result.ndim == 4 else result
        return average([results[view] for view in self.views], self.mean, exclusive)


def average(probabilities: Sequence[Tensor], mean: str, exclusive: bool) -> Tensor:
    """Average probabilities of equal shape, classes in dimension 1.

    arithmetic: the mean. geometric: exp of the mean log-probability, with zeros taken as 1e-7, divided by the sum over
    the classes (exclusive), or by its sum with the geometric mean of the complements (not exclusive), which equals
    the sigmoid of the mean logit.
    """
    if len(probabilities) == 1:
        return probabilities[0]
    stacked = torch.stack(list(probabilities))
    if mean == "arithmetic":
        return stacked.mean(0)
    positive = _geometric(stacked)
    total = positive.sum(1, keepdim=True) if exclusive else positive + _geometric(1 - stacked)
    return positive / total


def load_tta(path: Path) -> TTA:
    """The TTA of a file such as `configs/tta/d4.yaml`, which needs no Hydra.

    Raises:
        ValueError: no such file, not YAML, or other keys than views and mean.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ValueError(f"there is no TTA {path}" + (f"; {path.parent} has {there}" if there else ""))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML ({error})") from error
    if not isinstance(values, dict) or set(values) != {"views", "mean"}:
        raise ValueError(f"{path} must have the keys views and mean, and no others")
    try:
        return TTA(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _geometric(stacked: Tensor) -> Tensor:
    return stacked.clamp(min=SMALLEST).log().mean(0).exp()
