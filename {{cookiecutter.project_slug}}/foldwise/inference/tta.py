"""Test-time augmentation: an image is predicted in several views, and the probabilities are averaged."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldwise.errors import Refusal
from foldwise.inference.views import CROPS, SYMMETRIES, View

MEANS = ("arithmetic", "geometric")
# The smallest probability in a geometric mean: one view that is sure of zero must not rule a class out for good.
SMALLEST = 1e-7
KEYS = ("views", "mean", "scales", "crops", "draws", "transforms")


class TTA:
    """The views in which images are predicted: each symmetry at each scale and in each crop, or of random draws.

    Args:
        views: names of `SYMMETRIES`, each once.
        mean: "arithmetic" or "geometric", see `average`.
        scales: of the network's input; 1 is its own size.
        crops: names of `CROPS`; they come besides the scales.
        draws: times that `transforms` are drawn for each image; 0: the image as it is.
        transforms: of albumentations, as in configs/augmentation.

    Raises:
        Refusal: everything that is wrong with the choices.
    """

    def __init__(
        self,
        views: Sequence[str] = ("identity",),
        mean: str = "arithmetic",
        scales: Sequence[float] = (1.0,),
        crops: Sequence[str] = (),
        draws: int = 0,
        transforms: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        problems = _list_problems("views", views, SYMMETRIES) + _list_problems("crops", crops, CROPS)
        if not isinstance(scales, Sequence) or not all(isinstance(s, int | float) and 0.1 <= s <= 4 for s in scales):
            problems.append(f"tta.scales is {scales!r}; it must be a list of numbers from 0.1 to 4")
        elif (not scales and not crops) or not views:
            problems.append("the TTA has no views: tta.views, and tta.scales or tta.crops, must not be empty")
        if mean not in MEANS:
            problems.append(f"tta.mean is {mean!r}; it must be one of {', '.join(MEANS)}")
        if not isinstance(draws, int) or draws < 0 or bool(draws) != bool(transforms):
            problems.append(
                f"tta.draws is {draws!r}; it is a number from 0, above 0 just where tta.transforms has some"
            )
        if problems:
            raise Refusal("; ".join(problems))
        zooms = [*((scale, None) for scale in scales), *((1.0, crop) for crop in crops)]
        self.views = tuple(View(symmetry, *zoom) for zoom in zooms for symmetry in views)
        self.mean = mean
        self.draws = draws
        self.transforms = tuple(transforms)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TTA":
        """The TTA of a file in configs/tta.

        Raises:
            Refusal: unknown keys, or as the class.
        """
        unknown = [str(key) for key in config if key not in KEYS]
        if unknown or "views" not in config or "mean" not in config:
            raise Refusal(f"a TTA has views and mean, and may have {', '.join(KEYS[2:])}; this one has {list(config)}")
        return cls(**config)

    @classmethod
    def from_names(cls, names: Sequence[str], mean: str) -> "TTA":
        """The TTA of views by their names, as the header of a prediction has them; not of random draws.

        Raises:
            Refusal: a name of no view, or an unknown mean.
        """
        tta = cls(mean=mean)
        tta.views = tuple(View.from_name(name) for name in names)
        return tta

    @property
    def names(self) -> list[str]:
        """A name for each view, of each draw."""
        names = [view.name for view in self.views]
        return [f"{name}#{draw}" for draw in range(self.draws) for name in names] if self.draws else names

    @property
    def name(self) -> str:
        """The `view` of the averaged prediction: that of the one view, or "mean"."""
        return self.names[0] if len(self.names) == 1 else "mean"

    @property
    def resamples(self) -> bool:
        """Whether views have other sizes than the network's own."""
        return any(view.scale != 1 for view in self.views)

    def predict(self, probabilities: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
        """Probabilities of a batch in each view: (B, C), or (B, C, H, W) on the image as it lies in `x`.

        Views of one shape go through `probabilities` as one batch.

        Args:
            probabilities: (N, channels, H, W) to (N, C) or (N, C, H, W).
            x: (B, channels, H, W).
        """
        inputs = [view.forward(x) for view in self.views]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, view in enumerate(inputs):
            alike.setdefault((view.shape, view.dtype), []).append(index)
        results: dict[int, Tensor] = {}
        for indices in alike.values():
            batch = torch.cat([inputs[index] for index in indices])
            for index, result in zip(indices, probabilities(batch).chunk(len(indices)), strict=True):
                results[index] = self.views[index].inverse(result, x.shape[-2:]) if result.ndim == 4 else result
        return [results[index] for index in range(len(inputs))]


def average(probabilities: Sequence[Tensor], mean: str, exclusive: bool) -> Tensor:
    """Average probabilities of equal shape, classes in dimension 1; NaN takes no part.

    arithmetic: the mean. geometric: exp of the mean log-probability, with zeros taken as 1e-7, divided by the sum over
    the classes (exclusive), or by its sum with the geometric mean of the complements (not exclusive), which equals
    the sigmoid of the mean logit.
    """
    if len(probabilities) == 1:
        return probabilities[0]
    stacked = torch.stack(list(probabilities))
    if mean == "arithmetic":
        return stacked.nanmean(0)
    positive = _geometric(stacked)
    total = positive.sum(1, keepdim=True) if exclusive else positive + _geometric(1 - stacked)
    return positive / total


def load_tta(path: Path) -> TTA:
    """The TTA of a file such as `configs/tta/d4.yaml`, which needs no Hydra.

    Raises:
        Refusal: no such file, not YAML, or as `TTA.from_config`.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise Refusal(f"there is no TTA {path}" + (f"; {path.parent} has {there}" if there else ""))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is not valid YAML ({error})") from error
    try:
        return TTA.from_config(values)
    except (Refusal, TypeError) as error:
        raise Refusal(f"{path}: {error}") from error


def _geometric(stacked: Tensor) -> Tensor:
    return stacked.clamp(min=SMALLEST).log().nanmean(0).exp()


def _list_problems(key: str, names: Any, known: Mapping[str, Any]) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Sequence) or len(set(map(str, names))) < len(names):
        return [f"tta.{key} is {names!r}; it must be a list of different names out of {', '.join(known)}"]
    unknown = [str(name) for name in names if name not in known]
    return [f"tta.{key} has {', '.join(unknown)}; there are {', '.join(known)}"] if unknown else []
